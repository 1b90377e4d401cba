"""YAML as settings files need it: what a person wrote is what the program gets, or an error.

Three habits of PyYAML would change settings in silence, so they are off here. Scalars follow
the core schema of YAML 1.2: `no` is the text "no" and not false, `010` is ten, `12:30` is a
text and `1e-5` is a number. A key given twice is an error instead of last one wins. Tags can
make nothing but plain values.

Source: YAML 1.2.2, section 10.3.2, https://yaml.org/spec/1.2.2/#1032-tag-resolution
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import yaml

from discreet.common.errors import ConfigError

MAX_FILE_BYTES = 4 * 2**20
"""A larger settings file is a mistake: most likely the text itself."""

_MAX_VALUES = 1_000_000  # Aliases of aliases can make a small file unfold without end.
_MAX_DEPTH = 50

_BOOL = "tag:yaml.org,2002:bool"
_INT = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_STR = "tag:yaml.org,2002:str"
_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"

# Tag, pattern and first characters, in the order in which they are tried.
_CORE_SCHEMA: tuple[tuple[str, str, str], ...] = (
    (_NULL, r"^(?:~|null|Null|NULL|)$", "~nN"),
    (_BOOL, r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    (_INT, r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    (
        _FLOAT,
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+0123456789.",
    ),
    (_MERGE, r"^<<$", "<"),
)

_Resolvers = dict[str, list[tuple[str, re.Pattern[str]]]]


def _core_resolvers() -> _Resolvers:
    table: _Resolvers = {"": [(_NULL, re.compile(r"^$"))]}
    for tag, pattern, first in _CORE_SCHEMA:
        for character in first:
            table.setdefault(character, []).append((tag, re.compile(pattern)))
    return table


def _with_yaml_1_1(core: _Resolvers) -> _Resolvers:
    older = yaml.SafeDumper.yaml_implicit_resolvers
    return {first: [*core.get(first, []), *older.get(first, [])] for first in {*core, *older}}


def _refusal(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


class _Loader(yaml.SafeLoader):
    """The safe loader with the scalars of YAML 1.2."""

    def construct_core_bool(self, node: yaml.ScalarNode) -> bool:
        """`true` or `false`, and nothing else."""
        text = str(self.construct_scalar(node)).lower()
        if text not in {"true", "false"}:
            raise _refusal(node, "a boolean must be true or false")
        return text == "true"

    def construct_core_int(self, node: yaml.ScalarNode) -> int:
        """A whole number, also `0o` and `0x`."""
        text = str(self.construct_scalar(node))
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        try:
            return int(text if base == 10 else text[2:], base)
        except ValueError:
            raise _refusal(node, "this is not a whole number of a usual size") from None

    def construct_core_float(self, node: yaml.ScalarNode) -> float:
        """A number, also `1e-5`, `.inf` and `.nan`."""
        text = str(self.construct_scalar(node)).lower()
        try:
            return float(text.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            raise _refusal(node, "this is not a number") from None

    def construct_foreign(self, node: yaml.Node) -> object:
        """Refuses every tag that the core schema lacks."""
        raise _refusal(node, f"the tag {node.tag} is not known here: write a plain value")

    yaml_constructors: ClassVar[dict[str | None, Callable[..., object]]] = {
        _NULL: yaml.SafeLoader.construct_yaml_null,
        _BOOL: construct_core_bool,
        _INT: construct_core_int,
        _FLOAT: construct_core_float,
        _STR: yaml.SafeLoader.construct_yaml_str,
        "tag:yaml.org,2002:seq": yaml.SafeLoader.construct_yaml_seq,
        "tag:yaml.org,2002:map": yaml.SafeLoader.construct_yaml_map,
        None: construct_foreign,
    }


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would read as something else than text."""

    def ignore_aliases(self, data: object) -> bool:
        """Always: a value is written out each time."""
        # A reader of a run folder should not have to follow anchors.
        return True


_Loader.yaml_implicit_resolvers = _core_resolvers()
_Dumper.yaml_implicit_resolvers = _with_yaml_1_1(_Loader.yaml_implicit_resolvers)


def read_yaml(path: Path) -> dict[str, object]:
    """The settings of a YAML file, as plain values.

    Raises:
        ConfigError: If the file is missing, empty, too large, not UTF-8 text, not YAML, or
            holds something else than keys and values. The message starts with the path.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file: check the path") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: must be a YAML file, got a folder: name the file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: cannot be read ({reason}): check the path") from None
    return parse_yaml(_decode(data, str(path)), source=str(path))


def _decode(data: bytes, source: str) -> str:
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{source}: is larger than {MAX_FILE_BYTES} bytes: not a settings file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: must be UTF-8 text, got other bytes: save it so") from None
    if "\0" in text:
        raise ConfigError(f"{source}: must be a YAML file, got binary data: check the path")
    return text


def parse_yaml(text: str, *, source: str) -> dict[str, object]:
    """The keys and values that a YAML text holds; `source` names it in errors.

    Raises:
        ConfigError: If the text is empty, not YAML, or not keys and values at its top.
    """
    content = _load(text, source)
    if content is None:
        raise ConfigError(f"{source}: is empty: write settings into it")
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else "a single value"
        raise ConfigError(f"{source}: must hold `key: value` lines, got {kind}")
    return content


def parse_value(text: str, *, source: str) -> object:
    """One value as YAML writes it: `3`, `1e-5`, `none`, `[ham, spam]`.

    Raises:
        ConfigError: If the text is not YAML.
    """
    return _load(text, source)


def dump_yaml(content: Mapping[str, object]) -> str:
    """YAML that `parse_yaml` reads back as the same values, in the same order."""
    return yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _load(text: str, source: str) -> object:
    try:
        loader = _Loader(text)  # Reads ahead, so this raises too.
        node = loader.get_single_node()
        if node is None:
            return None
        _check_keys(node)
        value: object = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_explain_syntax(error, source)) from None
    except yaml.reader.ReaderError as error:
        raise ConfigError(
            f"{source}: holds a control character (number {error.position}): not a text file"
        ) from None
    except RecursionError:
        raise ConfigError(f"{source}: is nested too deeply: write it flatter") from None
    _check_size(value, source)
    return value


def _check_keys(root: yaml.Node) -> None:
    """Refuse a key that is given twice or is not text; before merging (`<<`) rewrites nodes."""
    waiting, visited = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in visited:  # An alias leads here once more.
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
        if isinstance(node, yaml.MappingNode):
            waiting.extend(value for _, value in node.value)
            _check_keys_of(node)


def _check_keys_of(mapping: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in mapping.value:
        if key.tag == _MERGE:
            continue
        if key.tag != _STR:
            raise _refusal(key, "a key must be text: put it in quotes")
        if key.value in seen:
            raise _refusal(key, f"the key `{key.value}` is given twice: keep one")
        seen.add(key.value)


def _explain_syntax(error: yaml.MarkedYAMLError, source: str) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
    # The problem alone: `str(error)` would add lines of the file.
    return f"{place}: {error.problem or error.context or 'not YAML'}"


def _check_size(value: object, source: str) -> None:
    num_values = 0
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        num_values += 1
        if depth > _MAX_DEPTH or num_values > _MAX_VALUES:
            raise ConfigError(
                f"{source}: is nested too deeply or unfolds too far: write it flatter"
            )
        if isinstance(item, dict):
            waiting.extend((child, depth + 1) for child in item.values())
        elif isinstance(item, list):
            waiting.extend((child, depth + 1) for child in item)
