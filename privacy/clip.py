"""The bound on a whole update, on both sides of the wire.

`clip_update` is the sender's: it scales. `check_clipped` is the receiver's: it refuses and
never repairs, because an update over the bound comes from a sender that does not clip.
Nothing else makes a `ClippedUpdate`.

Norms are private. No message of this module holds one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from discreet.common.errors import DiscreetError, NonFiniteUpdateError
from discreet.common.update import ClippedUpdate, Update

RELATIVE_SLACK = 1e-6
"""The bound holds up to this share of it."""

# Floats that are squared and summed at once: few enough for a float32 sum of squares to be
# right to about 1e-7 and to stay in one thread, enough to cost more than their book-keeping.
_PIECE = 2**16

# A factor below this leaves the normal numbers of float32 and would lose its digits.
_SMALLEST_FACTOR = 1e-30


class UnclippedUpdateError(DiscreetError):
    """A received update is longer than the plan's bound: its sender does not clip."""


def clip_update(update: Update, clipping_norm: float) -> tuple[ClippedUpdate, float]:
    """Scale an update so that its global L2 norm is at most `clipping_norm`.

    One factor scales all tensors, so the direction is kept. The bound is what
    the server's noise is calibrated to; it holds up to one part in a million,
    after rounding to the tensors' own number format, bfloat16 included.

    Args:
        update: Parameter name -> float tensor of any shape: weights after
            local training minus the weights the round began with.
        clipping_norm: The bound, finite and > 0, in the weights' own units.

    Returns:
        The clipped update (same names, shapes and dtypes) and the norm before
        clipping. An update within the bound is passed on as it is, not copied.
        That norm is private: never log it or send it without noise.

    Raises:
        NonFiniteUpdateError: If the norm is NaN or infinite, or more than 1e30
            times the bound.

    Source:
        McMahan et al. (2018), https://arxiv.org/abs/1710.06963, Algorithm 1.
    """
    norm = norm_of(update)
    if norm <= clipping_norm:
        return ClippedUpdate(dict(update)), norm
    # Each scaled number may be rounded up, by the half of `eps` at most.
    factor = clipping_norm / norm / (1 + _largest_eps(update) / 2)
    if not factor >= _SMALLEST_FACTOR:
        raise NonFiniteUpdateError(
            "the update's norm must be finite and was not, or is beyond all use: local "
            "training diverged. Lower training.learning_rate."
        )
    return ClippedUpdate({name: tensor * factor for name, tensor in update.items()}), norm


def check_clipped(update: Update, clipping_norm: float) -> ClippedUpdate:
    """Accept a received update whose norm is within the bound, and refuse any other.

    Args:
        update: Parameter name -> float tensor, as decoded.
        clipping_norm: The bound of the plan.

    Returns:
        The same tensors, not copied.

    Raises:
        NonFiniteUpdateError: If it holds NaN or infinity.
        UnclippedUpdateError: If its norm is over the bound by more than one part in a
            million and what rounding to its number format can add.
    """
    norm = norm_of(update)
    if not math.isfinite(norm):
        raise NonFiniteUpdateError(
            "a received update must be finite, and holds NaN or infinity: it is left out. "
            "The site's training diverged; lower training.learning_rate."
        )
    if not norm <= clipping_norm * (1 + RELATIVE_SLACK + _largest_eps(update) / 2):
        raise UnclippedUpdateError(
            f"a received update must have an L2 norm of at most {clipping_norm:g} "
            f"(federation.update_clipping_norm), and is longer: it is left out. "
            f"The site runs another plan or another program; update it."
        )
    return ClippedUpdate(dict(update))


def norm_of(tensors: Mapping[str, torch.Tensor]) -> float:
    """The L2 norm of all numbers of all tensors together, right to about 2e-7.

    One pass over the data in its own format, and no copy of a tensor in float64.

    Args:
        tensors: Float tensors of any shape, format and device, none of them needed.

    Returns:
        The norm: NaN or infinite if any number is.
    """
    return math.sqrt(sum(_square_sum(tensor.detach()) for tensor in tensors.values()))


def _square_sum(tensor: torch.Tensor) -> float:
    total = 0.0
    for piece in tensor.reshape(-1).split(_PIECE):
        values = piece.float() if piece.element_size() < 4 else piece
        square = float(torch.dot(values, values))
        # A float32 square overflows from 2e19 on and is zero below 1e-23; float64 holds both.
        if not 1e-30 < square < math.inf:
            values = piece.double()
            square = float(torch.dot(values, values))
        total += square
    return total


def _largest_eps(update: Update) -> float:
    return max((torch.finfo(tensor.dtype).eps for tensor in update.values()), default=0.0)
