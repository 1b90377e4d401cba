from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from discreet.common.errors import NonFiniteUpdateError
from discreet.common.update import Update
from discreet.privacy.clip import UnclippedUpdateError, check_clipped, clip_update, norm_of

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def random_update(seed: int, scale: float, dtype: torch.dtype) -> Update:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (37, 11), "b": (11,), "scalar": (), "none": (0, 4)}
    return Update(
        {n: (scale * torch.randn(s, generator=generator)).to(dtype) for n, s in shapes.items()}
    )


def exact_norm(update: Update) -> float:
    return math.sqrt(math.fsum(float(x) ** 2 for t in update.values() for x in t.flatten()))


@given(scale=st.floats(1e-6, 1e6), clipping_norm=st.floats(1e-3, 1e3))
def test_clipped_norm_never_exceeds_the_bound(scale: float, clipping_norm: float) -> None:
    update = Update({"w": scale * torch.ones(3, 4), "b": -scale * torch.ones(4)})

    clipped, _ = clip_update(update, clipping_norm)

    assert norm_of(clipped) <= clipping_norm * (1 + 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100), bound=st.floats(0.01, 100))
def test_the_bound_holds_after_rounding_to_any_number_format(
    dtype: torch.dtype, seed: int, scale: float, bound: float
) -> None:
    clipped, _ = clip_update(random_update(seed, scale, dtype), bound)

    assert exact_norm(Update(dict(clipped))) <= bound * (1 + 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_clipping_keeps_names_shapes_formats_and_direction(dtype: torch.dtype) -> None:
    update = random_update(0, 3.0, dtype)

    clipped, norm = clip_update(update, clipping_norm=1.0)

    assert {n: (t.shape, t.dtype) for n, t in clipped.items()} == {
        n: (t.shape, t.dtype) for n, t in update.items()
    }
    for name, tensor in clipped.items():
        expected = update[name].double() / norm
        assert torch.allclose(tensor.double(), expected, rtol=0.02, atol=1e-6)


def test_clipping_reaches_for_the_bound() -> None:
    # A 3-4-5 triangle: norm 5, scaled by 1/5.
    clipped, norm = clip_update(Update({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}), 1.0)

    assert norm == pytest.approx(5.0, rel=1e-7)
    assert float(clipped["a"]) == pytest.approx(0.6, rel=1e-6)
    assert float(clipped["b"]) == pytest.approx(0.8, rel=1e-6)


def test_an_update_within_the_bound_is_passed_on_uncopied() -> None:
    update = random_update(1, 0.01, torch.float32)

    clipped, _ = clip_update(update, clipping_norm=100.0)

    assert all(clipped[name] is update[name] for name in update)
    assert clipped is not update


@pytest.mark.parametrize("update", [Update({}), Update({"w": torch.zeros(3, 3)})])
def test_a_zero_update_is_clipped_to_zero(update: Update) -> None:
    clipped, norm = clip_update(update, clipping_norm=1.0)

    assert norm == 0.0
    assert all(not t.any() for t in clipped.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_update_is_refused_not_repaired(bad: float, dtype: torch.dtype) -> None:
    update = Update({"w": torch.tensor([1.0, bad], dtype=dtype), "v": torch.ones(2, dtype=dtype)})

    with pytest.raises(NonFiniteUpdateError, match="local training diverged"):
        clip_update(update, clipping_norm=1.0)


def test_an_update_too_large_for_its_scaling_is_refused() -> None:
    update = Update({"w": torch.full((4,), 3e38)})

    with pytest.raises(NonFiniteUpdateError, match="local training diverged"):
        clip_update(update, clipping_norm=1e-3)


def test_a_bound_that_is_not_a_number_clips_nothing_through() -> None:
    with pytest.raises(NonFiniteUpdateError):
        clip_update(Update({"w": torch.ones(2)}), clipping_norm=float("nan"))


def test_the_norm_before_clipping_is_in_no_message() -> None:
    update = Update({"w": torch.full((4,), 3e38)})

    with pytest.raises(NonFiniteUpdateError) as caught:
        clip_update(update, clipping_norm=1e-3)

    assert "e+38" not in str(caught.value)


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 10_000), bound=st.floats(0.01, 100))
def test_what_clip_update_sends_is_accepted(dtype: torch.dtype, seed: int, bound: float) -> None:
    clipped, _ = clip_update(random_update(seed, 10.0, dtype), bound)

    accepted = check_clipped(Update(dict(clipped)), bound)

    assert all(accepted[name] is clipped[name] for name in clipped)


@given(seed=st.integers(0, 10_000))
def test_an_update_rounded_for_the_wire_after_clipping_is_accepted(seed: int) -> None:
    clipped, _ = clip_update(random_update(seed, 10.0, torch.float32), clipping_norm=1.0)

    accepted = check_clipped(Update({n: t.bfloat16() for n, t in clipped.items()}), 1.0)

    assert accepted.keys() == clipped.keys()


@pytest.mark.parametrize(("dtype", "excess"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_an_update_over_the_bound_is_refused(dtype: torch.dtype, excess: float) -> None:
    update = Update({"w": torch.ones(4, dtype=dtype)})

    with pytest.raises(UnclippedUpdateError, match=r"at most 1\.99"):
        check_clipped(update, clipping_norm=1.99)
    with pytest.raises(UnclippedUpdateError, match=r"update_clipping_norm"):
        check_clipped(update, clipping_norm=2.0 / (1 + excess))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_received_update_is_refused(bad: float) -> None:
    with pytest.raises(NonFiniteUpdateError, match="left out"):
        check_clipped(Update({"w": torch.tensor([0.0, bad])}), clipping_norm=1.0)


def test_an_update_under_a_bound_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(UnclippedUpdateError):
        check_clipped(Update({"w": torch.ones(2)}), clipping_norm=float("nan"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 2**20 + 5])
def test_the_norm_is_that_of_float64(dtype: torch.dtype, size: int) -> None:
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)

    norm = norm_of({"a": tensor, "b": tensor[:100]})

    # Second library: torch's own norm of a copy in float64.
    expected = torch.cat([tensor.double(), tensor[:100].double()]).norm()
    assert norm == pytest.approx(float(expected), rel=5e-7)


@pytest.mark.parametrize("value", [1e-30, 1e-22, 1e22, 1e38])
def test_the_norm_holds_where_float32_squares_do_not(value: float) -> None:
    assert norm_of({"w": torch.full((3, 3), value)}) == pytest.approx(3 * value, rel=1e-6)


def test_the_norm_of_any_layout_is_taken_without_a_graph() -> None:
    weight = torch.arange(12.0).reshape(3, 4).requires_grad_()

    # 0^2 + ... + 11^2 = 506
    assert norm_of({"w": weight.T}) == pytest.approx(math.sqrt(506), rel=1e-7)


def test_small_numbers_beside_many_are_not_lost() -> None:
    # One 4096 and 2^24 ones: a running float32 sum would stop at 2^24 and lose all the ones.
    tensors = {"big": torch.tensor([4096.0]), "many": torch.ones(2**24)}

    assert norm_of(tensors) == pytest.approx(math.sqrt(2**25), rel=1e-9)
