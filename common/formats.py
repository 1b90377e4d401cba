"""Reads rows from the text formats: JSON lines, CSV, TSV and plain text.

A row that cannot be read comes out as a `BrokenRow` with its line and the reason, in its place
among the others; what to do about it is the corpus's decision.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import orjson

from discreet.common.encoding import SAMPLE_BYTES, find_encoding
from discreet.common.errors import DataError
from discreet.common.files import CorpusFile, open_bytes
from discreet.common.lines import MAX_LINE_CHARS, BadLineError, Lines
from discreet.common.site import CorpusConfig


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file.

    Attributes:
        line: 1-based line it begins on; for Parquet, its 1-based number.
        fields: Field name -> value as the format has it.
    """

    line: int
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """One row that cannot be read.

    Attributes:
        line: 1-based line it begins on.
        reason: Why, without anything of the row.
    """

    line: int
    reason: str


def used_fields(config: CorpusConfig) -> list[str]:
    """The fields that the settings name, each once."""
    named = [config.text_field, config.label_field, config.owner_field, *config.where]
    return list(dict.fromkeys(name for name in named if name is not None))


def require_fields(names: Sequence[str], config: CorpusConfig, file_name: str) -> None:
    """Refuse a file whose columns lack a field that the settings name.

    Raises:
        DataError: Naming the field and the fields there are.
    """
    for field in used_fields(config):
        if field not in names:
            raise DataError(
                f"{file_name}: has no field {field!r} ({_setting(field, config)}): "
                f"{describe_fields(names)}"
            )


def describe_fields(names: Sequence[str]) -> str:
    """The fields there are, for a message.

    A file without a header line has its first row where names are expected, so what
    does not look like a name is counted and not shown.
    """
    shown = [name for name in names if len(name) <= 30 and name.isidentifier()]
    hidden = len(names) - len(shown)
    parts = [repr(name) for name in shown[:20]]
    if hidden or len(shown) > 20:
        num_more = hidden + max(0, len(shown) - 20)
        parts.append(f"{num_more} more that are not shown (is there a header line?)")
    return f"its fields are {', '.join(parts) or 'none'}"


def _setting(field: str, config: CorpusConfig) -> str:
    if field == config.text_field:
        return "text_field"
    if field == config.label_field:
        return "label_field; null reads text without labels"
    return "owner_field" if field == config.owner_field else "where"


def read_rows(file: CorpusFile, config: CorpusConfig) -> Iterator[Row | BrokenRow]:
    """Read a file row by row, in constant memory. Blank lines are no rows.

    Raises:
        DataError: If the file cannot be read, is binary, its encoding is not known for
            sure, or its columns lack a field that the settings name.
    """
    if file.format == "parquet":
        from discreet.common.parquet import read_parquet  # Arrow takes a quarter of a second

        yield from read_parquet(file, config)
        return
    name = str(file.path)
    with open_bytes(file) as stream:
        sample = stream.read(SAMPLE_BYTES)
    encoding = find_encoding(sample, name, config.encoding)
    # Opened anew, since a decompressed stream cannot be put back cheaply.
    with open_bytes(file) as stream:
        lines = Lines(stream, encoding)
        match file.format:
            case "jsonl":
                yield from _read_jsonl(lines)
            case "csv":
                yield from _read_table(lines, _csv_records(lines), config, name)
            case "tsv":
                yield from _read_table(lines, _tsv_records(lines), config, name)
            case _:
                _refuse_fields_of_plain_text(config, name)
                yield from _read_plain(lines, config.text_field)


def _content(lines: Lines) -> Iterator[tuple[int, str | BadLineError]]:
    """Lines that are not blank, with their numbers; bad ones as the error."""
    while True:
        try:
            line = next(lines)
        except StopIteration:
            return
        except BadLineError as error:
            yield lines.number, error
        else:
            if not line.isspace() and line:
                yield lines.number, line


def _read_jsonl(lines: Lines) -> Iterator[Row | BrokenRow]:
    for number, line in _content(lines):
        if isinstance(line, BadLineError):
            yield BrokenRow(number, str(line))
            continue
        try:
            content = orjson.loads(line)
        except orjson.JSONDecodeError:
            yield BrokenRow(number, "not valid JSON")
            continue
        if isinstance(content, dict):
            yield Row(number, content)
        else:
            yield BrokenRow(number, "not a JSON object")


def _refuse_fields_of_plain_text(config: CorpusConfig, name: str) -> None:
    if config.label_field is not None:
        raise DataError(
            f"{name}: label_field must be null for plain text, which has no labels, got "
            f"{config.label_field!r}: use .jsonl, .csv, .tsv or .parquet for text with labels"
        )
    if config.owner_field is not None or config.where:
        raise DataError(f"{name}: owner_field and where must be left out: plain text has no fields")


def _read_plain(lines: Lines, text_field: str) -> Iterator[Row | BrokenRow]:
    for number, line in _content(lines):
        if isinstance(line, BadLineError):
            yield BrokenRow(number, str(line))
        else:
            yield Row(number, {text_field: line.rstrip("\r\n")})


_Record = tuple[int, "list[str] | str"]
"""1-based line, and either the values or the reason why there are none."""


def _csv_records(lines: Lines) -> Iterator[_Record]:
    # The module's own bound of 131,072 would refuse long documents. The setting is the process's,
    # there is no other way; this bound also ends a quote that is never closed.
    csv.field_size_limit(MAX_LINE_CHARS)
    reader = csv.reader(lines, strict=True)
    while True:
        begin = lines.number + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except BadLineError as error:
            yield begin, str(error)
        except csv.Error:  # its message may hold a character of the row
            yield begin, "not valid CSV (a quote that is not closed or not doubled)"
        else:
            if values:
                yield begin, values


def _tsv_records(lines: Lines) -> Iterator[_Record]:
    """One record a line (IANA text/tab-separated-values: no tab or line end in a field).

    Spreadsheets and pandas wrap a field that holds a quote in quotes: a field wrapped whole, with
    every inner quote doubled, is unwrapped. A lone quote is a character like any other.
    """
    for number, line in _content(lines):
        if isinstance(line, BadLineError):
            yield number, str(line)
        else:
            yield number, [_unwrapped(value) for value in line.rstrip("\r\n").split("\t")]


def _unwrapped(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    inner = value[1:-1]
    return inner.replace('""', '"') if '"' not in inner.replace('""', "") else value


def _read_table(
    lines: Lines, records: Iterator[_Record], config: CorpusConfig, name: str
) -> Iterator[Row | BrokenRow]:
    header = _header(records, config, name)
    for number, values in records:
        if isinstance(values, str):
            yield BrokenRow(number, values)
        elif len(values) != len(header):
            more = "more" if len(values) > len(header) else "fewer"
            yield BrokenRow(number, f"{more} fields than the header")
        else:
            yield Row(number, dict(zip(header, values, strict=True)))


def _header(records: Iterator[_Record], config: CorpusConfig, name: str) -> list[str]:
    number, values = next(records, (0, []))
    if isinstance(values, str):
        raise DataError(f"{name}:{number}: the header line cannot be read: {values}")
    header = [value.strip() for value in values]
    if header:  # an empty file has no rows, which is said where rows are counted
        require_fields(header, config, name)
    for field in used_fields(config):
        if header.count(field) > 1:
            raise DataError(f"{name}: the header has the field {field!r} twice")
    return header
