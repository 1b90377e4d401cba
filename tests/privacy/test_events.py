"""What an event may hold, and what it is in dp-accounting's words."""

from __future__ import annotations

import dp_accounting
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discreet.common.errors import InputError
from discreet.privacy.events import DpSgdEvent

NAN = float("nan")
INFINITY = float("inf")


@given(
    sample_rate=st.floats(0, 1, exclude_min=True),
    noise_multiplier=st.floats(0, exclude_min=True, allow_infinity=False),
    num_steps=st.integers(min_value=1),
)
def test_an_event_keeps_the_numbers_it_was_made_of(
    sample_rate: float, noise_multiplier: float, num_steps: int
) -> None:
    event = DpSgdEvent(sample_rate, noise_multiplier, num_steps)

    assert (event.sample_rate, event.noise_multiplier, event.num_steps) == (
        sample_rate,
        noise_multiplier,
        num_steps,
    )


@pytest.mark.parametrize("sample_rate", [0.0, -0.1, 1.0000001, NAN, INFINITY])
def test_a_sample_rate_outside_of_0_to_1_is_refused(sample_rate: float) -> None:
    with pytest.raises(InputError, match="sample_rate must be > 0 and <= 1"):
        DpSgdEvent(sample_rate, 1.0, 1)


@pytest.mark.parametrize("noise_multiplier", [0.0, -1.0, NAN, INFINITY])
def test_an_event_without_noise_is_refused(noise_multiplier: float) -> None:
    with pytest.raises(InputError, match="noise_multiplier must be a finite number > 0"):
        DpSgdEvent(0.1, noise_multiplier, 1)


@pytest.mark.parametrize("num_steps", [0, -5])
def test_less_than_one_step_is_refused(num_steps: int) -> None:
    with pytest.raises(InputError, match="num_steps must be >= 1"):
        DpSgdEvent(0.1, 1.0, num_steps)


@pytest.mark.parametrize("num_steps", [1.5, NAN, True, "3", None])
def test_a_number_of_steps_that_is_no_whole_number_is_refused(num_steps: object) -> None:
    with pytest.raises(InputError, match="num_steps must be a whole number"):
        DpSgdEvent(0.1, 1.0, num_steps)  # type: ignore[arg-type]


def test_an_event_cannot_be_changed() -> None:
    event = DpSgdEvent(0.1, 1.0, 1)

    with pytest.raises(AttributeError):
        event.num_steps = 2  # type: ignore[misc]


def test_a_sampled_event_is_the_poisson_sampled_gaussian_of_dp_accounting() -> None:
    event = DpSgdEvent(0.1, 2.0, 30).to_dp_event()

    assert event == dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(2.0)), 30
    )


def test_an_event_with_every_example_is_the_plain_gaussian_of_dp_accounting() -> None:
    event = DpSgdEvent(1.0, 2.0, 30).to_dp_event()

    assert event == dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(2.0), 30)
