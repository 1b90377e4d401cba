"""A ledger's file: SQLite with a write-ahead log, flushed to disk at each commit.

Triggers refuse to change or take away an entry. They guard against mistakes; against people,
the hashes do.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from discreet.common.errors import LedgerError
from discreet.privacy.chain import COLUMNS, Row

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
"""  # noqa: S608
INSERT = f"INSERT INTO entry ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
"""Appends a row."""


def connect(path: Path) -> sqlite3.Connection:
    """Open an existing file; each commit is flushed to disk before it returns."""
    # Never makes a file: an empty one would hide that a ledger is gone. Transactions are ours.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=_LOCK_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def create_ledger_file(path: Path, first: Row) -> None:
    """Make a ledger whose first row is `first`, unless another process makes one meanwhile.

    It is made beside `path` and linked there whole, so that a kill leaves no half of one.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        # SQLite gives its side files the mode of this one.
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with contextlib.closing(connect(draft)) as connection:
            connection.executescript(_SCHEMA)
            connection.execute(INSERT, first)
            connection.execute("COMMIT")
        # Fails where another process was first: then its ledger is the ledger.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    _flush_folder(path.parent)


def is_ledger_file(connection: sqlite3.Connection) -> bool:
    """Whether an open file is a ledger of this version."""
    names = ("application_id", "user_version")
    marks = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
    return marks == [_APPLICATION_ID, _VERSION]


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def as_ledger_error(path: Path) -> Iterator[None]:
    """Turn what SQLite and the operating system raise into a `LedgerError`."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise LedgerError(
            f"{path} cannot be used as a ledger ({error}): it must be a ledger's file, whole, "
            "that this user may read and write. Nothing is trained without it"
        ) from error
