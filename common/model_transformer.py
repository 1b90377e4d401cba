"""A pre-norm Transformer encoder out of linear layers and scaled dot-product attention.

`nn.TransformerEncoderLayer` is not used: its attention holds weights outside of any layer
that a per-example clipper can watch.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from discreet.common.layers import ModelSize, TextModel, is_real, masked_mean
from discreet.common.plan import TransformerModel


class Block(nn.Module):
    """Self-attention and a feed-forward part, each on normed input and added to it.

    Source:
        Vaswani et al. (2017), https://arxiv.org/abs/1706.03762; the norm stands before each
        part as in Xiong et al. (2020), https://arxiv.org/abs/2002.04745.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_in = nn.Linear(width, 4 * width)
        self.feed_out = nn.Linear(4 * width, width)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """New states [B, T, D]; only positions that are true in `mask` [B, T] are read."""
        batch, num_tokens, width = states.shape
        projected = self.queries_keys_values(self.attention_norm(states))
        split = projected.view(batch, num_tokens, 3, self.heads, width // self.heads)
        queries, keys, values = split.permute(2, 0, 3, 1, 4)
        read = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask[:, None, None, :]
        )
        states = states + self.attention_out(read.transpose(1, 2).reshape(states.shape))
        fed = functional.gelu(self.feed_in(self.feed_norm(states)))
        new_states: torch.Tensor = states + self.feed_out(fed)
        return new_states


class TransformerClassifier(TextModel):
    """Embeddings of tokens and positions > blocks > mean of the real states > logits."""

    def __init__(self, config: TransformerModel, size: ModelSize) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size.vocabulary_size, config.width)
        self.positions = nn.Embedding(size.max_tokens, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, size.num_labels)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Logits [B, C] of `tokens` [B, T]."""
        # One row of position numbers for each example: a row that all share would have a
        # gradient of the batch, not of one example.
        places = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        states = self.embedding(tokens) + self.positions(places)
        mask = is_real(lengths, tokens.shape[1])
        for block in self.blocks:
            states = block(states, mask)
        logits: torch.Tensor = self.head(masked_mean(self.norm(states), lengths))
        return logits
