"""What the text models have in common: one shape of input and output, and a start by seed.

The rules that differential privacy puts on a model are kept here and tested for each kind:
one example's logits depend on that example alone (no BatchNorm, no dropout), padding
changes nothing, and all trained layers are `nn.Linear`, `nn.Embedding` and `nn.LayerNorm`,
whose per-example gradients the clipper knows. Only `lengths` says what is padding; a model
never compares a token with zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a model must fit.

    Attributes:
        vocabulary_size: Tokens are below this.
        num_labels: C, the number of classes.
        max_tokens: T is at most this.
    """

    vocabulary_size: int
    num_labels: int
    max_tokens: int


class TextModel(nn.Module):
    """A classifier of token rows."""

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Logits of each row.

        Args:
            tokens: int64 [B, T]; row i holds `lengths[i]` tokens, then anything.
            lengths: int64 [B], each at least 1 and at most T.

        Returns:
            Logits [B, C].
        """
        raise NotImplementedError

    def start(self, generator: torch.Generator) -> None:
        """Set all weights from `generator` alone, in the order of `modules()`.

        Biases are 0, gains 1, embeddings normal with standard deviation 1, linear weights
        uniform within 1 / sqrt(inputs), as `nn.Linear` has them.
        """
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    bound = 1 / math.sqrt(module.in_features)
                    module.weight.uniform_(-bound, bound, generator=generator)
                    if module.bias is not None:
                        module.bias.zero_()
                elif isinstance(module, nn.Embedding):
                    module.weight.normal_(generator=generator)
                elif isinstance(module, nn.LayerNorm):
                    module.weight.fill_(1)
                    module.bias.zero_()


def is_real(lengths: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Which of `num_tokens` positions are no padding: bool [B, `num_tokens`]."""
    return torch.arange(num_tokens, device=lengths.device) < lengths[:, None]


def masked_mean(states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Mean [B, D] of the first `lengths[i]` states of row i of `states` [B, T, D]."""
    weights = is_real(lengths, states.shape[1]) / lengths[:, None]
    # One small matrix product a row: quicker than masking [B, T, D] and summing it.
    return torch.bmm(weights[:, None].to(states.dtype), states).squeeze(1)
