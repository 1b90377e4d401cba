"""The mean of updates: what it is, what it costs, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from discreet.common.update import ClippedUpdate
from discreet.server.aggregate import StreamingMean


def _update(seed: int, dtype: torch.dtype = torch.float32) -> ClippedUpdate:
    generator = torch.Generator().manual_seed(seed)
    return ClippedUpdate(
        {
            "w": torch.randn(3, 4, generator=generator).to(dtype),
            "b": torch.randn(4, generator=generator).to(dtype),
        }
    )


@settings(deadline=None)
@given(num_updates=st.integers(1, 12), num_absent=st.integers(0, 5))
def test_mean_is_the_sum_over_the_fixed_divisor_also_when_sites_drop_out(
    num_updates: int, num_absent: int
) -> None:
    updates = [_update(seed) for seed in range(num_updates)]
    mean = StreamingMean(num_updates + num_absent)

    for update in updates:
        mean.add(update)
    result = mean.result()

    assert result is not None
    expected = torch.stack([u["w"].double() for u in updates]).sum(0) / (num_updates + num_absent)
    torch.testing.assert_close(result["w"].double(), expected, rtol=1e-5, atol=1e-6)
    assert mean.num_added == num_updates


@settings(deadline=None)
@given(order=st.permutations(range(6)))
def test_mean_depends_on_the_order_of_updates_by_rounding_only(order: list[int]) -> None:
    straight, shuffled = StreamingMean(6), StreamingMean(6)

    for seed in range(6):
        straight.add(_update(seed))
    for seed in order:
        shuffled.add(_update(seed))

    torch.testing.assert_close(straight.result(), shuffled.result(), rtol=1e-5, atol=1e-6)


def test_same_order_gives_the_same_bits() -> None:
    first, second = StreamingMean(7), StreamingMean(7)

    for seed in range(7):
        first.add(_update(seed))
        second.add(_update(seed))

    torch.testing.assert_close(first.result(), second.result(), rtol=0, atol=0)


@settings(deadline=None)
@given(weights=st.lists(st.integers(1, 10_000), min_size=1, max_size=8))
def test_without_a_divisor_the_mean_is_weighted(weights: list[int]) -> None:
    mean = StreamingMean(None)

    for seed, weight in enumerate(weights):
        mean.add(_update(seed), weight=float(weight))
    result = mean.result()

    assert result is not None
    total = sum(w * _update(seed)["b"].double() for seed, w in enumerate(weights))
    torch.testing.assert_close(result["b"].double(), total / sum(weights), rtol=1e-4, atol=1e-5)


def test_bfloat16_updates_are_summed_in_float32() -> None:
    # 256 + 1 is not a bfloat16: a sum kept in bfloat16 would stay at 256 for ever.
    mean = StreamingMean(1)
    mean.add(ClippedUpdate({"w": torch.tensor([256.0], dtype=torch.bfloat16)}))

    for _ in range(64):
        mean.add(ClippedUpdate({"w": torch.tensor([1.0], dtype=torch.bfloat16)}))
    result = mean.result()

    assert result is not None
    assert result["w"].dtype == torch.float32
    assert result["w"].item() == 320.0


def test_updates_are_left_as_they_are() -> None:
    update, kept = _update(1), _update(1)
    mean = StreamingMean(2)

    mean.add(update)
    mean.add(update, weight=3.0)
    mean.result()

    torch.testing.assert_close(dict(update), dict(kept), rtol=0, atol=0)


def test_sum_lives_in_the_memory_of_the_first_copy() -> None:
    mean = StreamingMean(3)
    mean.add(_update(0))
    assert mean._sum is not None
    addresses = {name: t.data_ptr() for name, t in mean._sum.items()}

    for seed in (1, 2):
        mean.add(_update(seed))
    result = mean.result()

    assert result is not None
    assert {name: t.data_ptr() for name, t in result.items()} == addresses


def test_nothing_added_gives_no_mean() -> None:
    assert StreamingMean(3).result() is None


def test_the_mean_can_be_asked_for_twice_but_takes_no_more_updates() -> None:
    mean = StreamingMean(2)
    mean.add(_update(0))

    first, second = mean.result(), mean.result()

    torch.testing.assert_close(first, second, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="start a new one"):
        mean.add(_update(1))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_divisor_and_weight_must_be_positive_numbers(bad: float) -> None:
    with pytest.raises(ValueError, match="divisor must be"):
        StreamingMean(bad)
    with pytest.raises(ValueError, match="weight must be"):
        StreamingMean(1).add(_update(0), weight=bad)


def test_other_names_are_refused() -> None:
    mean = StreamingMean(2)
    mean.add(_update(0))

    with pytest.raises(KeyError, match="same names"):
        mean.add(ClippedUpdate({"w": torch.zeros(3, 4)}))
