"""The mean of token embeddings, then a linear layer."""

from __future__ import annotations

import torch
from torch import nn

from discreet.common.layers import ModelSize, TextModel, masked_mean
from discreet.common.plan import BagModel


class BagClassifier(TextModel):
    """Mean of the embeddings of a text's tokens > logits.

    Source:
        Joulin et al. (2017), https://arxiv.org/abs/1607.01759, without n-grams.
    """

    def __init__(self, config: BagModel, size: ModelSize) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size.vocabulary_size, config.width)
        self.head = nn.Linear(config.width, size.num_labels)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Logits [B, C] of `tokens` [B, T]."""
        logits: torch.Tensor = self.head(masked_mean(self.embedding(tokens), lengths))
        return logits
