"""Hashed n-grams of tokens into one linear layer.

Each distinct n-gram of a text counts once, by how rare it is, and the text is scaled to a
vector of length 1: no gradient is longer than sqrt(2), so clipping wastes little of it.

How rare a token is must not be learned from private text. Byte-pair tokenizers number their
tokens in the order of how often they met them in public text, and by Zipf's law frequency
falls as one over that rank: the inverse document frequency of a token grows as the logarithm
of its number. Placeholders have the highest numbers, so a found telephone number weighs.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from discreet.common.layers import ModelSize, TextModel, is_real
from discreet.common.plan import LinearModel

# Multipliers of the hash: the golden ratio's, and Knuth's for 64 bits, odd and signed.
# They are part of what a trained model means: a change makes its weights worthless.
MIX_TOKEN = -7046029254386353131
MIX_NGRAM = 6364136223846793005


class LinearClassifier(TextModel):
    """Sum of the weights of a text's distinct n-grams, each times how rare it is.

    One more row of weights is met by every text, with the size of a usual n-gram: the bias.
    It learns which class is frequent at once, from all texts, where without it a hundred rows
    under noise of their own must learn it together.

    Source:
        Weinberger et al. (2009), https://arxiv.org/abs/0902.2206: feature hashing.
    """

    def __init__(self, config: LinearModel, size: ModelSize) -> None:
        super().__init__()
        self.ngrams = config.ngrams
        self.buckets = config.buckets
        self.weights = nn.Embedding(config.buckets + 1, size.num_labels)

    def start(self, generator: torch.Generator) -> None:
        """Zero: the loss is convex, so no start is better, and none depends on a seed."""
        del generator
        nn.init.zeros_(self.weights.weight)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Logits [B, C] of `tokens` [B, T]."""
        buckets, rarity = distinct_ngrams(
            tokens, lengths, ngrams=self.ngrams, num_buckets=self.buckets
        )
        # The root mean square of the text's n-grams.
        usual = rarity.norm(dim=1) / (rarity > 0).sum(1).sqrt()
        rows = functional.pad(buckets, (0, 1), value=self.buckets)
        factors = functional.normalize(torch.cat((rarity, usual[:, None]), 1), dim=1)
        weights = self.weights(rows)
        return torch.bmm(factors[:, None].to(weights.dtype), weights).squeeze(1)


def distinct_ngrams(
    tokens: torch.Tensor, lengths: torch.Tensor, *, ngrams: int, num_buckets: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The hash buckets of the n-grams of each row, 1 to `ngrams` tokens long.

    Args:
        tokens: int64 [B, T].
        lengths: int64 [B]; an n-gram that reaches past it does not count.
        ngrams: Longest n-gram.
        num_buckets: Buckets are below this.

    Returns:
        Buckets int64 [B, P], sorted in each row, and float32 [B, P]: how rare the n-gram is
        where a bucket stands for the first time, 0 at its repeats and at padding.
    """
    num_tokens = tokens.shape[1]
    parts, weights = [], []
    hashed = torch.zeros_like(tokens)
    # Two, so that token 0 has a weight too: a text of nothing else would have no length.
    rarity = rarest = (tokens + 2).float().log()
    for n in range(1, min(ngrams, num_tokens) + 1):
        # int64 arithmetic wraps around, which is the point: h * a + t * b mod 2^64.
        hashed = hashed[:, : num_tokens - n + 1] * MIX_NGRAM + (tokens[:, n - 1 :] + n) * MIX_TOKEN
        mixed = (hashed ^ (hashed >> 29)) * MIX_NGRAM
        # The upper half is well mixed; shifting int64 keeps the sign, so it is masked off.
        bucket = ((mixed >> 32) & 0x7FFFFFFF) % num_buckets
        real = is_real(lengths - (n - 1), num_tokens - n + 1)
        parts.append(torch.where(real, bucket, num_buckets))
        # An n-gram is at least as rare as the rarest of its tokens.
        rarest = torch.maximum(rarest[:, : num_tokens - n + 1], rarity[:, n - 1 :])
        weights.append(rarest)
    # Stable, so that n-grams which share a bucket are told apart the same way everywhere.
    buckets, order = torch.cat(parts, 1).sort(dim=1, stable=True)
    first = torch.ones_like(buckets, dtype=torch.bool)
    first[:, 1:] = buckets[:, 1:] != buckets[:, :-1]
    counted = first & (buckets < num_buckets)
    rarities = torch.cat(weights, 1).gather(1, order) * counted
    return buckets.clamp(max=num_buckets - 1), rarities
