"""The ledger of one data set: what its privacy has been spent on, for ever.

A debit is on disk before it returns, and it returns before the data is touched: a kill at
any point can only over-count. The ledger outlives rounds, runs and servers. It is append
only and its entries are chained by hashes (`discreet.privacy.chain`); who can write the file
can still replace the whole of it by an older copy, which only a head noted elsewhere shows.

SQLite holds it: write-ahead log, a flush to disk at each commit, and one writer at a time,
also between processes.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from discreet.common.errors import BudgetExceededError, InputError, LedgerError
from discreet.privacy.accountant import epsilon_of
from discreet.privacy.chain import COLUMNS, NO_HASH, EntryKind, LedgerEntry, check_chain, entry_of
from discreet.privacy.events import DpSgdEvent

_APPLICATION_ID = 0x64736372  # "dscr": tells our files from others' SQLite files
_VERSION = 1
_LOCK_SECONDS = 60.0
_SCHEMA = f"""
PRAGMA journal_mode = WAL;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
BEGIN;
CREATE TABLE entry (
    seq INTEGER PRIMARY KEY, previous TEXT NOT NULL, hash TEXT NOT NULL, kind TEXT NOT NULL,
    run TEXT NOT NULL, round INTEGER NOT NULL, sample_rate REAL, noise_multiplier REAL,
    num_steps INTEGER, made_at TEXT NOT NULL
) STRICT;
CREATE INDEX entry_round ON entry (run, round);
CREATE TRIGGER no_update BEFORE UPDATE ON entry BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON entry BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER no_replace BEFORE INSERT ON entry
WHEN NEW.seq IS NOT (SELECT coalesce(max(seq), -1) + 1 FROM entry)
BEGIN SELECT RAISE(ABORT, 'append only'); END;
"""
_INSERT = f"INSERT INTO entry ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608


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
        self._head = (-1, NO_HASH)
        self._spent: list[DpSgdEvent] = []
        self._is_private = True

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
        with _as_ledger_error(path):
            if not path.exists():
                _create(path, data_set)
            ledger = cls(_connect(path), path)
            try:
                ledger._check_file(data_set)
            except BaseException:
                ledger.close()
                raise
        return ledger

    def debit(
        self, event: DpSgdEvent, *, run: str, round_number: int, ceiling: Ceiling
    ) -> float:
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
            epsilon = self._epsilon([*self._spent, event], ceiling.delta)
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
            return self._epsilon(self._spent, delta)

    def entries(self) -> list[LedgerEntry]:
        """All debits, oldest first, each checked against its own hash.

        Raises:
            LedgerError: Names the first broken entry.
        """
        with self._reading():
            query = f"SELECT {COLUMNS} FROM entry WHERE seq > 0 ORDER BY seq"  # noqa: S608
            return [entry_of(row) for row in self._connection.execute(query)]

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
            check_chain(
                self._connection.execute(f"SELECT {COLUMNS} FROM entry ORDER BY seq")  # noqa: S608
            )

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
        marks = [
            self._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("application_id", "user_version")
        ]
        if marks != [_APPLICATION_ID, _VERSION]:
            raise LedgerError(f"{self._path} is no ledger of this version: name another file")
        rows = self._connection.execute(f"SELECT {COLUMNS} FROM entry WHERE seq = 0")  # noqa: S608
        check_chain(rows)
        query = "SELECT run FROM entry WHERE seq = 0"
        if self._connection.execute(query).fetchone()[0] != data_set:
            raise LedgerError(
                f"{self._path} is the ledger of another data set: each data set has its own"
            )
        self._refresh()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock, _as_ledger_error(self._path):
            self._refresh()
            yield

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction that keeps other writers out from the first read to the commit."""
        with self._lock, _as_ledger_error(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._refresh()
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # What was appended in memory may not be on disk: read it anew next time.
                self._head = (-1, NO_HASH)
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _refresh(self) -> None:
        """Read what was spent, unless it is as this object last saw it."""
        query = f"SELECT {COLUMNS} FROM entry ORDER BY seq DESC LIMIT 1"  # noqa: S608
        row = self._connection.execute(query).fetchone()
        if row is None:
            raise LedgerError(f"{self._path} has lost its entries: bring back a copy")
        if (row[0], row[2]) == self._head:
            return
        entry_of(row)
        kinds = "SELECT count(*) FROM entry WHERE kind = ?"
        num_open = self._connection.execute(kinds, (EntryKind.WITHOUT_PRIVACY,)).fetchone()[0]
        sums = self._connection.execute(
            "SELECT sample_rate, noise_multiplier, sum(num_steps) FROM entry WHERE kind = ? "
            "GROUP BY sample_rate, noise_multiplier ORDER BY min(seq)",
            (EntryKind.DP_SGD,),
        )
        self._spent = [DpSgdEvent(*group) for group in sums]
        self._is_private = num_open == 0
        self._head = (row[0], row[2])

    def _epsilon(self, events: list[DpSgdEvent], delta: float) -> float:
        return epsilon_of(events, delta) if self._is_private else math.inf

    def _append(
        self, kind: EntryKind, run: str, round_number: int, event: DpSgdEvent | None
    ) -> None:
        seq, previous = self._head
        entry = LedgerEntry(seq + 1, previous, kind, run, round_number, event, _now())
        self._connection.execute(_INSERT, entry.row(entry.hash))
        if event is None:
            self._is_private = False
        else:
            self._spent = _add(self._spent, event)
        self._head = (entry.seq, entry.hash)
