"""Adding one example moves the clipped sum by no more than the bound, whatever the example.

The property that the noise is calibrated to. It holds in float32, too, where norms are
rounded and large terms cancel.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from discreet.privacy.clipper import PerExampleClipper

SLACK = 1e-5
bounds = st.sampled_from([1e-4, 0.03, 1.0, 50.0])
scales = st.sampled_from([1e-6, 1.0, 30.0, 1e4])


class Classifier(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 8)
        self.body = body
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(self.embedding(tokens)).mean(1))
        return out


def classifier(kind: str, seed: int, scale: float) -> Classifier:
    torch.manual_seed(seed)
    bodies = {
        "bag": nn.Identity(),
        "narrow": nn.Sequential(nn.Linear(8, 2), nn.Tanh(), nn.Linear(2, 8)),
        "wide": nn.Sequential(nn.Linear(8, 70), nn.Tanh(), nn.Linear(70, 70), nn.Linear(70, 8)),
        "norm": nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)),
    }
    model = Classifier(bodies[kind])
    with torch.no_grad():
        model.embedding.weight.mul_(scale)
    return model


def clipped_sum(
    model: nn.Module, tokens: torch.Tensor, labels: torch.Tensor, bound: float
) -> torch.Tensor:
    model.zero_grad()
    with PerExampleClipper(model, bound) as clipper:
        clipper.backward(functional.cross_entropy(model(tokens), labels, reduction="none"))
    return torch.cat([p.grad.double().flatten() for p in model.parameters()])


@pytest.mark.parametrize("kind", ["bag", "narrow", "wide", "norm"])
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    scale=scales,
    bound=bounds,
    num_tokens=st.sampled_from([1, 3, 30]),
)
def test_one_example_adds_at_most_the_bound(
    kind: str, seed: int, scale: float, bound: float, num_tokens: int
) -> None:
    model = classifier(kind, seed, scale)
    tokens, labels = torch.randint(0, 13, (1, num_tokens)), torch.randint(0, 3, (1,))

    alone = clipped_sum(model, tokens, labels, bound)

    assert alone.norm() <= bound * (1 + 1e-6)


@pytest.mark.parametrize("kind", ["bag", "narrow", "wide", "norm"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), scale=scales, num_examples=st.integers(0, 6))
def test_a_neighbouring_data_set_moves_the_sum_by_at_most_the_bound(
    kind: str, seed: int, scale: float, num_examples: int
) -> None:
    model = classifier(kind, seed, scale)
    tokens = torch.randint(0, 13, (num_examples + 1, 12))
    labels = torch.randint(0, 3, (num_examples + 1,))

    larger = clipped_sum(model, tokens, labels, 1.0)
    smaller = clipped_sum(model, tokens[:-1], labels[:-1], 1.0)

    assert (larger - smaller).norm() <= 1 + SLACK


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**16), tilt=st.sampled_from([0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1.0]))
def test_positions_that_cancel_do_not_slip_past_the_bound(seed: int, tilt: float) -> None:
    # Gradients of the positions oppose each other but for `tilt`, so the Gram form subtracts
    # large numbers that are nearly equal, and its rounding is larger than what is left.
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(200, 200, bias=False)
    base = torch.randn(200, generator=generator)
    inputs = (base + tilt * torch.randn(1, 6, 200, generator=generator)).requires_grad_()
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])[None, :, None]
    direction = torch.randn(200, generator=generator)

    with PerExampleClipper(layer, 0.5) as clipper:
        clipper.backward((layer(inputs) * signs * direction).sum((1, 2)))

    assert layer.weight.grad.double().norm() <= 0.5 * (1 + SLACK)


def test_the_property_sees_a_loss_that_depends_on_batch_mates() -> None:
    # As a mean over all tokens of a batch does: who joins changes the weight of the others.
    model = classifier("bag", 0, 1.0)
    tokens, labels = torch.randint(0, 13, (8, 12)), torch.randint(0, 3, (8,))

    def coupled_sum(num: int) -> torch.Tensor:
        model.zero_grad()
        with PerExampleClipper(model, 1.0) as clipper:
            losses = functional.cross_entropy(model(tokens[:num]), labels[:num], reduction="none")
            clipper.backward(losses * (1e3 if num == 8 else 1e-3))
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    assert (coupled_sum(8) - coupled_sum(7)).norm() > 1.5
