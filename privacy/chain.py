"""The entries of a ledger and the hashes that chain them.

Each entry's hash covers its whole content and the hash before it, so a change anywhere
changes every hash after it. Entry 0 holds the name of the data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import orjson

from discreet.common.errors import InputError, LedgerError
from discreet.privacy.events import DpSgdEvent

COLUMNS = "seq, previous, hash, kind, run, round, sample_rate, noise_multiplier, num_steps, made_at"

Row = tuple[int, str, str, str, str, int, float | None, float | None, int | None, str]
"""An entry as it is stored: the values of `COLUMNS`."""

Head = tuple[int, str]
"""Number and hash of the last entry of a chain."""

NO_HEAD: Head = (-1, "0" * 64)
"""What stands before entry 0."""


class EntryKind(StrEnum):
    """What an entry records."""

    DATA_SET = "data-set"
    DP_SGD = "dp-sgd"
    WITHOUT_PRIVACY = "without-privacy"


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One line of a ledger.

    Attributes:
        seq: Its number; 0 is the entry that names the data set.
        previous: Hash of the entry before, 64 hexadecimal digits.
        hash: SHA-256 over everything else as a JSON array, in the order of `COLUMNS`.
        kind: What it records.
        run: The run that was debited; in entry 0 the data set.
        round_number: The round of that run; 0 in entry 0.
        event: What was debited; none in entry 0 and for a round without privacy.
        made_at: When, UTC to the second, ISO 8601. Stays on this machine.
    """

    seq: int
    previous: str
    hash: str
    kind: EntryKind
    run: str
    round_number: int
    event: DpSgdEvent | None
    made_at: str


def row_of(entry: LedgerEntry) -> Row:
    """The stored form of an entry; its hash is computed, whatever the entry says."""
    # As floats: the same numbers must come back from the file, and be hashed the same.
    rate = None if entry.event is None else float(entry.event.sample_rate)
    noise = None if entry.event is None else float(entry.event.noise_multiplier)
    num_steps = None if entry.event is None else entry.event.num_steps
    place = (entry.kind.value, entry.run, entry.round_number)
    row: Row = (entry.seq, entry.previous, "", *place, rate, noise, num_steps, entry.made_at)
    return (*row[:2], hash_of(row), *row[3:])


def hash_of(row: Row) -> str:
    """What the hash of a row must be, in hexadecimal."""
    # JSON writes a float in the fewest digits that read back to the very same float.
    return hashlib.sha256(orjson.dumps(row[:2] + row[3:])).hexdigest()


def follow(rows: Iterable[Row], head: Head) -> Iterator[Row]:
    """Walk the rows after `head`, checking each before it is handed on.

    Raises:
        LedgerError: Names the first entry that is changed, missing or out of place.
    """
    seq, last_hash = head
    for row in rows:
        seq += 1
        if row[0] != seq or row[1] != last_hash or row[2] != hash_of(row):
            raise LedgerError(
                f"ledger entry {seq} is broken: it is missing, changed or out of place. Find "
                "out who changed the file, and bring back a copy that verifies"
            )
        last_hash = row[2]
        yield row


def entry_of(row: Row) -> LedgerEntry:
    """A checked row, readable.

    Raises:
        LedgerError: If it holds what this program never writes, though its hash is right.
    """
    seq, previous, own_hash, kind, run, round_number, rate, noise, num_steps, made_at = row
    event = None
    try:
        if EntryKind(kind) is EntryKind.DP_SGD:
            # None fails here: an event that is not there must not count as free.
            event = DpSgdEvent(rate, noise, num_steps)  # type: ignore[arg-type]
    except (InputError, TypeError, ValueError) as error:
        raise LedgerError(f"ledger entry {seq} is broken: {error}") from error
    return LedgerEntry(seq, previous, own_hash, EntryKind(kind), run, round_number, event, made_at)
