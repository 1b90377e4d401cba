"""The mean of updates, one at a time: memory of one model, whatever the number of sites.

The divisor is a public constant, so that a site that drops out moves the mean by its own
bounded share and not by changing everybody else's weight.
"""

from __future__ import annotations

import math

import torch

from discreet.common.update import ClippedUpdate, Update


class StreamingMean:
    """Sums updates in place and divides once.

    The sum is kept in float32 whatever the updates' dtype: bfloat16 holds eight bits of
    mantissa, so a bfloat16 sum would lose the small updates against the large total. The
    order of `add` is the order of the sum: the same order gives the same bits.

    Attributes:
        num_added: Updates added so far.
    """

    def __init__(self, divisor: float | None) -> None:
        """Start an empty mean.

        Args:
            divisor: What the sum is divided by, finite and > 0; None divides by the sum of
                the weights given to `add`.
        """
        if divisor is not None and not 0 < divisor < math.inf:
            raise ValueError(f"divisor must be a finite number > 0, got {divisor}")
        self._divisor = divisor
        self._weight = 0.0
        self._sum: dict[str, torch.Tensor] | None = None
        self._is_done = False
        self.num_added = 0

    def add(self, update: ClippedUpdate, weight: float = 1.0) -> None:
        """Add `weight` times an update; nothing of `update` is kept or changed.

        Args:
            update: Names and shapes as of the first one added.
            weight: Finite and > 0.

        Raises:
            ValueError: If the weight is not one.
            KeyError: If the names are not those of the first update.
        """
        if not 0 < weight < math.inf:
            raise ValueError(f"weight must be a finite number > 0, got {weight}")
        if self._is_done:
            raise RuntimeError("the mean was handed out: start a new one")
        if self._sum is None:
            # A copy costs one write; zeros and an addition would cost two passes.
            self._sum = {name: _scaled_copy(t, weight) for name, t in update.items()}
        elif self._sum.keys() != update.keys():
            raise KeyError("all updates of one mean must have the same names")
        else:
            for name, total in self._sum.items():
                total.add_(update[name], alpha=weight)
        self._weight += weight
        self.num_added += 1

    def result(self) -> Update | None:
        """The mean, float32, or None if nothing was added.

        It is divided in place and handed over, so that no second model is held: the mean
        takes no more updates after this.
        """
        if self._sum is None:
            return None
        divisor = self._divisor if self._divisor is not None else self._weight
        if not self._is_done:
            self._is_done = True
            for total in self._sum.values():
                total.div_(divisor)
        return Update(self._sum)


def _scaled_copy(tensor: torch.Tensor, weight: float) -> torch.Tensor:
    """`weight` times a tensor, in new memory of its own, float32."""
    copied = tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return copied if weight == 1.0 else copied.mul_(weight)
