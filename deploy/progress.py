"""What a run shows while it goes: a bar on a terminal, plain lines in a pipe, or JSON.

Each round is one line and is printed once. Wherever an epsilon stands, its unit stands
beside it; a run without privacy says so in every line that would show one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, TextIO

import orjson
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBar

from discreet.server.guarantee import rounded_up
from discreet.server.history import RoundRecord, RunSummary, SiteSummary

MAX_SITES_SHOWN = 20
"""The final table names so many sites; the report names all."""

Style = Literal["bar", "quiet", "json"]
"""How a run is shown."""

_NO_PRIVACY = "no privacy"
_SECONDS_BETWEEN_EVENTS = 1.0


class Progress(Protocol):
    """Told by a run how far it is. Phases follow each other and do not overlap."""

    def start(self, phase: str, total: int) -> None:
        """A phase begins: `scrubbing` of `total` texts, `training` of `total` rounds."""

    def advance(self, num: int = 1) -> None:
        """`num` more texts or rounds of the phase are done."""

    def finish(self) -> None:
        """The phase ends; without a phase, nothing happens."""

    def round_done(self, record: RoundRecord, total_rounds: int) -> None:
        """A round ended. Does not advance the phase."""

    def done(self, summary: RunSummary, report_path: Path) -> None:
        """The run ended."""


def make_progress(style: Style, *, is_private: bool, file: TextIO | None = None) -> Progress:
    """What shows a run in the style asked for.

    Args:
        style: `bar` draws one on a terminal and writes plain lines elsewhere.
        is_private: Whether the plan has privacy.
        file: Where to write; none takes standard output.
    """
    file = file or sys.stdout
    if style == "quiet":
        return QuietProgress(file)
    if style == "json":
        return JsonProgress(file)
    console = Console(file=file, highlight=False, markup=False, emoji=False)
    # Asked of the file: `console.is_terminal` is also true in a pipe where colour is forced.
    if file.isatty() and not console.is_dumb_terminal:
        return BarProgress(console, is_private=is_private)
    return LineProgress(file, is_private=is_private)


class QuietProgress:
    """Nothing but the path of the report at the end."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def start(self, phase: str, total: int) -> None:
        """Nothing."""

    def advance(self, num: int = 1) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""

    def round_done(self, record: RoundRecord, total_rounds: int) -> None:
        """Nothing."""

    def done(self, summary: RunSummary, report_path: Path) -> None:
        """The path of the report."""
        _write(self._file, str(report_path))


class LineProgress:
    """Plain lines, without a bar: for pipes and log files."""

    def __init__(self, file: TextIO, *, is_private: bool) -> None:
        self._file = file
        self._is_private = is_private

    def start(self, phase: str, total: int) -> None:
        """One line."""
        _write(self._file, f"{phase} ({total:,})")

    def advance(self, num: int = 1) -> None:
        """Nothing: a log file needs no bar."""

    def finish(self) -> None:
        """Nothing."""

    def round_done(self, record: RoundRecord, total_rounds: int) -> None:
        """One line."""
        _write(self._file, round_line(record, total_rounds, is_private=self._is_private))

    def done(self, summary: RunSummary, report_path: Path) -> None:
        """The table, the guarantee and the path of the report."""
        for line in summary_lines(summary, report_path):
            _write(self._file, line)


class BarProgress:
    """A bar with the time left; lines go above it."""

    def __init__(self, console: Console, *, is_private: bool) -> None:
        self._console = console
        self._is_private = is_private
        self._bar: RichBar | None = None
        self._task = TaskID(0)

    def start(self, phase: str, total: int) -> None:
        """Draw a bar."""
        self.finish()
        self._bar = RichBar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task(phase, total=total)
        self._bar.start()

    def advance(self, num: int = 1) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.advance(self._task, num)

    def finish(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def round_done(self, record: RoundRecord, total_rounds: int) -> None:
        """One line above the bar."""
        self._print(round_line(record, total_rounds, is_private=self._is_private))

    def done(self, summary: RunSummary, report_path: Path) -> None:
        """The table, the guarantee and the path of the report."""
        self.finish()
        for line in summary_lines(summary, report_path):
            self._print(line)

    def _print(self, line: str) -> None:
        # soft_wrap: the terminal folds long lines itself, so a path can be copied whole.
        self._console.print(line, soft_wrap=True)


class JsonProgress:
    """One JSON object a line: `start`, `progress`, `finish`, `round`, `done`."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._phase: str | None = None
        self._total = 0
        self._num_done = 0
        self._last_event_at = 0.0

    def start(self, phase: str, total: int) -> None:
        """One line."""
        self._phase, self._total, self._num_done = phase, total, 0
        self._last_event_at = time.monotonic()
        self._write("start", {"phase": phase, "total": total})

    def advance(self, num: int = 1) -> None:
        """At most one line a second."""
        self._num_done += num
        now = time.monotonic()
        if self._phase is not None and now - self._last_event_at >= _SECONDS_BETWEEN_EVENTS:
            self._last_event_at = now
            self._write("progress", self._counts())

    def finish(self) -> None:
        """One line, if a phase was going on."""
        if self._phase is not None:
            self._write("finish", self._counts())
            self._phase = None

    def round_done(self, record: RoundRecord, total_rounds: int) -> None:
        """One line with the whole record."""
        self._write("round", {"total_rounds": total_rounds, "record": record})

    def done(self, summary: RunSummary, report_path: Path) -> None:
        """One line; the rounds were told already and are not told again."""
        content = {
            "report": str(report_path),
            "is_finished": summary.is_finished,
            "guarantee": summary.guarantee,
            "sites": summary.sites,
            "final": summary.final,
        }
        self._write("done", content)

    def _counts(self) -> dict[str, object]:
        return {"phase": self._phase, "done": self._num_done, "total": self._total}

    def _write(self, event: str, content: Mapping[str, object]) -> None:
        _write(self._file, orjson.dumps({"event": event, **content}).decode())


def round_line(record: RoundRecord, total_rounds: int, *, is_private: bool) -> str:
    """One round in one line: round, sites, accuracy, largest epsilon with its unit, seconds."""
    width = len(str(total_rounds))
    accuracy = "not measured" if record.accuracy is None else f"{record.accuracy:.4f}"
    epsilon = f"epsilon {_number(record.epsilon_max)} (unit example)" if is_private else _NO_PRIVACY
    parts = [
        f"round {record.round:>{width}}/{total_rounds}",
        f"sites {record.sites}/{record.sites_asked}",
        f"accuracy {accuracy}",
        epsilon,
        f"{record.seconds:.2f} s",
    ]
    lost = len(record.refused) + len(record.failed)
    if lost:
        parts.append(f"{len(record.refused)} refused, {len(record.failed)} failed")
    return "  ".join(parts)


def summary_lines(summary: RunSummary, report_path: Path) -> list[str]:
    """The end of a run: sites, final metrics, the guarantee with its unit, the report."""
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in summary.final.items())
    end = "finished" if summary.is_finished else "not finished"
    return [
        "",
        *_site_table(summary.sites),
        "",
        f"{end} after {len(summary.rounds)} rounds  {metrics or 'not measured'}",
        guarantee_line(summary),
        f"report   {report_path}",
    ]


def guarantee_line(summary: RunSummary) -> str:
    """The guarantee in one line: epsilon, delta, unit and relation; or that there is none."""
    guarantee = summary.guarantee
    if guarantee.epsilon is None or guarantee.delta is None:
        return "privacy  none: nothing bounds what the model gives away about a text"
    return (
        f"privacy  epsilon {_number(guarantee.epsilon)} at delta {guarantee.delta:g}, "
        f"unit {guarantee.unit}, {guarantee.relation}; the report states it whole"
    )


def _site_table(sites: Sequence[SiteSummary]) -> list[str]:
    # Those who spent most or stopped come first: they are what a reader looks for.
    ranked = sorted(sites, key=lambda s: (s.refused is None, -(s.epsilon or 0.0), s.name))
    rows = [("site", "epsilon of ceiling", "rounds", "stopped")]
    rows += [_site_row(site) for site in ranked[:MAX_SITES_SHOWN]]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    left_out = len(ranked) - MAX_SITES_SHOWN
    return lines if left_out <= 0 else [*lines, f"and {left_out:,} more: see the report"]


def _site_row(site: SiteSummary) -> tuple[str, str, str, str]:
    spent = _NO_PRIVACY
    if site.epsilon is not None:
        ceiling = "" if site.ceiling is None else f" of {_number(site.ceiling)}"
        spent = f"{_number(site.epsilon)}{ceiling}"
    stopped = f"{site.refused} in round {site.refused_round}" if site.refused else ""
    return site.name, spent, str(site.rounds), stopped


def _number(value: float | None) -> str:
    # Up, never down: no screen shows less than was spent.
    return "unknown" if value is None else f"{rounded_up(value, 2):.2f}"


def _write(file: TextIO, line: str) -> None:
    # Flushed, because whoever reads the pipe wants to see the round when it ends.
    file.write(f"{line}\n")
    file.flush()
