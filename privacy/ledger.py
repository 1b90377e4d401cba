"""The ledger of one data set: what its privacy has been spent on, for ever.

A debit is on disk before it returns, and it returns before the data is touched: a kill at
any point can only over-count. The ledger outlives rounds, runs and servers. It is append
only and its entries are chained by hashes (`discreet.privacy.chain`); who can write the file
can still replace the whole of it by an older copy, which only a head noted elsewhere shows.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from discreet.common.errors import BudgetExceededError, InputError, LedgerError
from discreet.privacy.accountant import epsilon_of
from discreet.privacy.chain import (
    COLUMNS,
    NO_HEAD,
    EntryKind,
    Head,
    LedgerEntry,
    Row,
    entry_of,
    follow,
    row_of,
)
from discreet.privacy.events import DpSgdEvent
from discreet.privacy.ledger_file import (
    INSERT,
    as_ledger_error,
    connect,
    create_ledger_file,
    is_ledger_file,
)


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What a site allows to be spent on one data set, over all runs.

    Attributes:
        epsilon: The most that may be spent, finite and > 0.
        delta: The delta at which it is counted, > 0 and < 1.

    Raises:
        InputError: If a number is out of its range or NaN.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        # Written so that NaN fails: every comparison with NaN is false.
        if not 0 < self.epsilon < math.inf:
            raise InputError(f"ceiling epsilon must be a finite number > 0, got {self.epsilon}")
        if not 0 < self.delta < 1:
            raise InputError(f"ceiling delta must be > 0 and < 1, got {self.delta}")


class Ledger:
    """An open ledger; make one with `Ledger.open`. Close it, or use it in a `with`.

    Safe to use from several threads; several processes may have the same file open.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._lock = threading.Lock()
        self._forget()

    @classmethod
    def open(cls, path: Path, *, data_set: str) -> Self:
        """Open the ledger of a data set; make it, readable by its owner alone, if there is none.

        Args:
            path: The file. Its folder is made too.
            data_set: Names the data set; a ledger of another one is refused.

        Raises:
            LedgerError: If the file is no ledger, broken, cut off, of another data set, or
                cannot be read and written.
        """
        with as_ledger_error(path):
            if not path.exists():
                first = _entry_after(NO_HEAD, (EntryKind.DATA_SET, data_set, 0), None)
                create_ledger_file(path, row_of(first))
            ledger = cls(connect(path), path)
            try:
                ledger._check_file(data_set)
            except BaseException:
                ledger.close()
                raise
        return ledger

    def debit(self, event: DpSgdEvent, *, run: str, round_number: int, ceiling: Ceiling) -> float:
        """Record an event before it happens, unless it would pass the ceiling.

        On disk when this returns: train only then.

        Args:
            event: What the round will do to the data.
            run: The run's name.
            round_number: The round within it.
            ceiling: What may be spent in all.

        Returns:
            Epsilon spent so far at the ceiling's delta, this event included.

        Raises:
            BudgetExceededError: If the ceiling would be passed; nothing is written.
            LedgerError: If the ledger is broken or cannot be written.
        """
        with self._writing():
            epsilon = self._epsilon(ceiling.delta, event)
            # Written so that NaN fails: what cannot be compared is over the ceiling.
            if not epsilon <= ceiling.epsilon:
                raise BudgetExceededError(
                    f"this round would bring epsilon to {epsilon:.3f} at delta "
                    f"{ceiling.delta:g}; the ceiling of this data set is {ceiling.epsilon:g}. "
                    "The site may raise policy.epsilon; what was spent is never given back"
                )
            self._append(EntryKind.DP_SGD, run, round_number, event)
        return epsilon

    def debit_without_privacy(self, run: str, round_number: int) -> None:
        """Record a round without privacy: epsilon is infinite from now on.

        Raises:
            LedgerError: If the ledger is broken or cannot be written.
        """
        with self._writing():
            self._append(EntryKind.WITHOUT_PRIVACY, run, round_number, None)

    def epsilon(self, delta: float) -> float:
        """Epsilon spent so far at `delta`; infinite after a round without privacy.

        Raises:
            InputError: If `delta` is out of range.
            LedgerError: If the ledger is broken.
        """
        with self._reading():
            return self._epsilon(delta)

    def entries(self) -> list[LedgerEntry]:
        """All debits, oldest first.

        Raises:
            LedgerError: Names the first broken entry.
        """
        with self._reading():
            return [entry_of(row) for row in follow(self._rows(0), NO_HEAD)][1:]

    def num_rounds(self, run: str) -> int:
        """Number of different rounds of `run` that were debited."""
        query = "SELECT count(DISTINCT round) FROM entry WHERE run = ? AND seq > 0"
        with self._reading():
            return int(self._connection.execute(query, (run,)).fetchone()[0])

    def has_entry(self, run: str, round_number: int) -> bool:
        """Whether this round of `run` was debited."""
        query = "SELECT 1 FROM entry WHERE run = ? AND round = ? AND seq > 0 LIMIT 1"
        with self._reading():
            return self._connection.execute(query, (run, round_number)).fetchone() is not None

    @property
    def head(self) -> str:
        """Hash of the last entry: stands for the whole ledger, 64 hexadecimal digits."""
        with self._reading():
            return self._head[1]

    def verify(self) -> None:
        """Check every entry and every link.

        Raises:
            LedgerError: Names the first broken entry.
        """
        with self._reading():
            self._forget()
            self._refresh()

    def close(self) -> None:
        """Close the file. Closing twice is fine."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check_file(self, data_set: str) -> None:
        if not is_ledger_file(self._connection):
            raise LedgerError(f"{self._path} is no ledger of this version: name another file")
        self._refresh()
        query = "SELECT kind, run FROM entry WHERE seq = 0"
        if self._connection.execute(query).fetchone() != (EntryKind.DATA_SET, data_set):
            raise LedgerError(
                f"{self._path} is the ledger of another data set: each data set has its own"
            )

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock, as_ledger_error(self._path):
            self._refresh()
            yield

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction that keeps other writers out from the first read to the commit."""
        with self._lock, as_ledger_error(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._refresh()
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # What was added in memory may not be on disk: read it all anew next time.
                self._forget()
                self._connection.rollback()
                raise

    def _forget(self) -> None:
        self._head: Head = NO_HEAD
        self._spent: Counter[tuple[float, float]] = Counter()
        self._is_private = True

    def _refresh(self) -> None:
        """Read and check what was appended since this object last looked."""
        rows = self._rows(max(self._head[0], 0))
        known = NO_HEAD
        if self._head != NO_HEAD:
            known = next(((row[0], row[2]) for row in rows), NO_HEAD)
        if known != self._head:
            raise LedgerError(f"{self._path} has lost entries: bring back a copy that verifies")
        for row in follow(rows, known):
            self._take(row)
        if self._head == NO_HEAD:
            raise LedgerError(f"{self._path} has no entries: bring back a copy that verifies")

    def _rows(self, first: int) -> Iterator[Row]:
        query = f"SELECT {COLUMNS} FROM entry WHERE seq >= ? ORDER BY seq"  # noqa: S608
        return iter(self._connection.execute(query, (first,)))

    def _take(self, row: Row) -> None:
        """Count a row that is in the chain."""
        event = entry_of(row).event
        if event is not None:
            self._spent[event.sample_rate, event.noise_multiplier] += event.num_steps
        self._is_private &= row[3] != EntryKind.WITHOUT_PRIVACY
        self._head = (row[0], row[2])

    def _epsilon(self, delta: float, *more: DpSgdEvent) -> float:
        events = [DpSgdEvent(*key, num_steps) for key, num_steps in self._spent.items()]
        epsilon = epsilon_of([*events, *more], delta)
        return epsilon if self._is_private else math.inf

    def _append(
        self, kind: EntryKind, run: str, round_number: int, event: DpSgdEvent | None
    ) -> None:
        row = row_of(_entry_after(self._head, (kind, run, round_number), event))
        self._connection.execute(INSERT, row)
        self._take(row)


def _entry_after(
    head: Head, place: tuple[EntryKind, str, int], event: DpSgdEvent | None
) -> LedgerEntry:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return LedgerEntry(head[0] + 1, head[1], "", *place, event, now)
