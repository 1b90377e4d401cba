"""What the rounds of a run have cost a site, as the server counts it.

The site's own ledger is what counts: it also knows other runs. The server's count is for
the screen and the report, and never below what this run has cost.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

from discreet.common.plan import Plan
from discreet.privacy.mechanism import planned_epsilon
from discreet.server.history import SiteRecord


@dataclass(slots=True)
class SpentEpsilon:
    """Epsilon after so many rounds of a plan; each number is composed once.

    Attributes:
        plan: The plan.
    """

    plan: Plan
    _known: dict[int, float] = field(default_factory=dict)

    def after(self, num_rounds: int) -> float:
        """Epsilon of that many rounds at the plan's delta; 0 for none.

        Raises:
            ValueError: If the plan has no privacy: no epsilon describes it.
        """
        if not self.plan.is_private:
            raise ValueError("a plan with privacy: none has no epsilon")
        if num_rounds == 0:
            return 0.0
        if num_rounds not in self._known:
            self._known[num_rounds] = planned_epsilon(self.plan, num_rounds)
        return self._known[num_rounds]

    def largest(self, sites: Iterable[SiteRecord]) -> float | None:
        """Largest epsilon of any site; None without privacy."""
        if not self.plan.is_private:
            return None
        return self.after(max((len(site.charged) for site in sites), default=0))

    def by_round(self, site: SiteRecord, last_round: int) -> tuple[float, ...]:
        """A site's epsilon after each round from the first; empty without privacy."""
        if not self.plan.is_private:
            return ()
        rounds = range(1, last_round + 1)
        return tuple(self.after(bisect_right(site.charged, number)) for number in rounds)
