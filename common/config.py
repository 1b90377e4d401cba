"""RUN.yaml and SITE.yaml in, checked objects out: every error at once, or none.

Values are checked strictly: a text is not a number and `true` is not 1, so nothing is
converted in silence. A relative path means what it means beside the file it stands in; one
that is given on the command line means what it means in the current folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TypeVar

from pydantic import ValidationError

from discreet.common.errors import ConfigError
from discreet.common.explain import explain, show
from discreet.common.plan import Plan
from discreet.common.site import Section, Site
from discreet.common.yaml_loader import dump_yaml, parse_value, read_yaml

EMBEDDED = "embedded:"
"""Begins the path of a corpus that is shipped with the program."""

_PLAN_PATHS = (("tokens", "path"), ("evaluation", "data", "path"), ("simulation", "data", "path"))
_SITE_PATHS = (("data", "path"), ("state_dir",), ("store_dir",), ("certs",))

_SectionT = TypeVar("_SectionT", bound=Section)


def load_plan(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """The plan that a RUN.yaml holds.

    Args:
        path: The file.
        overrides: Settings that replace the file's, as `training.rounds=3`; the value is YAML.

    Raises:
        ConfigError: With one line for each wrong setting.
    """
    source = str(path)
    content = _absolute_paths(read_yaml(path), _PLAN_PATHS, path.parent)
    for override in overrides:
        content = _override(content, override)
    return _validate(Plan, content, source)


def load_site(path: Path) -> Site:
    """The site's own settings that a SITE.yaml holds.

    Raises:
        ConfigError: With one line for each wrong setting.
    """
    content = _absolute_paths(read_yaml(path), _SITE_PATHS, path.parent)
    return _validate(Site, content, str(path))


def parse_plan(content: Mapping[str, object], *, base_dir: Path, source: str) -> Plan:
    """The plan that plain values hold.

    Args:
        content: Section -> settings, as YAML or JSON give them.
        base_dir: What relative paths start from.
        source: Names the content in errors.

    Raises:
        ConfigError: With one line for each wrong setting.
    """
    return _validate(Plan, _absolute_paths(content, _PLAN_PATHS, base_dir), source)


def plan_from_json(data: bytes, source: str = "the server's plan") -> Plan:
    """The plan that `Plan.shared_json` or `model_dump_json` wrote. Its paths stay as they are.

    Raises:
        ConfigError: With one line for each wrong setting.
    """
    return _validate_json(Plan, data, source)


def dump_plan(plan: Plan) -> str:
    """The whole plan as YAML, defaults written out, that `load_plan` reads back as equal."""
    return dump_yaml(plan.model_dump(mode="json"))


def _validate(model: type[_SectionT], content: Mapping[str, object], source: str) -> _SectionT:
    # By way of JSON, because only there pydantic's strict mode takes a list for a tuple.
    try:
        data = json.dumps(content, default=_plain).encode()
    except (TypeError, ValueError, RecursionError):
        raise ConfigError(f"{source}: must hold plain values alone, as YAML writes them") from None
    return _validate_json(model, data, source)


def _plain(value: object) -> str:
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError


def _validate_json(model: type[_SectionT], data: bytes, source: str) -> _SectionT:
    try:
        return model.model_validate_json(data, strict=True)
    except ValidationError as error:
        lines = [f"{source}: {line}" for line in explain(error, model)]
    raise ConfigError("\n".join(lines))


def _absolute_paths(
    content: Mapping[str, object], places: Sequence[Sequence[str]], base_dir: Path
) -> dict[str, object]:
    """A copy in which the paths at `places` start from the root of the file system."""
    result = dict(content)
    for place in places:
        name, rest = place[0], place[1:]
        value = result.get(name)
        if rest and isinstance(value, dict):
            result[name] = _absolute_paths(value, [rest], base_dir)
        elif not rest and isinstance(value, str) and value and not value.startswith(EMBEDDED):
            # Not resolve(): a glob is no path that exists, and links are the user's choice.
            expanded = base_dir.absolute() / Path(value).expanduser()
            result[name] = os.path.normpath(expanded)
    return result


def _override(content: Mapping[str, object], override: str) -> dict[str, object]:
    """A copy of the content with one setting replaced, as `training.rounds=3` says."""
    path, sign, text = override.partition("=")
    names = [name.strip() for name in path.split(".")]
    if not sign or not all(names):
        raise ConfigError(
            f"--set {override}: must be SECTION.SETTING=VALUE: write `training.rounds=3`"
        )
    value = parse_value(text, source=f"--set {path}")
    change: dict[str, object] = {names[-1]: value}
    for name in reversed(names[:-1]):
        change = {name: change}
    change = _absolute_paths(change, _PLAN_PATHS, Path())
    return _merge(content, change, names)


def _merge(
    content: Mapping[str, object],
    change: Mapping[str, object],
    names: Sequence[str],
    depth: int = 0,
) -> dict[str, object]:
    """A copy of `content` in which the one setting that `names` lead to is `change`'s."""
    name = names[depth]
    if depth == len(names) - 1:
        return {**content, name: change[name]}
    below, inner = content.get(name, {}), change[name]
    if not isinstance(below, dict) or not isinstance(inner, dict):
        where = ".".join(names[: depth + 1])
        raise ConfigError(
            f"--set {'.'.join(names)}: `{where}` is {show(below)} and has no settings below it: "
            f"set `{where}` as a whole, or change the file"
        )
    return {**content, name: _merge(below, inner, names, depth + 1)}
