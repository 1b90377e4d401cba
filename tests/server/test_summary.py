"""What a run's end says of each site, with and without its ledger, and of the guarantee."""

from __future__ import annotations

import math

import pytest
from sample_run import NORTH, SOUTH, plan_of, state_of, summary_of

from discreet.privacy.mechanism import planned_epsilon
from discreet.server.guarantee import NO_PRIVACY, guarantee_of, rounded_up
from discreet.server.history import SiteBudget, SiteRecord, SiteSummary
from discreet.server.spent import SpentEpsilon
from discreet.server.summary import library_versions, summarise


def test_without_ledgers_epsilon_is_that_of_the_rounds_of_this_run() -> None:
    plan = plan_of()

    summary = summarise(plan, state_of(plan))

    spent = {site.name: site.epsilon for site in summary.sites}
    assert spent == {NORTH: planned_epsilon(plan, 4), SOUTH: planned_epsilon(plan, 2)}
    assert all(site.ceiling is None and site.delta == 1e-5 for site in summary.sites)


def test_a_ledger_overrules_the_servers_count() -> None:
    sites = {site.name: site for site in summary_of().sites}

    assert (sites[NORTH].epsilon, sites[NORTH].ceiling, sites[NORTH].delta) == (5.5, 8.0, 1e-5)
    assert (sites[SOUTH].epsilon, sites[SOUTH].ceiling, sites[SOUTH].delta) == (2.5, 3.0, 1e-6)


def test_epsilon_by_round_stands_still_for_who_stopped() -> None:
    plan = plan_of()
    one, two = planned_epsilon(plan, 1), planned_epsilon(plan, 2)

    south = next(site for site in summary_of().sites if site.name == SOUTH)

    assert south.epsilon_by_round == (one, two, two, two)
    assert (south.refused, south.refused_round, south.rounds) == ("budget", 3, 2)


def test_a_site_that_was_never_asked_is_told_of_where_its_ledger_is_known() -> None:
    plan = plan_of()

    summary = summarise(plan, state_of(plan), budgets={"west": SiteBudget(0.0, 1.0, 1e-5)})

    west = next(site for site in summary.sites if site.name == "west")
    assert (west.rounds, west.epsilon, west.epsilon_by_round) == (0, 0.0, (0.0,) * 4)


def test_a_run_without_privacy_has_no_epsilon_anywhere() -> None:
    summary = summary_of(is_private=False)

    assert all(site.epsilon is None and site.epsilon_by_round == () for site in summary.sites)
    assert summary.guarantee.epsilon is None
    assert summary.guarantee.unit == "none"
    assert summary.guarantee.statement == NO_PRIVACY
    with pytest.raises(ValueError, match="no epsilon"):
        SpentEpsilon(plan_of(is_private=False)).after(1)


def test_largest_epsilon_is_that_of_the_site_with_most_rounds() -> None:
    plan = plan_of()
    sites = [SiteRecord("a", charged=(1, 3)), SiteRecord("b", charged=(2,)), SiteRecord("c")]

    assert SpentEpsilon(plan).largest(sites) == planned_epsilon(plan, 2)
    assert SpentEpsilon(plan).largest([]) == 0.0


def test_a_stopped_run_is_not_finished() -> None:
    plan = plan_of(rounds=9)

    assert not summarise(plan, state_of(plan)).is_finished
    assert summary_of().is_finished


def test_the_guarantee_is_said_whole() -> None:
    guarantee = summary_of().guarantee

    # The larger of the sites' epsilons and of their deltas: together they hold for both.
    assert (guarantee.epsilon, guarantee.delta) == (5.5, 1e-5)
    assert guarantee.planned_epsilon == planned_epsilon(plan_of(), 4)
    for part in (
        "epsilon 5.500 at delta 1e-05, per example",
        "add or remove one example",
        "against the server, against the other sites, against whoever gets the model",
        "all rounds of this run",
        "Poisson sampling",
    ):
        assert part in guarantee.statement
    missing = " ".join(guarantee.not_protected)
    for part in ("several examples", "labels", "took part", "how long", "Scrubbing", "repeats"):
        assert part in missing


def test_steps_over_all_examples_do_not_speak_of_sampling() -> None:
    plan = plan_of()
    whole = plan.training.model_copy(update={"sample_rate": 1.0})

    statement = guarantee_of(plan.model_copy(update={"training": whole}), (), 1.0).statement

    assert "takes every example, clips" in statement


def test_declared_sizes_are_named_among_what_is_not_protected() -> None:
    plan = plan_of()
    federation = plan.federation.model_copy(update={"weights": "declared"})

    guarantee = guarantee_of(plan.model_copy(update={"federation": federation}), (), 1.0)

    assert any("number of examples" in item for item in guarantee.not_protected)


def test_no_site_has_spent_nothing() -> None:
    assert guarantee_of(plan_of(), (), 1.0).epsilon == 0.0


def test_a_ledger_that_counts_a_run_without_privacy_is_infinite() -> None:
    site = SiteSummary("north", math.inf, 8.0, 1e-5, 1)

    assert "epsilon inf" in guarantee_of(plan_of(), (site,), 1.0).statement


@pytest.mark.parametrize(
    ("epsilon", "shown"), [(7.9951, 7.996), (8.0, 8.0), (0.0, 0.0), (0.00001, 0.001)]
)
def test_epsilon_is_rounded_up(epsilon: float, shown: float) -> None:
    assert rounded_up(epsilon) == shown


def test_versions_name_the_libraries_that_matter() -> None:
    assert {"python", "discreet", "torch", "opacus", "dp-accounting"} <= library_versions().keys()


def test_a_server_that_sees_no_ledger_says_that_ledgers_may_have_spent_more() -> None:
    plan = plan_of()
    budgets = {name: SiteBudget(0.0, 1.0, 1e-5) for name in state_of(plan).sites}
    seen = summarise(plan, state_of(plan), budgets=budgets)
    unseen = summarise(plan, state_of(plan))

    assert any("as the server counts it" in item for item in unseen.guarantee.not_protected)
    assert not any("as the server counts it" in item for item in seen.guarantee.not_protected)
