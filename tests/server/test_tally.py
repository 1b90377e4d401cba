"""What a round costs a site, and when a site counts as stopped."""

from __future__ import annotations

import pytest

from discreet.common.errors import RefusalCode
from discreet.server.history import FailureCause, SiteRecord
from discreet.server.tally import RoundTally, with_round


def _after(tally: RoundTally, **site: object) -> SiteRecord:
    before = {"north": SiteRecord("north", **site)}  # type: ignore[arg-type]
    return with_round(before, tally, round_number=7)["north"]


@pytest.mark.parametrize("code", [RefusalCode.BUDGET, RefusalCode.POLICY, RefusalCode.PLAN])
def test_a_refusal_before_the_debit_costs_nothing(code: RefusalCode) -> None:
    site = _after(RoundTally(asked=["north"], refused={"north": code}))

    assert site.charged == ()
    assert (site.refused, site.refused_round) == (str(code), 7)


@pytest.mark.parametrize("code", [RefusalCode.DATA, RefusalCode.DIVERGED, RefusalCode.INTERNAL])
def test_a_refusal_that_may_follow_the_debit_costs_the_round(code: RefusalCode) -> None:
    assert _after(RoundTally(asked=["north"], refused={"north": code})).charged == (7,)


@pytest.mark.parametrize("cause", FailureCause)
def test_a_reply_that_was_left_out_costs_the_round(cause: FailureCause) -> None:
    site = _after(RoundTally(asked=["north"], failed={"north": cause}))

    assert (site.charged, site.rounds, site.refused) == ((7,), 0, None)


def test_the_first_refusal_is_the_one_that_is_told() -> None:
    tally = RoundTally(asked=["north"], refused={"north": RefusalCode.DATA})

    assert _after(tally, refused="data", refused_round=3).refused_round == 3


def test_a_site_that_came_back_has_not_stopped() -> None:
    site = _after(RoundTally(asked=["north"], taken=["north"]), refused="data", refused_round=3)

    assert (site.refused, site.refused_round, site.rounds) == (None, None, 1)


def test_a_site_that_was_not_asked_stays_as_it_was() -> None:
    assert _after(RoundTally(asked=["south"]), rounds=2, charged=(1, 2)).charged == (1, 2)


def test_silence_is_counted_once_the_round_is_over() -> None:
    tally = RoundTally(asked=["north", "south"], taken=["south"])

    tally.add_missing()

    assert tally.failed == {"north": FailureCause.NO_REPLY}
