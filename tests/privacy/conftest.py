"""What several tests of private training are measured against."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

Loop = Callable[[nn.Module, Callable[[int], torch.Tensor], int, float], list[torch.Tensor]]


def _clipped_sum_by_loop(
    model: nn.Module, loss_of: Callable[[int], torch.Tensor], num_examples: int, bound: float
) -> list[torch.Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters]
    for row in range(num_examples):
        found = torch.autograd.grad(loss_of(row).sum(), parameters, allow_unused=True)
        each = [
            torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
        ]
        norm = float(torch.cat([g.flatten() for g in each]).norm())
        factor = min(1.0, bound / norm) if norm else 1.0
        for whole, part in zip(total, each, strict=True):
            whole.add_(part, alpha=factor)
    return total


@pytest.fixture
def clipped_sum_by_loop() -> Loop:
    """Sum of clipped gradients, one autograd pass for each example: the definition itself.

    Takes the model, the loss of example i alone, the number of examples and the bound; gives
    one tensor for each trained parameter.
    """
    return _clipped_sum_by_loop
