"""The server's step: how the mean update becomes new weights.

All three work on the mean of updates that are private already, so they are
post-processing: they cost no privacy and weaken none.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from discreet.common.errors import DataError
from discreet.common.plan import FederationConfig
from discreet.common.update import Update, Weights, apply_update

ADAPTIVITY = 1e-3
"""Tau of FedAdam: what keeps its denominator off zero (Reddi et al., section 5.2)."""

SECOND_MOMENT_DECAY = 0.99
"""Beta 2 of FedAdam (Reddi et al., section 5.2)."""


class ServerOptimizer:
    """FedAvg, FedAvgM or FedAdam, after the plan.

    With learning rate `a`, momentum `b` and the mean update `d`:

    - `fedavg`: w += a d
    - `fedavgm`: v = b v + d; w += a v
    - `fedadam`: m = b m + (1 - b) d; v = 0.99 v + 0.01 d^2; w += a m / (sqrt(v) + tau), with
      v = tau^2 at the start and no bias correction.

    Source:
        McMahan et al. (2017), https://arxiv.org/abs/1602.05629, Algorithm 1;
        Hsu et al. (2019), https://arxiv.org/abs/1909.06335, section 4.3;
        Reddi et al. (2021), https://arxiv.org/abs/2003.00295, Algorithm 2.
    """

    def __init__(self, config: FederationConfig) -> None:
        self._config = config
        self._momentum: dict[str, torch.Tensor] = {}
        self._second_moment: dict[str, torch.Tensor] = {}

    def step(self, weights: Weights, mean_update: Update) -> Weights:
        """New weights, of the names, shapes and dtypes of `weights`.

        Args:
            weights: What the round began with; left as it is.
            mean_update: The mean update, float32, same names and shapes.
        """
        match self._config.aggregation:
            case "fedavg":
                direction = mean_update
            case "fedavgm":
                direction = self._with_momentum(mean_update)
            case "fedadam":
                direction = self._adapted(mean_update)
        return apply_update(weights, direction, self._config.server_learning_rate)

    def state(self) -> dict[str, torch.Tensor]:
        """What the next step depends on, as named tensors; for checkpoints."""
        momentum = {f"momentum/{name}": t for name, t in self._momentum.items()}
        second = {f"second_moment/{name}": t for name, t in self._second_moment.items()}
        return momentum | second

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up a state that `state` gave.

        Raises:
            DataError: If it holds something that is not this optimizer's.
        """
        expected = {
            "fedavg": set(),
            "fedavgm": {"momentum"},
            "fedadam": {"momentum", "second_moment"},
        }
        allowed: set[str] = expected[self._config.aggregation]
        found: dict[str, dict[str, torch.Tensor]] = {"momentum": {}, "second_moment": {}}
        for key, tensor in state.items():
            kind, _, name = key.partition("/")
            if kind not in allowed:
                raise DataError(
                    f"the saved optimizer state holds {kind!r}, which {self._config.aggregation} "
                    "does not have: resume with the plan that the run was started with"
                )
            found[kind][name] = tensor.clone()
        self._momentum, self._second_moment = found["momentum"], found["second_moment"]

    def _with_momentum(self, mean_update: Update) -> Update:
        for name, mean in mean_update.items():
            velocity = self._momentum.setdefault(name, torch.zeros_like(mean))
            velocity.mul_(self._config.server_momentum).add_(mean)
        return Update(self._momentum)

    def _adapted(self, mean_update: Update) -> Update:
        beta = self._config.server_momentum
        direction: dict[str, torch.Tensor] = {}
        for name, mean in mean_update.items():
            first = self._momentum.setdefault(name, torch.zeros_like(mean))
            second = self._second_moment.setdefault(name, torch.full_like(mean, ADAPTIVITY**2))
            first.mul_(beta).add_(mean, alpha=1 - beta)
            second.mul_(SECOND_MOMENT_DECAY).addcmul_(mean, mean, value=1 - SECOND_MOMENT_DECAY)
            direction[name] = first / (second.sqrt() + ADAPTIVITY)
        return Update(direction)
