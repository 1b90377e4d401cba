"""What came back in one round: who answered, who refused, what was left out and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from discreet.common.errors import RefusalCode
from discreet.server.history import FailureCause, SiteRecord

STOPS = frozenset({RefusalCode.BUDGET, RefusalCode.POLICY, RefusalCode.PLAN})
"""Refusals that no later round of the same plan can change, and that cost a site nothing: it
gives them before its ledger is debited. Such a site is not asked again."""


@dataclass(slots=True)
class RoundTally:
    """Counts of one round, filled reply by reply.

    Attributes:
        asked: Names of the sites that were sent the model.
        taken: Names of the sites whose update was added.
        refused: Site name -> the code it sent.
        failed: Site name -> why its reply was left out.
        bytes_up: Bytes of the tensors received.
        bytes_down: Bytes of the tensors sent.
    """

    asked: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    refused: dict[str, RefusalCode] = field(default_factory=dict)
    failed: dict[str, FailureCause] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0

    @property
    def lost(self) -> list[str]:
        """Sites whose answer did not come: asked again, they may give it."""
        lost = {FailureCause.ERROR, FailureCause.LOST, FailureCause.NO_REPLY}
        return [name for name, cause in self.failed.items() if cause in lost]

    def add_missing(self, cause: FailureCause | None = None) -> None:
        """Count every site that was asked and did not answer, as `no_reply` unless told."""
        answered = {*self.taken, *self.refused, *self.failed}
        for name in self.asked:
            if name not in answered:
                self.failed[name] = cause or FailureCause.NO_REPLY


def with_round(
    sites: Mapping[str, SiteRecord], tally: RoundTally, *, round_number: int
) -> dict[str, SiteRecord]:
    """The sites' records after one more round.

    A site is charged for a round unless it said that it refused before it touched its data:
    an update that was lost or left out cost its text as much as one that was taken. A round
    that is done again after a crash is charged once: a site that is asked for the same round
    of the same weights again sends the same update.
    """
    records = dict(sites)
    taken = set(tally.taken)
    for name in tally.asked:
        site = records.get(name, SiteRecord(name))
        code = tally.refused.get(name)
        if code not in STOPS:
            site = replace(site, charged=(*site.charged, round_number))
        if name in taken:
            # It came back, for example after a resume with a higher ceiling.
            site = replace(site, rounds=site.rounds + 1, refused=None, refused_round=None)
        elif code is not None and code != site.refused:
            site = replace(site, refused=str(code), refused_round=round_number)
        records[name] = site
    return records
