"""Epsilon against dp-accounting, closed forms and Opacus; the solver against its promise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant
from scipy.stats import norm

from discreet.common.errors import InputError
from discreet.privacy import accountant
from discreet.privacy.accountant import epsilon_of, solve_noise_multiplier
from discreet.privacy.events import DpSgdEvent

DELTA = 1e-5

HISTORIES = {
    "small site": [DpSgdEvent(0.064, 1.0, 500)],
    "one step": [DpSgdEvent(0.01, 1.0, 1)],
    "large corpus": [DpSgdEvent(0.001, 0.6, 2000)],
    "large batch": [DpSgdEvent(0.3, 2.0, 60)],
    "much noise": [DpSgdEvent(0.01, 8.0, 1000)],
    "little noise": [DpSgdEvent(0.1, 0.4, 7)],
    "two rates": [DpSgdEvent(0.064, 1.0, 30), DpSgdEvent(0.05, 1.0, 20)],
    "different grids": [DpSgdEvent(0.3, 2.0, 30), DpSgdEvent(0.01, 8.0, 300)],
    "sampled and not": [DpSgdEvent(1.0, 20.0, 10), DpSgdEvent(0.1, 3.0, 50)],
}


@pytest.mark.parametrize("events", HISTORIES.values(), ids=HISTORIES.keys())
def test_epsilon_agrees_with_dp_accounting_and_is_never_below(events: list[DpSgdEvent]) -> None:
    reference = PLDAccountant()
    for event in events:
        reference.compose(event.to_dp_event())
    expected = reference.get_epsilon(DELTA)

    epsilon = epsilon_of(events, DELTA)

    assert expected - 1e-8 <= epsilon <= expected + 1e-3


@pytest.mark.parametrize("events", HISTORIES.values(), ids=HISTORIES.keys())
def test_epsilon_is_tighter_than_renyi_accounting(events: list[DpSgdEvent]) -> None:
    # A second library: Opacus. Its Renyi bound is looser, always.
    renyi = RDPAccountant()
    renyi.history = [(e.noise_multiplier, e.sample_rate, e.num_steps) for e in events]
    alphas = [1 + x / 10 for x in range(1, 100)] + list(range(11, 400))

    assert epsilon_of(events, DELTA) <= renyi.get_epsilon(delta=DELTA, alphas=alphas)


@pytest.mark.parametrize(
    ("sample_rate", "noise", "num_steps", "delta", "published"),
    [
        # Opacus' PRV accountant (Gopi et al. 2021) and dp-accounting, to three digits.
        (0.064, 1.0, 5000, 1e-5, 40.84),
        (0.1, 3.0, 1000, 1e-6, 5.458),
        (1.0, 20.0, 200, 1e-5, 2.943),
        (0.2, 0.5, 200, 1e-5, 88.17),
    ],
)
def test_epsilon_is_what_other_accountants_measured(
    sample_rate: float, noise: float, num_steps: int, delta: float, published: float
) -> None:
    epsilon = epsilon_of([DpSgdEvent(sample_rate, noise, num_steps)], delta)

    assert epsilon == pytest.approx(published, rel=1e-3)


@given(noise=st.floats(0.2, 200), num_steps=st.integers(1, 1000), log_delta=st.floats(-10, -0.1))
@settings(max_examples=100, deadline=None)
def test_with_every_example_epsilon_is_that_of_the_gaussian_mechanism(
    noise: float, num_steps: int, log_delta: float
) -> None:
    delta, mu = 10**log_delta, math.sqrt(num_steps) / noise

    epsilon = epsilon_of([DpSgdEvent(1.0, noise, num_steps)], delta)

    # Balle & Wang (2018), theorem 8, with scipy's normal distribution.
    def delta_of(candidate: float) -> float:
        upper = norm.logcdf(mu / 2 - candidate / mu)
        return float(math.exp(upper) - math.exp(candidate + norm.logcdf(-mu / 2 - candidate / mu)))

    assert delta_of(epsilon) <= delta * (1 + 1e-9)
    assert epsilon < 1e-9 or delta_of(epsilon * (1 - 1e-4) - 1e-9) > delta


def test_with_every_example_epsilon_agrees_with_the_loss_distribution() -> None:
    event = DpSgdEvent(1.0, 4.0, 10)
    upper_bound = PLDAccountant().compose(event.to_dp_event()).get_epsilon(DELTA)

    assert epsilon_of([event], DELTA) == pytest.approx(upper_bound, abs=1e-3)


def test_no_events_spend_nothing() -> None:
    assert epsilon_of([], DELTA) == 0.0


def test_equal_rates_and_noises_are_one_entry_in_any_order() -> None:
    first, second = DpSgdEvent(0.1, 1.0, 3), DpSgdEvent(0.2, 2.0, 5)
    merged = [DpSgdEvent(0.1, 1.0, 6), DpSgdEvent(0.2, 2.0, 10)]

    assert epsilon_of([first, second] * 2, DELTA) == epsilon_of(merged, DELTA)
    assert epsilon_of(merged[::-1], DELTA) == pytest.approx(epsilon_of(merged, DELTA), rel=1e-9)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, float("nan"), float("inf")])
def test_a_delta_outside_of_0_to_1_is_refused(delta: float) -> None:
    with pytest.raises(InputError, match="delta must be > 0 and < 1"):
        epsilon_of([], delta)
    with pytest.raises(InputError, match="delta must be > 0 and < 1"):
        solve_noise_multiplier(epsilon=1, delta=delta, sample_rate=0.1, num_steps=1)


# A pool, so that distributions are built once; each entry needs another grid, or none.
POOL = [(0.064, 1.0), (0.3, 2.0), (0.01, 8.0), (1.0, 3.0), (0.5, 0.05)]
EVENTS = st.builds(
    lambda pair, num_steps: DpSgdEvent(*pair, num_steps),
    st.sampled_from(POOL),
    st.sampled_from([1, 2, 7]),
)


@given(events=st.lists(EVENTS, min_size=1, max_size=3), more=EVENTS)
@settings(max_examples=25, deadline=None)
def test_more_events_never_lower_epsilon(events: list[DpSgdEvent], more: DpSgdEvent) -> None:
    before, after = epsilon_of(events, DELTA), epsilon_of([*events, more], DELTA)

    assert after >= before * (1 - 1e-9)


def test_each_round_costs_a_little_more() -> None:
    spent = [epsilon_of([DpSgdEvent(0.064, 1.0, num)], DELTA) for num in range(1, 61)]

    assert all(later > earlier for earlier, later in itertools.pairwise(spent))


def test_a_thousand_sites_with_one_history_cost_one_composition() -> None:
    events = [DpSgdEvent(0.064, 1.0, 20), DpSgdEvent(0.3, 2.0, 20)]
    epsilon_of(events, DELTA)
    before = accountant._compose.cache_info().misses

    epsilons = {epsilon_of(events, DELTA) for _ in range(1000)}

    assert len(epsilons) == 1
    assert accountant._compose.cache_info().misses == before


@pytest.mark.parametrize("noise", [0.2, 0.12, 0.09, 0.01, 1e-6])
def test_noise_that_protects_next_to_nothing_is_accounted_from_above(noise: float) -> None:
    event = DpSgdEvent(0.5, noise, 300)

    epsilon = epsilon_of([event], DELTA)

    # Sampling cannot hurt: without it, epsilon is an upper bound and known exactly.
    unsampled = epsilon_of([DpSgdEvent(1.0, noise, 300)], DELTA)
    assert 500 <= epsilon <= unsampled
    assert epsilon >= epsilon_of([DpSgdEvent(0.5, noise * 1.1, 300)], DELTA)


def test_epsilon_is_infinite_where_noise_is_lost_in_rounding() -> None:
    assert epsilon_of([DpSgdEvent(0.1, 1e-200, 1)], DELTA) == math.inf


def test_a_delta_too_small_for_the_distributions_gets_the_bound_without_sampling() -> None:
    epsilon = epsilon_of([DpSgdEvent(0.1, 1.0, 10)], 1e-17)

    assert epsilon == epsilon_of([DpSgdEvent(1.0, 1.0, 10)], 1e-17)
    assert epsilon > epsilon_of([DpSgdEvent(0.1, 1.0, 10)], 1e-10)


@pytest.mark.parametrize(
    ("epsilon", "sample_rate", "num_steps"),
    [(8, 0.064, 60), (3, 0.064, 500), (1, 0.1, 30), (1, 0.25, 40), (0.1, 0.05, 100), (50, 0.2, 20)],
)
def test_the_solved_noise_is_the_least_that_stays_within_epsilon(
    epsilon: float, sample_rate: float, num_steps: int
) -> None:
    noise = solve_noise_multiplier(
        epsilon=epsilon, delta=DELTA, sample_rate=sample_rate, num_steps=num_steps
    )

    less = noise / (1 + 1.001e-3)
    assert epsilon_of([DpSgdEvent(sample_rate, noise, num_steps)], DELTA) <= epsilon
    assert epsilon_of([DpSgdEvent(sample_rate, less, num_steps)], DELTA) > epsilon


def test_the_solved_noise_is_that_of_dp_accounting() -> None:
    # dp_accounting.calibrate_dp_mechanism with its PLD accountant gives 2.171 here.
    noise = solve_noise_multiplier(epsilon=3.0, delta=1e-5, sample_rate=0.064, num_steps=500)

    assert noise == pytest.approx(2.171, rel=1.5e-3)


@given(epsilon=st.floats(0.05, 20), num_steps=st.integers(1, 5000))
@settings(max_examples=30, deadline=None)
def test_with_every_example_the_solved_noise_is_the_closed_form(
    epsilon: float, num_steps: int
) -> None:
    noise = solve_noise_multiplier(
        epsilon=epsilon, delta=DELTA, sample_rate=1.0, num_steps=num_steps
    )

    mu = math.sqrt(num_steps) / noise
    upper = norm.cdf(mu / 2 - epsilon / mu)
    reached = float(upper - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu))
    assert reached <= DELTA * (1 + 1e-9)
    assert reached >= DELTA * 0.95


def test_solving_takes_few_distributions() -> None:
    accountant._solve.cache_clear()
    accountant._epsilon_of.cache_clear()

    solve_noise_multiplier(epsilon=8, delta=DELTA, sample_rate=0.0643, num_steps=61)

    assert accountant._epsilon_of.cache_info().misses <= 8


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf")])
def test_an_epsilon_that_cannot_be_aimed_at_is_refused(epsilon: float) -> None:
    with pytest.raises(InputError, match="epsilon must be a finite number > 0"):
        solve_noise_multiplier(epsilon=epsilon, delta=DELTA, sample_rate=0.1, num_steps=1)


def test_an_epsilon_that_no_noise_reaches_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(InputError, match="ask for a larger epsilon or delta"):
        solve_noise_multiplier(epsilon=1e-9, delta=1e-12, sample_rate=1.0, num_steps=10**6)


@pytest.mark.parametrize("guess", [1e-3, 5.0, 1e5])
@pytest.mark.parametrize(
    "spent",
    [
        lambda noise: 10.0 if noise < 5.3 else 1.0,
        lambda noise: math.inf if noise < 5.3 else 0.0,
        lambda noise: 2 * (5.3 / noise) ** 0.01,
        lambda noise: 2 * math.exp(5.3 - noise) if noise > 5.3 else 2.0001,
    ],
    ids=["step", "wall", "flat", "cliff"],
)
def test_the_search_ends_on_any_falling_curve(
    spent: Callable[[float], float], guess: float
) -> None:
    calls = []

    def counted(noise: float) -> float:
        calls.append(noise)
        return spent(noise)

    noise = accountant._least_noise(counted, 2.0, guess)

    assert 5.3 <= noise <= 5.3 * 1.001
    assert len(calls) < 150
