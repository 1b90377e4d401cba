"""An example that breaks adds exactly zero, and nobody else's part is changed by it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from discreet.privacy.clipper import PerExampleClipper

BAD = [float("nan"), float("inf"), -float("inf")]


class Model(nn.Module):
    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.norm = nn.LayerNorm(4)
        self.inner = nn.Linear(4, width)
        self.head = nn.Linear(width, 2)

    def forward(self, tokens: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        states = self.norm(self.embedding(tokens)) * scales[:, None, None]
        return self.head(torch.tanh(self.inner(states)).mean(1))


def clipped_sum(model: nn.Module, losses: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
    model.zero_grad(set_to_none=True)
    with PerExampleClipper(model, 0.5) as clipper:
        clipper.backward(losses())
    return [p.grad.clone() for p in model.parameters()]


# Width 3: one matrix for each example. Width 60: Gram matrices. One token: products of norms.
@pytest.mark.parametrize(("width", "num_tokens"), [(3, 5), (60, 3), (60, 1)])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", ["loss", "activation"])
def test_a_bad_example_adds_exactly_zero_and_changes_nobody_else(
    place: str, bad: float, width: int, num_tokens: int
) -> None:
    torch.manual_seed(1)
    model = Model(width=width)
    tokens = torch.randint(0, 9, (4, num_tokens))
    scales, factors = torch.ones(4), torch.ones(4)
    (factors if place == "loss" else scales)[2] = bad
    others = torch.tensor([0, 1, 3])

    with_bad = clipped_sum(model, lambda: (model(tokens, scales) ** 2).sum(1) * factors)
    without = clipped_sum(model, lambda: (model(tokens[others], scales[others]) ** 2).sum(1))

    for ours, expected in zip(with_bad, without, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", BAD)
def test_a_batch_of_bad_examples_alone_gives_zeros(bad: float) -> None:
    model = Model(width=3)
    tokens = torch.randint(0, 9, (2, 5))

    found = clipped_sum(model, lambda: model(tokens, torch.ones(2)).sum(1) * bad)

    assert all(torch.equal(g, torch.zeros_like(g)) for g in found)


def test_an_infinite_loss_with_a_finite_gradient_counts_as_bad() -> None:
    model = nn.Linear(2, 1)
    shift = torch.tensor([0.0, float("inf")])
    inputs = torch.tensor([[0.1, 0.2], [0.3, 0.4]])

    found = clipped_sum(model, lambda: model(inputs)[:, 0] + shift)

    # d(w x + b)/d(w, b) = (x, 1), longer than the bound of a half, so it is cut to that.
    norm = (0.1**2 + 0.2**2 + 1) ** 0.5
    torch.testing.assert_close(found[0], inputs[:1] * 0.5 / norm)


def test_a_gradient_whose_square_overflows_counts_as_bad() -> None:
    model = nn.Linear(2, 1, bias=False)
    inputs = torch.tensor([[1e30, 0.0], [0.1, 0.0]])

    found = clipped_sum(model, lambda: model(inputs)[:, 0])

    torch.testing.assert_close(found[0], torch.tensor([[0.1, 0.0]]))


def test_a_bad_example_in_one_batch_leaves_the_other_batches() -> None:
    model = nn.Linear(2, 1, bias=False)
    with PerExampleClipper(model, 1.0) as clipper:
        clipper.backward(model(torch.tensor([[0.1, 0.2]]))[:, 0])
        clipper.backward(model(torch.tensor([[float("nan"), 0.2]]))[:, 0])

    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.1, 0.2]]))
