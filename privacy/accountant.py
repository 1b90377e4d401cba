"""From events to epsilon: the privacy loss distribution (PLD) of dp-accounting.

What comes out is an upper bound, rounded up at every step, for one example added or removed:

- The loss is kept on a grid, and dp-accounting rounds it so that the bound can only grow. The
  grid is coarser where that is cheap and costs less than 1e-3 of epsilon; each grid is made
  of points of dp-accounting's own, so our epsilon is never below what it gives by default.
- More events never give a lower epsilon, though a finer grid would: where events need
  different grids, those with coarse ones are also bounded alone, and the larger bound counts.
- With every example in every step the answer is known exactly, and no grid is used.
- Noise below 0.1 of the clipping norm, or an epsilon above 500, protects next to nothing and
  needs huge grids: it is bounded as if every example joined every step, which is never lower.

Sites with one history and one delta cost one composition: results are cached in the process.

Source:
    Doroshenko et al. (2022), https://arxiv.org/abs/2207.04380 (connect the dots).
    Balle & Wang (2018), https://arxiv.org/abs/1805.06530 (the exact Gaussian mechanism).
    Dong et al. (2019), https://arxiv.org/abs/1905.02383 (the solver's first guess).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from discreet.common.errors import InputError
from discreet.privacy.events import DpSgdEvent

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import (  # type: ignore[import-untyped]
        PrivacyLossDistribution,
    )

# Multiples of dp-accounting's default, 1e-4.
_GRIDS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
_LEAST_NOISE = 0.1
_MOST_NOISE = 1e7
_MOST_EPSILON = 500.0
_RELATIVE_TOLERANCE = 1e-3
_ROUNDING = 1e-15


def epsilon_of(events: Sequence[DpSgdEvent], delta: float) -> float:
    """The epsilon that `events` have spent together, at `delta`.

    Args:
        events: Any number, in any order; equal rates and noises are merged.
        delta: The chance that the bound fails, > 0 and < 1.

    Returns:
        An upper bound, >= 0; 0.0 for no events. It ignores sampling where `delta` is too
        small for the distributions (about 1e-15 times the steps).

    Raises:
        InputError: If `delta` is out of range or NaN.
    """
    _check_delta(delta)
    return _epsilon_of(_merge(events), delta)


def solve_noise_multiplier(
    *, epsilon: float, delta: float, sample_rate: float, num_steps: int
) -> float:
    """The least noise with which `num_steps` steps stay within `epsilon` at `delta`.

    Args:
        epsilon: What must not be passed, finite and > 0.
        delta: The chance that the bound fails, > 0 and < 1.
        sample_rate: Chance that an example joins a step, > 0 and <= 1.
        num_steps: Steps of all rounds together, >= 1.

    Returns:
        A noise multiplier for which `epsilon_of` is at most `epsilon`; with 0.1 % less noise
        it would be more.

    Raises:
        InputError: If a number is out of range or NaN, or no noise below 1e7 is enough.
    """
    if not 0 < epsilon < math.inf:
        raise InputError(f"epsilon must be a finite number > 0, got {epsilon}")
    _check_delta(delta)
    return _solve(epsilon, delta, sample_rate, num_steps)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise InputError(f"delta must be > 0 and < 1, got {delta}: 1e-5 is usual")


@lru_cache(maxsize=256)
def _solve(epsilon: float, delta: float, sample_rate: float, num_steps: int) -> float:
    def spent(noise: float) -> float:
        return epsilon_of([DpSgdEvent(sample_rate, noise, num_steps)], delta)

    # As if the loss of many steps were normal: close, and on the low side as often as not.
    step_mu = _largest(lambda mu: _gaussian_epsilon(mu, delta) <= epsilon) / math.sqrt(num_steps)
    ratio = max(step_mu / sample_rate, 1e-9)
    guess = 1 / ratio if sample_rate == 1 else 1 / math.sqrt(math.log1p(ratio * ratio))
    return _least_noise(spent, epsilon, guess)


def _least_noise(spent: Callable[[float], float], epsilon: float, guess: float) -> float:
    """Search for the least noise with `spent(noise) <= epsilon`, from a good guess.

    Few calls matter, each builds a distribution. Epsilon is nearly a power of the noise, so
    the next try is where the line through the last two tries, in logarithms, meets `epsilon`.
    """
    low, high = 0.0, math.inf
    noise, slope, last = guess, -1.2, (math.nan, math.nan)
    num_tries = 0
    while high > low * (1 + _RELATIVE_TOLERANCE):
        if noise > _MOST_NOISE:
            raise InputError(
                f"no noise multiplier up to {_MOST_NOISE:g} keeps epsilon within {epsilon}: "
                "ask for a larger epsilon or delta, or for fewer steps"
            )
        value = spent(noise)
        low, high = (low, noise) if value <= epsilon else (noise, high)
        num_tries += 1
        # Far off, epsilon may be 0 or infinite; there is no line through that.
        point = (math.log(noise), math.log(value / epsilon) if 0 < value < math.inf else math.nan)
        measured = (point[1] - last[1]) / (point[0] - last[0])
        slope = measured if measured < -0.1 else slope
        estimate = math.exp(point[0] - point[1] / slope)
        # Lines may creep up from one side: every sixth try halves the bracket instead.
        noise = _inside(low, high, math.nan if num_tries % 6 == 0 else estimate)
        last = point
    return high


def _inside(low: float, high: float, estimate: float) -> float:
    """The next try: a little beyond the estimate, so that the bracket closes from both sides."""
    nudge = 1 + 0.8 * _RELATIVE_TOLERANCE
    if estimate >= high / math.sqrt(nudge):
        estimate = high / nudge
    elif estimate <= low * math.sqrt(nudge):
        estimate = low * nudge
    else:
        estimate *= math.sqrt(nudge)
    bottom, top = low or high / 4, high if high < math.inf else low * 4
    return estimate if low < estimate < high else math.sqrt(bottom * top)


_Entry = tuple[float, float, int]


def _merge(events: Iterable[DpSgdEvent]) -> tuple[_Entry, ...]:
    """Rate, noise and steps, one entry for each rate and noise, in order of first appearance."""
    steps: dict[tuple[float, float], int] = {}
    for event in events:
        key = (event.sample_rate, event.noise_multiplier)
        steps[key] = steps.get(key, 0) + event.num_steps
    return tuple((rate, noise, num) for (rate, noise), num in steps.items())


@lru_cache(maxsize=8192)
def _epsilon_of(entries: tuple[_Entry, ...], delta: float) -> float:
    if not entries:
        return 0.0
    # Exact where every example joins every step; else what sampling can only lower.
    unsampled = math.sqrt(sum(num / noise / noise for _, noise, num in entries))
    if all(rate == 1 for rate, _, _ in entries) or any(z < _LEAST_NOISE for _, z, _ in entries):
        return _gaussian_epsilon(unsampled, delta)
    epsilon = _epsilon_on_grids(entries, delta)
    return epsilon if epsilon <= _MOST_EPSILON else _gaussian_epsilon(unsampled, delta)


def _epsilon_on_grids(entries: tuple[_Entry, ...], delta: float) -> float:
    import numpy

    grids = {entry: _grid(entry[0], entry[1]) for entry in entries}
    epsilon = 0.0
    # dp-accounting divides by exp(-epsilon), which a float does not hold beyond 700.
    with numpy.errstate(over="ignore"):
        for grid in set(grids.values()):
            loss = _compose(tuple(e for e in entries if grids[e] >= grid), grid)
            epsilon = max(epsilon, float(loss.get_epsilon_for_delta(delta)))
    return epsilon


def _grid(rate: float, noise: float) -> float:
    """The coarsest grid that costs less than 1e-3 of epsilon, or of its thousandth.

    A grid adds at most grid^2 / 6 to the variance of a step's loss, which is about mu^2. The
    first limit holds that to 1e-3 while epsilon is below 10, whatever the number of steps;
    the second one while there are at most 10,000 steps. Either will do.
    """
    mu = rate * math.sqrt(math.expm1(noise**-2))
    limit = max(0.03 * mu, math.sqrt(2.5e-5 * mu))
    return max((grid for grid in _GRIDS if grid <= limit), default=_GRIDS[0])


@lru_cache(maxsize=64)
def _compose(entries: tuple[_Entry, ...], grid: float) -> PrivacyLossDistribution:
    """The distribution of all entries; that of all but the last is likely cached."""
    last = _steps(*entries[-1], grid)
    return _compose(entries[:-1], grid).compose(last) if len(entries) > 1 else last


@lru_cache(maxsize=64)
def _steps(rate: float, noise: float, num: int, grid: float) -> PrivacyLossDistribution:
    """The distribution of `num` equal steps.

    Doubling, and adding the lowest power of two to what the other powers give, makes the same
    sums whatever was asked before. Round after round, the others are already cached.
    """
    if rate == 1 or num == 1:
        from dp_accounting.pld import (  # type: ignore[import-untyped]
            privacy_loss_distribution,
        )

        return privacy_loss_distribution.from_gaussian_mechanism(
            noise / math.sqrt(num), value_discretization_interval=grid, sampling_prob=rate
        )
    lowest = num & -num
    if lowest == num:
        half = _steps(rate, noise, num // 2, grid)
        return half.compose(half)
    others = _steps(rate, noise, num - lowest, grid)
    return others.compose(_steps(rate, noise, lowest, grid))


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of the Gaussian mechanism with sensitivity / noise `mu`: exact, rounded up."""
    # Here the chance that the loss passes epsilon is already below delta (Chernoff).
    high = mu * mu / 2 + mu * math.sqrt(-2 * math.log(delta))
    if math.isinf(high):
        return math.inf
    return high - _largest(lambda down: _gaussian_delta(mu, high - down) <= delta, high)


def _gaussian_delta(mu: float, epsilon: float) -> float:
    """Delta of the Gaussian mechanism, rounded up (Balle & Wang 2018, theorem 8)."""
    from scipy.special import log_ndtr  # type: ignore[import-untyped]

    # In logarithms: exp(epsilon) overflows where the chance beside it is long zero.
    first = float(log_ndtr(mu / 2 - epsilon / mu))
    second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return math.exp(first) - math.exp(second) + _ROUNDING


def _largest(holds: Callable[[float], bool], high: float = 1e6) -> float:
    """The largest number in [0, `high`] for which `holds`; it holds for 0 and below that."""
    if holds(high):
        return high
    low = 0.0
    while (middle := (low + high) / 2) not in (low, high) and high - low > 1e-12 * high:
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
