"""Weights and updates: named tensors, exchanged by name and never by position.

`ClippedUpdate` is made by `discreet.privacy.clip` alone.
"""

from __future__ import annotations

from typing import NewType

import torch

Weights = NewType("Weights", dict[str, torch.Tensor])
"""Parameter name -> tensor: a model's trainable state."""

Update = NewType("Update", dict[str, torch.Tensor])
"""Parameter name -> tensor: weights after local training minus the weights before."""

ClippedUpdate = NewType("ClippedUpdate", dict[str, torch.Tensor])
"""An update whose global L2 norm is within the plan's bound. Made by `clip_update` only."""


def subtract(after: Weights, before: Weights) -> Update:
    """The update that leads from `before` to `after` (same names and shapes)."""
    if after.keys() != before.keys():
        raise KeyError("the two sets of weights must have the same names")
    return Update({name: after[name] - before[name] for name in before})


def apply_update(weights: Weights, update: Update, step_size: float = 1.0) -> Weights:
    """New weights: `weights` plus `step_size` times `update` (same names and shapes)."""
    if weights.keys() != update.keys():
        raise KeyError("weights and update must have the same names")
    return Weights({n: w + step_size * update[n].to(w.dtype) for n, w in weights.items()})
