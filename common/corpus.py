"""Reads a corpus: texts with their labels, streamed in constant memory.

Nothing is repaired or left out in silence: a row that cannot be used is counted with its
file, line and reason, never its text, or stops the program under `strict`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from discreet.common.errors import DataError
from discreet.common.files import CorpusFile, find_files
from discreet.common.formats import BrokenRow, Row, describe_fields, read_rows
from discreet.common.site import CorpusConfig

EMBEDDED_PREFIX: Final = "embedded:"
"""Begins the path of a corpus that is shipped with the program."""

MAX_EXAMPLES: Final = 20
"""How many bad rows a report names."""

_DATA_DIR: Final = Path(__file__).parent / "data"
_EMBEDDED_ENDING: Final = ".jsonl.gz"
# So many rows from the start without one that can be used, and the settings are wrong,
# not the rows: a person should not wait for the end of a terabyte to learn that.
_GIVE_UP_AFTER: Final = 10_000


@dataclass(frozen=True, slots=True)
class RawText:
    """One text as it was found, with whatever personal data is in it.

    Attributes:
        text: The text.
        label: Its class, as text; None without labels.
        owner: Whose text it is; None where no field says so.
        row: 0-based number among all rows of the corpus, good or bad.
    """

    text: str
    label: str | None
    owner: str | None
    row: int


@dataclass(frozen=True, slots=True)
class BadRow:
    """Where a row stands that cannot be used, and why.

    Attributes:
        file: The file.
        line: 1-based line on which the row begins; for Parquet, the row's 1-based number.
        reason: Why; holds nothing of the row.
    """

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(slots=True)
class CorpusReport:
    """What was read, counted while it is read.

    Attributes:
        num_files: Files opened.
        num_rows: Rows met, good or bad.
        num_kept: Rows given out.
        num_filtered: Rows left out by `where`.
        bad_rows: Reason -> number of rows.
        examples: The first bad rows, at most `MAX_EXAMPLES`.
    """

    num_files: int = 0
    num_rows: int = 0
    num_kept: int = 0
    num_filtered: int = 0
    bad_rows: dict[str, int] = field(default_factory=dict)
    examples: list[BadRow] = field(default_factory=list)

    @property
    def num_bad(self) -> int:
        """Rows that cannot be used."""
        return sum(self.bad_rows.values())

    def count_bad(self, bad: BadRow) -> None:
        """Count a bad row."""
        self.bad_rows[bad.reason] = self.bad_rows.get(bad.reason, 0) + 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(bad)


def embedded_names() -> list[str]:
    """Names of the corpora that are shipped with the program, sorted."""
    found = _DATA_DIR.glob(f"*{_EMBEDDED_ENDING}")
    return sorted(path.name.removesuffix(_EMBEDDED_ENDING) for path in found)


def embedded_path(name: str) -> Path:
    """The file of an embedded corpus.

    Raises:
        DataError: If there is no such corpus; names those there are.
    """
    if name not in embedded_names():
        raise DataError(
            f"{EMBEDDED_PREFIX}{name}: no such corpus is shipped; there are "
            f"{', '.join(embedded_names())}"
        )
    return _DATA_DIR / f"{name}{_EMBEDDED_ENDING}"


def read_corpus(config: CorpusConfig, report: CorpusReport | None = None) -> Iterator[RawText]:
    """Read the texts of a corpus one by one, files in sorted order.

    Memory is bounded whatever the size of the files. Files are looked for at
    once; the rest happens while the texts are taken.

    Args:
        config: Where the texts are and how to read them.
        report: Is filled while texts are taken; None counts for the messages alone.

    Returns:
        The texts, in file order.

    Raises:
        DataError: At once if no file is found; while reading if a file cannot be read, lacks a
            field, is binary or not known to be in some encoding; on the first bad row
            if `config.strict`; at the end if no row was kept.
    """
    files = _found(config)
    return _read(files, config, CorpusReport() if report is None else report)


def corpus_files(config: CorpusConfig) -> list[Path]:
    """The files of a corpus, in the order in which they are read.

    Raises:
        DataError: If there is none.
    """
    return [file.path for file in _found(config)]


def _found(config: CorpusConfig) -> list[CorpusFile]:
    if not config.path.startswith(EMBEDDED_PREFIX):
        return find_files(config)
    path = embedded_path(config.path.removeprefix(EMBEDDED_PREFIX))
    return [CorpusFile(path, "jsonl", ".gz")]


def _read(files: list[CorpusFile], config: CorpusConfig, report: CorpusReport) -> Iterator[RawText]:
    fields_seen: dict[str, None] = {}
    for file in files:
        report.num_files += 1
        for row in read_rows(file, config):
            text = _accept(row, config, report.num_rows)
            report.num_rows += 1
            if isinstance(text, RawText):
                report.num_kept += 1
                yield text
                continue
            if text is None:
                report.num_filtered += 1
            else:
                _count_bad(BadRow(str(file.path), row.line, text), config, report)
            if not report.num_kept and isinstance(row, Row) and len(fields_seen) < 100:
                fields_seen.update(dict.fromkeys(row.fields))
            if not report.num_kept and report.num_bad >= _GIVE_UP_AFTER:
                raise _nothing_kept(config, report, list(fields_seen))
    if not report.num_kept:
        raise _nothing_kept(config, report, list(fields_seen))


def _count_bad(bad: BadRow, config: CorpusConfig, report: CorpusReport) -> None:
    report.count_bad(bad)
    if config.strict:
        raise DataError(f"{bad} (strict: true stops at a bad row; false counts it)")


def _accept(row: Row | BrokenRow, config: CorpusConfig, number: int) -> RawText | str | None:
    """The text of a row, the reason why it is bad, or None if `where` leaves it out."""
    if isinstance(row, BrokenRow):
        return row.reason
    for name, wanted in config.where.items():
        # Compared as labels are written: 1 in JSON is the "1" of the settings.
        if _as_label(row.fields.get(name)) != wanted.strip():
            return None
    label = owner = None
    text = row.fields.get(config.text_field)
    if not isinstance(text, str):
        return _missing(row, config.text_field, "is not a string")
    if config.label_field is not None:
        label = _as_label(row.fields.get(config.label_field))
        if not label:
            return _missing(row, config.label_field, "is empty or not a string or whole number")
    if config.owner_field is not None:
        owner = _as_label(row.fields.get(config.owner_field))
        if not owner:
            return _missing(row, config.owner_field, "is empty or not a string or whole number")
    return RawText(text, label, owner, number)


def _missing(row: Row, name: str, otherwise: str) -> str:
    if name not in row.fields:
        return f"field {name!r} is missing"
    return f"field {name!r} {'is null' if row.fields[name] is None else otherwise}"


def _as_label(value: object) -> str | None:
    """A class or an owner as text: 1 and 1.0 are "1", true is "true"; None if it is neither."""
    match value:
        case str():
            return value.strip()
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        # Tables with a gap in a column of whole numbers hold them as floats.
        case float() if math.isfinite(value) and value.is_integer():
            return str(int(value))
        case _:
            return None


def _nothing_kept(config: CorpusConfig, report: CorpusReport, fields: list[str]) -> DataError:
    if not report.num_rows:
        return DataError(f"{config.path}: must hold at least one row, but is empty")
    if not report.num_bad:
        wanted = ", ".join(f"{name}: {value}" for name, value in config.where.items())
        return DataError(
            f"{config.path}: where leaves out all {report.num_rows:,} rows: no row has {{{wanted}}}"
            f"; {describe_fields(fields)}"
        )
    reason, num = max(report.bad_rows.items(), key=lambda item: item[1])
    seen = f"; {describe_fields(fields)}" if fields else ""
    return DataError(
        f"{config.path}: no row of {report.num_rows:,} can be used; {num:,} of them: {reason}, "
        f"first at {report.examples[0]}{seen}"
    )
