"""The settings files as JSON schema: editors check and explain RUN.yaml with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import orjson
from pydantic import BaseModel

from discreet.common.explain import meanings
from discreet.common.plan import Plan
from discreet.common.site import Section, Site


def settings_schema(kind: Literal["run", "site"]) -> str:
    """The schema (draft 2020-12) of RUN.yaml or SITE.yaml, each setting with its meaning."""
    root: type[BaseModel] = Plan if kind == "run" else Site
    schema = root.model_json_schema()
    definitions = schema.get("$defs", {})
    for section in _sections():
        described = schema if section is root else definitions.get(section.__name__)
        if described is not None:
            _describe(described, section)
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": f"{kind.upper()}.yaml of discreet",
    }
    return orjson.dumps(schema, option=orjson.OPT_INDENT_2).decode()


def _sections() -> Iterator[type[BaseModel]]:
    yield from Section.__subclasses__()


def _describe(described: dict[str, object], section: type[BaseModel]) -> None:
    """Put the docstring's words where an editor shows them."""
    described["description"] = (section.__doc__ or "").partition("\n")[0]
    settings = described.get("properties")
    if isinstance(settings, dict):
        for name, meaning in meanings(section).items():
            if name in settings:
                settings[name]["description"] = meaning
