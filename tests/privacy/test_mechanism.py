"""The mechanism is what the plan says, and what is accounted is what is run."""

from __future__ import annotations

import math

import pytest
import torch

from discreet.common.errors import ConfigError, InputError
from discreet.common.plan import Plan
from discreet.privacy.accountant import epsilon_of
from discreet.privacy.events import DpSgdEvent
from discreet.privacy.mechanism import DpSgdMechanism, mechanism_of, planned_epsilon
from discreet.privacy.randomness import InsecureRandomness, SecureRandomness


def plan_with(
    privacy: dict[str, object] | str | None = None, training: dict[str, object] | None = None
) -> Plan:
    return Plan.model_validate(
        {
            "name": "test",
            "task": {"labels": ["ham", "spam"]},
            "model": {"kind": "linear"},
            "privacy": privacy or {"unit": "example", "epsilon": 8.0, "delta": 1e-5},
            "training": {
                "rounds": 20,
                "steps_per_round": 3,
                "sample_rate": 0.064,
                "expected_batch_size": 28.0,
                "learning_rate": 1.0,
                **(training or {}),
            },
        }
    )


MECHANISM = DpSgdMechanism(sample_rate=0.25, divisor=32.0, clipping_norm=0.5, noise_multiplier=1.2)


def test_the_event_is_made_of_what_is_sampled_and_added() -> None:
    assert MECHANISM.event(7) == DpSgdEvent(0.25, 1.2, 7)
    assert MECHANISM.noise_stddev == 1.2 * 0.5


def test_the_sample_is_drawn_at_the_rate_that_is_accounted() -> None:
    chosen = MECHANISM.sample(1_000_000, SecureRandomness())

    # Binomial, 6.5 standard deviations.
    tolerance = 6.5 * math.sqrt(1_000_000 * 0.25 * 0.75)
    assert len(chosen) == pytest.approx(250_000, abs=tolerance)


def test_a_sample_of_nothing_is_empty() -> None:
    assert MECHANISM.sample(0, SecureRandomness()).shape == (0,)


def test_the_noise_on_the_sum_is_noise_multiplier_times_clipping_norm() -> None:
    total = torch.zeros(1000, 1000)

    MECHANISM.add_noise(total, SecureRandomness())

    # The standard deviation of a sample's: 1 / sqrt(2 n) of it; 6.5 of those.
    assert float(total.double().std()) == pytest.approx(0.6, rel=6.5 / math.sqrt(2e6))


def test_the_mechanism_draws_from_the_randomness_it_is_given() -> None:
    totals = [torch.zeros(10) for _ in range(2)]

    for total in totals:
        MECHANISM.add_noise(total, InsecureRandomness(5))

    assert torch.equal(totals[0], totals[1])


@pytest.mark.parametrize("name", ["sample_rate", "divisor", "clipping_norm", "noise_multiplier"])
@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_number_out_of_range_is_refused(name: str, bad: float) -> None:
    numbers = {"sample_rate": 0.1, "divisor": 1.0, "clipping_norm": 1.0, "noise_multiplier": 1.0}

    with pytest.raises(InputError, match=f"{name} must be a finite number > 0"):
        DpSgdMechanism(**{**numbers, name: bad})


def test_a_rate_above_1_is_refused() -> None:
    with pytest.raises(InputError, match="sample_rate must be <= 1"):
        DpSgdMechanism(sample_rate=1.1, divisor=1.0, clipping_norm=1.0, noise_multiplier=1.0)


def test_a_plan_without_noise_gets_the_noise_that_reaches_its_epsilon() -> None:
    plan = plan_with()

    mechanism = mechanism_of(plan)

    assert (mechanism.sample_rate, mechanism.divisor, mechanism.clipping_norm) == (0.064, 28.0, 1.0)
    assert 7.98 < epsilon_of([mechanism.event(60)], 1e-5) <= 8.0
    assert mechanism_of(plan) == mechanism


def test_a_plan_with_more_noise_than_needed_keeps_it() -> None:
    plan = plan_with({"unit": "example", "epsilon": 8.0, "delta": 1e-5, "noise_multiplier": 2.0})

    assert mechanism_of(plan).noise_multiplier == 2.0


def test_a_plan_with_too_little_noise_is_refused_and_told_how_much_is_enough() -> None:
    privacy = {"unit": "example", "epsilon": 8.0, "delta": 1e-5, "noise_multiplier": 0.5}

    with pytest.raises(ConfigError, match=r"privacy\.noise_multiplier: must be at least") as caught:
        mechanism_of(plan_with(privacy))

    enough = float(str(caught.value).split("at least ")[1].split()[0])
    assert "got 0.5" in str(caught.value)
    assert mechanism_of(plan_with({**privacy, "noise_multiplier": enough}))


def test_a_plan_whose_epsilon_no_noise_reaches_is_refused() -> None:
    privacy = {"unit": "example", "epsilon": 1e-9, "delta": 1e-12}

    with pytest.raises(ConfigError, match=r"privacy\.epsilon: no noise multiplier"):
        mechanism_of(plan_with(privacy, {"sample_rate": 1.0, "rounds": 100_000}))


def test_a_plan_without_privacy_has_no_mechanism() -> None:
    with pytest.raises(ConfigError, match="privacy: must be a section"):
        mechanism_of(plan_with("none"))


def test_the_planned_epsilon_grows_from_0_to_that_of_the_plan() -> None:
    plan = plan_with()

    planned = [planned_epsilon(plan, num_rounds) for num_rounds in range(21)]

    assert planned[0] == 0.0
    assert planned == sorted(planned)
    assert planned[20] == epsilon_of([mechanism_of(plan).event(60)], 1e-5) <= 8.0


def test_without_privacy_the_planned_epsilon_is_infinite_from_the_first_round() -> None:
    plan = plan_with("none")

    assert [planned_epsilon(plan, num_rounds) for num_rounds in (0, 1, 5)] == [
        0.0,
        math.inf,
        math.inf,
    ]


def test_a_negative_number_of_rounds_is_refused() -> None:
    with pytest.raises(InputError, match="num_rounds must be >= 0"):
        planned_epsilon(plan_with(), -1)
