"""The entries of a ledger and the hashes that chain them.

Each entry's hash covers its whole content and the hash before it, so a change anywhere
changes every hash after it. Entry 0 holds the name of the data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import orjson

from discreet.common.errors import InputError, LedgerError
from discreet.privacy.events import DpSgdEvent

NO_HASH = "0" * 64
"""What stands before entry 0."""

Row = tuple[int, str, str, str, str, int, float | None, float | None, int | None, str]
"""An entry as it is stored: the columns of `COLUMNS`."""

COLUMNS = "seq, previous, hash, kind, run, round, sample_rate, noise_multiplier, num_steps, made_at"


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
        kind: What it records.
        run: The run that was debited; in entry 0 the data set.
        round_number: The round of that run; 0 in entry 0.
        event: What was debited; none in entry 0 and for a round without privacy.
        made_at: When, UTC to the second, ISO 8601. Stays on this machine.
    """

    seq: int
    previous: str
    kind: EntryKind
    run: str
    round_number: int
    event: DpSgdEvent | None
    made_at: str

    @property
    def hash(self) -> str:
        """SHA-256 over the content as a JSON array, in hexadecimal."""
        row = self.row("")
        return hashlib.sha256(orjson.dumps(row[:2] + row[3:])).hexdigest()

    def row(self, own_hash: str) -> Row:
        """The entry as it is stored, with `own_hash` in its place."""
        # JSON writes a float in the fewest digits that read back to the very same float.
        numbers = (None, None, None)
        if self.event is not None:
            event = self.event
            numbers = (event.sample_rate, event.noise_multiplier, event.num_steps)
        place = (self.kind.value, self.run, self.round_number)
        return (self.seq, self.previous, own_hash, *place, *numbers, self.made_at)


def entry_of(row: Row) -> LedgerEntry:
    """Read a stored entry and check it against its own hash.

    Raises:
        LedgerError: If it was changed or damaged; names its number.
    """
    seq, previous, own_hash, kind, run, round_number, rate, noise, num_steps, made_at = row
    broken = LedgerError(
        f"ledger entry {seq} is broken: it does not match its hash. Find out who changed the "
        "file; bring back a copy that verifies"
    )
    try:
        private = EntryKind(kind) is EntryKind.DP_SGD
        event = DpSgdEvent(rate, noise, num_steps) if private else None  # type: ignore[arg-type]
    except (InputError, TypeError, ValueError):
        raise broken from None
    entry = LedgerEntry(seq, previous, EntryKind(kind), run, round_number, event, made_at)
    if entry.row(own_hash) != row or entry.hash != own_hash:
        raise broken
    return entry


def check_chain(rows: Iterable[Row]) -> None:
    """Walk a ledger from entry 0 on.

    Raises:
        LedgerError: Names the first entry that is changed, missing or out of place.
    """
    head = NO_HASH
    for place, row in enumerate(rows):
        if row[0] != place or row[1] != head:
            raise LedgerError(
                f"ledger entry {place} is broken: it does not follow the entry before. Find out "
                "who changed the file; bring back a copy that verifies"
            )
        entry_of(row)
        head = row[2]
    if head == NO_HASH:
        raise LedgerError("ledger entry 0 is missing: the file is empty or was cut off")
