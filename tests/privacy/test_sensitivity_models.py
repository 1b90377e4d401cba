"""Every kind of model that a plan can name: exact per-example gradients, and the bound."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from discreet.common.classification import per_example_loss
from discreet.common.models import build_model
from discreet.common.plan import (
    BagModel,
    LinearModel,
    ModelConfig,
    RecurrentModel,
    TransformerModel,
)
from discreet.common.tokens import Examples
from discreet.privacy.clipper import PerExampleClipper

Loop = Callable[[nn.Module, Callable[[int], torch.Tensor], int, float], list[torch.Tensor]]

VOCABULARY = 17
LONGEST = 12

KINDS: dict[str, ModelConfig] = {
    "linear": LinearModel(buckets=64, ngrams=3),
    "bag": BagModel(width=8),
    "lstm": RecurrentModel(kind="lstm", width=6, hidden=7, layers=2),
    "gru": RecurrentModel(kind="gru", width=6, hidden=7, layers=2),
    "transformer": TransformerModel(kind="transformer", width=8, heads=2, layers=2),
}


def some_examples(num: int, seed: int) -> Examples:
    """Rows of 1 to `LONGEST` tokens, many of them repeated; the first row is the longest."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, LONGEST + 1, (num,), generator=generator)
    lengths[:1] = LONGEST
    tokens = torch.randint(1, VOCABULARY, (num, LONGEST), generator=generator)
    tokens[torch.arange(LONGEST) >= lengths[:, None]] = 0
    return Examples(tokens, lengths, torch.randint(0, 3, (num,), generator=generator))


def model_of(kind: str, seed: int, dtype: torch.dtype) -> nn.Module:
    model = build_model(
        KINDS[kind], vocabulary_size=VOCABULARY, num_labels=3, max_tokens=LONGEST, seed=seed
    ).to(dtype)
    # The linear model starts at zero, where gradients are alike; any weights will do.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(dtype))
    return model


def clipped_grads(model: nn.Module, examples: Examples, bound: float) -> list[torch.Tensor]:
    model.zero_grad(set_to_none=True)
    with PerExampleClipper(model, bound) as clipper:
        clipper.backward(per_example_loss(model, examples))
    return [p.grad for p in model.parameters()]


def clipped_sum(model: nn.Module, examples: Examples, bound: float) -> torch.Tensor:
    return torch.cat([g.double().flatten() for g in clipped_grads(model, examples, bound)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num", [1, 9])
@pytest.mark.parametrize("bound", [0.05, 1e6])
def test_clipped_sum_is_that_of_a_loop(
    kind: str, num: int, bound: float, clipped_sum_by_loop: Loop
) -> None:
    # The linear model weighs its buckets in float32, whatever its weights are.
    dtype, rtol = (torch.float32, 1e-5) if kind == "linear" else (torch.float64, 1e-10)
    model, examples = model_of(kind, 0, dtype), some_examples(num, 0)

    found = clipped_grads(model, examples, bound)

    rows = lambda i: per_example_loss(model, examples.select(torch.tensor([i])))  # noqa: E731
    loop = clipped_sum_by_loop(model, rows, num, bound)
    for ours, theirs in zip(found, loop, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol / 100)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_gives_zeros(kind: str) -> None:
    model = model_of(kind, 0, torch.float32)
    examples = some_examples(3, 0).select(torch.empty(0, dtype=torch.int64))

    assert not clipped_sum(model, examples, 1.0).any()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), num=st.integers(0, 5), bound=st.sampled_from([1e-3, 0.3, 20.0]))
def test_one_example_more_moves_the_sum_by_at_most_the_bound(
    kind: str, seed: int, num: int, bound: float
) -> None:
    model, examples = model_of(kind, seed, torch.float32), some_examples(num + 1, seed)

    # The newcomer stands anywhere; without the first row the others are cut to fewer places,
    # so the property covers padding as well.
    for gone in {0, num}:
        kept = torch.tensor([row for row in range(num + 1) if row != gone], dtype=torch.int64)
        moved = clipped_sum(model, examples, bound) - clipped_sum(
            model, examples.select(kept), bound
        )

        assert moved.norm() <= bound * (1 + 1e-5)
