"""What a ledger records: a number of equal steps of DP-SGD.

An event holds public constants of the plan alone. It is made by the mechanism that
samples and adds the noise, so the accountant cannot be told another rate or noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from discreet.common.errors import InputError

if TYPE_CHECKING:
    from dp_accounting import DpEvent  # type: ignore[import-untyped]


@dataclass(frozen=True, slots=True, order=True)
class DpSgdEvent:
    """Equal steps of DP-SGD: Poisson sampling, clipping per example, Gaussian noise.

    The neighbouring relation is one example added or removed.

    Attributes:
        sample_rate: Chance that an example joins a step, > 0 and <= 1.
        noise_multiplier: Noise standard deviation / clipping norm, finite and > 0.
        num_steps: Number of steps, >= 1.

    Raises:
        InputError: If a number is out of its range or NaN.
    """

    sample_rate: float
    noise_multiplier: float
    num_steps: int

    def __post_init__(self) -> None:
        # Written so that NaN fails: every comparison with NaN is false.
        if not 0 < self.sample_rate <= 1:
            raise InputError(f"sample_rate must be > 0 and <= 1, got {self.sample_rate}")
        if not 0 < self.noise_multiplier < math.inf:
            raise InputError(
                f"noise_multiplier must be a finite number > 0, got {self.noise_multiplier}: "
                "without noise there is no privacy to account for"
            )
        if not isinstance(self.num_steps, int) or isinstance(self.num_steps, bool):
            raise InputError(f"num_steps must be a whole number, got {self.num_steps!r}")
        if self.num_steps < 1:
            raise InputError(f"num_steps must be >= 1, got {self.num_steps}")

    def to_dp_event(self) -> DpEvent:
        """The same event in the words of `dp-accounting`, for a second opinion.

        Returns:
            `SelfComposedDpEvent` of the Poisson-sampled Gaussian mechanism; of the plain
            Gaussian mechanism where every example joins every step.
        """
        import dp_accounting

        step = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        if self.sample_rate < 1:
            step = dp_accounting.PoissonSampledDpEvent(self.sample_rate, step)
        return dp_accounting.SelfComposedDpEvent(step, self.num_steps)
