"""Pydantic's errors in this program's words: one line for each setting.

A line says which setting, what it must be, what it was and what to do. Pydantic tries
every branch of a union and names the branch in the error's path; here the path is what
stands in the file, and only the branch that was meant is explained.
"""

from __future__ import annotations

import difflib
import inspect
import re
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_SHOWN_CHARACTERS = 60


def explain(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One line for each wrong setting, in the order of the sections.

    Args:
        error: What validating against `root` raised.
        root: The model of the whole file.
    """
    lines: dict[str, None] = {}  # As an ordered set.
    for details in error.errors(include_url=False):
        place = _locate(details["loc"], root)
        line = _explain_one(details, place)
        if line is not None:
            lines[line] = None
    return list(lines)


@cache
def meanings(section: type[BaseModel]) -> dict[str, str]:
    """What each setting of a section is, from the `Attributes:` of its docstring."""
    text = inspect.getdoc(section) or ""
    _, _, attributes = text.partition("Attributes:\n")
    found = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", attributes, flags=re.MULTILINE)
    return {name: re.sub(r"\s+", " ", meaning) for name, meaning in found}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an error is.

    Attributes:
        path: Keys and positions, as in the file.
        section: The section that the last key belongs to, if it belongs to one.
        options: The branches of the union that the error is about as a whole, else empty.
        branch: The one of `options` that pydantic tried.
    """

    path: tuple[str | int, ...]
    section: type[BaseModel] | None
    options: tuple[object, ...] = ()
    branch: object = None

    @property
    def name(self) -> str:
        """The path as a person writes it: `simulation.sites.north.policy`."""
        return ".".join(str(part) for part in self.path)


def _locate(loc: Sequence[str | int], root: type[BaseModel]) -> _Place:
    place = _Place((), None)
    annotation: object = root
    for part in loc:
        options = _options(annotation)
        if len(options) > 1:
            annotation = _branch(options, str(part))
            place = _Place(place.path, place.section, options, annotation)
            continue
        annotation = options[0]
        place = _Place((*place.path, part), _section(annotation))
        annotation = _inside(annotation, str(part))
    return place


def _section(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _options(annotation: object) -> tuple[object, ...]:
    """The branches of a union without None, or the annotation alone."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in {Union, types.UnionType}:
        return tuple(a for a in get_args(annotation) if a is not types.NoneType) or (object,)
    return (annotation,)


def _branch(options: Sequence[object], tag: str) -> object:
    for option in options:
        if section := _section(option):
            kind = section.model_fields.get("kind")
            kinds = get_args(kind.annotation) if kind else ()
            if tag == section.__name__ or tag in kinds:
                return section
        elif get_origin(option) is Literal and tag.startswith("literal["):
            return option
    return object


def _inside(annotation: object, part: str) -> object:
    if section := _section(annotation):
        field = section.model_fields.get(part)
        return field.annotation if field else object
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        return arguments[1]
    return arguments[0] if get_origin(annotation) is tuple else object


def _explain_one(details: ErrorDetails, place: _Place) -> str | None:
    if _is_noise(details, place):
        return None
    must = (_word if place.options else _MUST.get(details["type"], _other))(details, place)
    name = f"{place.name}: " if place.path else ""
    return f"{name}{must}{_advice(details, place, must)}"


def _is_noise(details: ErrorDetails, place: _Place) -> bool:
    """Whether another error says the same better."""
    value, kind = details["input"], details["type"]
    if len(place.options) > 1 and kind == "model_type":
        return True  # Neither a section nor the word: said once, by the branch of the word.
    if len(place.options) > 1 and kind == "literal_error":
        return isinstance(value, dict)  # A section was meant: its own errors say more.
    # Pydantic counts good entries alone; the bad ones have errors of their own.
    return kind == "too_short" and len(value) >= details["ctx"]["min_length"]


def _word(details: ErrorDetails, place: _Place) -> str:
    """What a value that may be a word or a section must be."""
    if details["type"] != "literal_error":
        return _MUST.get(details["type"], _other)(details, place)
    words = [f"`{word}`" for word in get_args(place.branch)]
    for option in place.options:
        if section := _section(option):
            words.append(f"a section with {_join(section.model_fields)}")
    return f"must be {' or '.join(words)}, got {show(details['input'])}"


def show(value: object) -> str:
    """A setting's value for an error message: short, and never what lies below it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a section" if value else "an empty section"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def _join(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _unknown_key(details: ErrorDetails, place: _Place) -> str:
    key = str(place.path[-1])
    known = list(place.section.model_fields) if place.section else []
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return f"is not a setting here; did you mean `{near[0]}`?"
    return f"is not a setting here: remove it; there are {_join(known)}"


def _missing(details: ErrorDetails, place: _Place) -> str:
    return "is required"


def _choice(details: ErrorDetails, place: _Place) -> str:
    expected = str(details["ctx"]["expected"]).replace("'", "`")
    return f"must be {expected}, got {show(details['input'])}"


def _kind(details: ErrorDetails, place: _Place) -> str:
    expected = str(details["ctx"]["expected_tags"]).replace("'", "`")
    near = difflib.get_close_matches(
        str(details["ctx"]["tag"]), re.findall(r"`(\w+)`", expected), n=1, cutoff=0.5
    )
    hint = f"; did you mean `{near[0]}`?" if near else ""
    return f"its `kind` must be one of {expected}, got {show(details['ctx']['tag'])}{hint}"


def _no_kind(details: ErrorDetails, place: _Place) -> str:
    return "its `kind` is required: add it"


def _range(details: ErrorDetails, place: _Place) -> str:
    bounds: dict[str, object] = dict(details.get("ctx", {}))
    if place.section is not None and (field := place.section.model_fields.get(str(place.path[-1]))):
        for constraint in field.metadata:
            for sign in ("gt", "ge", "lt", "le"):
                if (bound := getattr(constraint, sign, None)) is not None:
                    bounds[sign] = bound
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    text = " and ".join(f"{signs[s]} {bounds[s]:,}" for s in signs if s in bounds)
    return f"must be a number {text}, got {show(details['input'])}"


def _length(details: ErrorDetails, place: _Place) -> str:
    context = details["ctx"]
    what = "characters" if details["type"].startswith("string") else "entries"
    bound = (
        f"at least {context['min_length']}"
        if "min_length" in context
        else f"at most {context['max_length']}"
    )
    return f"must have {bound} {what}, got {show(details['input'])}"


def _pattern(details: ErrorDetails, place: _Place) -> str:
    if "[0-9a-f]{64}" in str(details["ctx"]["pattern"]):
        return f"must be a SHA-256 of 64 hexadecimal digits, got {show(details['input'])}"
    return f"must match {details['ctx']['pattern']}, got {show(details['input'])}"


def _value(details: ErrorDetails, place: _Place) -> str:
    return details["msg"].removeprefix("Value error, ")


def _text(details: ErrorDetails, place: _Place) -> str:
    value = details["input"]
    advice = ": put it in quotes" if isinstance(value, bool | int | float) else ""
    return f"must be text, got {show(value)}{advice}"


def _other(details: ErrorDetails, place: _Place) -> str:
    return f"is not valid ({details['msg']}), got {show(details['input'])}"


def _type(words: str) -> Callable[[ErrorDetails, _Place], str]:
    return lambda details, place: f"must be {words}, got {show(details['input'])}"


_MUST: dict[str, Callable[[ErrorDetails, _Place], str]] = {
    "bool_type": _type("true or false"),
    "dict_type": _type("a section of settings"),
    "extra_forbidden": _unknown_key,
    "float_type": _type("a number"),
    "greater_than": _range,
    "greater_than_equal": _range,
    "int_from_float": _type("a whole number"),
    "int_type": _type("a whole number"),
    "json_invalid": lambda details, place: "is not valid JSON or not valid Unicode: mend it",
    "less_than": _range,
    "less_than_equal": _range,
    "list_type": _type("a list"),
    "literal_error": _choice,
    "missing": _missing,
    "model_attributes_type": _type("a section of settings"),
    "model_type": _type("a section of settings"),
    "path_type": _type("a path"),
    "string_pattern_mismatch": _pattern,
    "string_too_long": _length,
    "string_too_short": _length,
    "string_type": _text,
    "too_long": _length,
    "too_short": _length,
    "tuple_type": _type("a list"),
    "union_tag_invalid": _kind,
    "union_tag_not_found": _no_kind,
    "value_error": _value,
}


def _advice(details: ErrorDetails, place: _Place, must: str) -> str:
    """What to do, unless `must` says it already."""
    if place.section is None or ": " in must or must.endswith("?"):
        return ""
    name = str(place.path[-1])
    field = place.section.model_fields.get(name)
    if field is None:
        return ""
    if details["type"] != "missing" and not field.is_required():
        default = show(field.default) if isinstance(field.default, str | int | float) else ""
        return f": change it, or leave it out{default and f' to take {default}'}"
    meaning, *_ = re.split(r"\.(?:\s|$)", meanings(place.section).get(name, ""))
    verb = "add it" if details["type"] == "missing" else "change it"
    return f": {verb} ({meaning[:1].lower()}{meaning[1:]})" if meaning else f": {verb}"
