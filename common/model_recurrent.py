"""LSTM and GRU out of linear layers, so that per-example gradients come from known parts.

The equations and the order of the gates are those of `nn.LSTM` and `nn.GRU`; with the same
weights the results are equal up to rounding. The inputs of all time steps go through one
linear layer in one call; the recurrent layer is called once a step.
"""

from __future__ import annotations

import torch
from torch import nn

from discreet.common.layers import ModelSize, TextModel
from discreet.common.plan import RecurrentModel


class LSTMLayer(nn.Module):
    """One left-to-right LSTM layer: [B, T, `width`] > the states [B, T, `hidden`].

    Source:
        Hochreiter and Schmidhuber (1997); gates i, f, g, o as in `torch.nn.LSTM`, with one
        bias, for the sum of its two is all that counts.
    """

    num_gates = 4
    # What the bias of the gate that keeps (the second of both kinds) starts with.
    start_keeping = 1.0

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(width, self.num_gates * hidden)
        self.recurrent = nn.Linear(hidden, self.num_gates * hidden, bias=False)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        """All hidden states; the state before the first token is zero."""
        states = []
        hidden = cell = sequence.new_zeros(len(sequence), self.recurrent.in_features)
        for inputs in self.inputs(sequence).unbind(1):
            gates = inputs + self.recurrent(hidden)
            enter, keep, content, leave = gates.chunk(4, 1)
            cell = torch.sigmoid(keep) * cell + torch.sigmoid(enter) * torch.tanh(content)
            hidden = torch.sigmoid(leave) * torch.tanh(cell)
            states.append(hidden)
        return torch.stack(states, 1)


class GRULayer(nn.Module):
    """One left-to-right GRU layer: [B, T, `width`] > the states [B, T, `hidden`].

    Source:
        Cho et al. (2014), https://arxiv.org/abs/1406.1078; gates r, z, n and the place of
        the reset gate as in `torch.nn.GRU`, whose two biases both stay: the reset gate
        scales one of them.
    """

    num_gates = 3
    start_keeping = 2.0

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(width, self.num_gates * hidden)
        self.recurrent = nn.Linear(hidden, self.num_gates * hidden)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        """All hidden states; the state before the first token is zero."""
        states = []
        width = self.recurrent.in_features
        hidden = sequence.new_zeros(len(sequence), width)
        for inputs in self.inputs(sequence).unbind(1):
            recurrent = self.recurrent(hidden)
            gates = torch.sigmoid(inputs[:, : 2 * width] + recurrent[:, : 2 * width])
            reset, keep = gates.chunk(2, 1)
            new = torch.tanh(inputs[:, 2 * width :] + reset * recurrent[:, 2 * width :])
            hidden = torch.lerp(new, hidden, keep)
            states.append(hidden)
        return torch.stack(states, 1)


LAYERS = {"lstm": LSTMLayer, "gru": GRULayer}


class RecurrentClassifier(TextModel):
    """Embeddings > LSTM or GRU layers > the state at the last real token > logits."""

    def __init__(self, config: RecurrentModel, size: ModelSize) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size.vocabulary_size, config.width)
        widths = [config.width] + [config.hidden] * (config.layers - 1)
        self.layers = nn.ModuleList(LAYERS[config.kind](w, config.hidden) for w in widths)
        self.head = nn.Linear(config.hidden, size.num_labels)

    def start(self, generator: torch.Generator) -> None:
        """As other models do, but each layer starts by keeping what it has met.

        A GRU with a bias of 0 forgets half of its state at each token: the state at the last
        token, the one that is classified, then knows little of the rest, and the few noisy
        steps of private training do not change that.

        Source:
            Jozefowicz et al. (2015), An Empirical Exploration of Recurrent Network
            Architectures: the forget bias. Tallec and Ollivier (2018),
            https://arxiv.org/abs/1804.11188: the same for a GRU, by the length of memory.
        """
        super().start(generator)
        for layer in self.layers:
            if isinstance(layer, LSTMLayer | GRULayer):
                width = layer.recurrent.in_features
                with torch.no_grad():
                    layer.inputs.bias[width : 2 * width] = layer.start_keeping

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Logits [B, C] of `tokens` [B, T]."""
        states = self.embedding(tokens)
        for layer in self.layers:
            states = layer(states)
        # A state depends on no later token, so the padding behind the last real one is
        # without effect, and its gradient is exactly zero.
        last = states[torch.arange(len(tokens), device=tokens.device), lengths - 1]
        logits: torch.Tensor = self.head(last)
        return logits
