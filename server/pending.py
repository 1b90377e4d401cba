"""The round under way, on disk before its first message leaves: who may have paid for it.

A site pays for a round when it is asked, whatever becomes of its answer. So that a server
which is killed, or which asks a second time, never counts less than the sites paid.

    RUN_DIR/checkpoint/asked.json
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from discreet.server.checkpoint import put_in_place
from discreet.server.history import SiteRecord, read_json, to_json
from discreet.server.tally import STOPS, RoundTally


@dataclass(slots=True)
class PendingRound:
    """Who was asked in a round, over all attempts at it.

    Attributes:
        round: Number of the round.
        asked: Names of the sites that were asked, each once.
        paid: Names of the sites whose earlier attempts were in vain, one for each attempt.
    """

    round: int
    asked: list[str] = field(default_factory=list)
    paid: list[str] = field(default_factory=list)


def load_pending(run_dir: Path, round_number: int) -> PendingRound:
    """What is known of a round: empty unless it was begun before.

    Raises:
        DataError: If the file is damaged.
    """
    path = _path(run_dir)
    if path.is_file():
        pending = read_json(PendingRound, path.read_bytes(), path)
        if pending.round == round_number:
            return pending
    return PendingRound(round_number)


def save_pending(run_dir: Path, pending: PendingRound) -> None:
    """Put it on disk; after this the sites may be asked."""
    path = _path(run_dir)
    aside = path.with_suffix(".part")
    aside.write_bytes(to_json(pending))
    put_in_place(aside, path)


def add_attempt(pending: PendingRound, tally: RoundTally) -> None:
    """Note what an attempt in vain has cost: each site that may train anew has paid once more.

    A site whose update came sends the same one again, and one that refused before it touched
    its text has paid nothing.
    """
    free = {*tally.taken, *(name for name, code in tally.refused.items() if code in STOPS)}
    pending.paid += [name for name in tally.asked if name not in free]


def with_pending(
    sites: Mapping[str, SiteRecord], pending: PendingRound, tally: RoundTally
) -> dict[str, SiteRecord]:
    """The sites' records with what earlier attempts at a round have cost.

    Args:
        sites: The records after the attempt that counted.
        pending: The round.
        tally: The attempt that counted; it has charged those that it asked.
    """
    known = {*tally.asked, *pending.paid}
    extra = pending.paid + [name for name in pending.asked if name not in known]
    records = dict(sites)
    for name in extra:
        site = records.get(name, SiteRecord(name))
        charged = tuple(sorted((*site.charged, pending.round)))
        records[name] = replace(site, charged=charged)
    return records


def _path(run_dir: Path) -> Path:
    return run_dir / "checkpoint" / "asked.json"
