"""The one object that owns the mechanism: sampling, clipping bound, divisor, noise, event.

Nothing can tell the accountant another rate or noise than what is sampled and added: the
event comes from the object that does both. All of it is a public constant of the plan; the
number of examples at a site enters nowhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING

from discreet.common.errors import ConfigError, InputError
from discreet.privacy.accountant import epsilon_of, solve_noise_multiplier
from discreet.privacy.events import DpSgdEvent

if TYPE_CHECKING:
    import torch

    from discreet.common.plan import Plan, PrivacyConfig
    from discreet.privacy.randomness import Randomness


@dataclass(frozen=True, slots=True)
class DpSgdMechanism:
    """One step of DP-SGD, as it is run and as it is accounted for.

    Attributes:
        sample_rate: Chance that an example joins a step, > 0 and <= 1.
        divisor: What the noisy sum is divided by, > 0. Public: the plan's expected batch size.
        clipping_norm: Largest L2 norm of one example's gradient, > 0.
        noise_multiplier: Noise standard deviation / `clipping_norm`, > 0.

    Raises:
        InputError: If a number is out of its range, infinite or NaN.
    """

    sample_rate: float
    divisor: float
    clipping_norm: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # Written so that NaN fails: every comparison with NaN is false.
            if not 0 < value < math.inf:
                raise InputError(f"{field.name} must be a finite number > 0, got {value}")
        if self.sample_rate > 1:
            raise InputError(f"sample_rate must be <= 1, got {self.sample_rate}")

    @property
    def noise_stddev(self) -> float:
        """Standard deviation of the noise on the sum of clipped gradients, in their units."""
        return self.noise_multiplier * self.clipping_norm

    def sample(self, num_examples: int, randomness: Randomness) -> torch.Tensor:
        """Choose the examples of one step (Poisson sampling).

        Returns:
            Indices below `num_examples`, ascending, int64 `[chosen]`. It may be empty: such a
            step adds its noise like any other.
        """
        return randomness.bernoulli(num_examples, self.sample_rate)

    def add_noise(self, total: torch.Tensor, randomness: Randomness) -> None:
        """Add this step's noise, in place, to a sum of clipped gradients (not yet divided)."""
        randomness.add_normal(total, self.noise_stddev)

    def event(self, num_steps: int) -> DpSgdEvent:
        """What `num_steps` steps are accounted as."""
        return DpSgdEvent(self.sample_rate, self.noise_multiplier, num_steps)


def mechanism_of(plan: Plan) -> DpSgdMechanism:
    """The mechanism that a plan asks for; solves for the noise where the plan leaves it open.

    Raises:
        ConfigError: If the plan is without privacy, if its noise does not reach its epsilon,
            or if no noise does.
    """
    if plan.privacy == "none":
        raise ConfigError("privacy: must be a section with an epsilon, got none: no mechanism")
    training = plan.training
    return DpSgdMechanism(
        sample_rate=training.sample_rate,
        divisor=training.expected_batch_size,
        clipping_norm=plan.privacy.clipping_norm,
        noise_multiplier=_noise_multiplier(plan.privacy, training.sample_rate, plan.total_steps),
    )


def planned_epsilon(plan: Plan, num_rounds: int) -> float:
    """Epsilon that a site has spent after `num_rounds` rounds of the plan, at its delta.

    Returns:
        0.0 before the first round; infinite after any round of a plan without privacy.

    Raises:
        InputError: If `num_rounds` is negative.
        ConfigError: As `mechanism_of`.
    """
    if num_rounds < 0:
        raise InputError(f"num_rounds must be >= 0, got {num_rounds}")
    if num_rounds == 0:
        return 0.0
    if plan.privacy == "none":
        return math.inf
    event = mechanism_of(plan).event(num_rounds * plan.training.steps_per_round)
    return epsilon_of([event], plan.privacy.delta)


@lru_cache(maxsize=256)
def _noise_multiplier(privacy: PrivacyConfig, sample_rate: float, num_steps: int) -> float:
    given = privacy.noise_multiplier
    if given is not None:
        reached = epsilon_of([DpSgdEvent(sample_rate, given, num_steps)], privacy.delta)
        if reached <= privacy.epsilon:
            return given
    try:
        least = solve_noise_multiplier(
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            sample_rate=sample_rate,
            num_steps=num_steps,
        )
    except InputError as error:
        raise ConfigError(f"privacy.epsilon: {error}") from error
    if given is not None:
        raise ConfigError(
            f"privacy.noise_multiplier: must be at least {_round_up(least)} for epsilon "
            f"{privacy.epsilon:g} at delta {privacy.delta:g} over {num_steps} steps, got "
            f"{given} (epsilon {reached:.3f}): raise it, or leave it out and it is solved for"
        )
    return least


def _round_up(value: float) -> float:
    """Four significant digits, not below `value`: what is shown must be enough."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return float(f"{math.ceil(value / unit) * unit:.4g}")
