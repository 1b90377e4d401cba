"""The server's step against the papers' formulas, written out by hand in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from discreet.common.errors import DataError
from discreet.common.plan import FederationConfig
from discreet.common.update import Update, Weights
from discreet.server.optimizer import ServerOptimizer

START = np.array([[0.5, -1.0, 2.0], [0.0, 3.0, -0.25]])
MEANS = [
    np.array([[0.1, -0.2, 0.0], [1.0, -0.5, 0.3]]),
    np.array([[-0.4, 0.2, 0.7], [0.0, 0.5, -0.1]]),
    np.array([[0.3, 0.3, -0.3], [2.0, 0.0, 0.6]]),
]


def _run(config: FederationConfig) -> np.ndarray:
    optimizer = ServerOptimizer(config)
    weights = Weights({"w": torch.tensor(START, dtype=torch.float32)})
    for mean in MEANS:
        weights = optimizer.step(weights, Update({"w": torch.tensor(mean, dtype=torch.float32)}))
    return weights["w"].numpy()


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_fedavg_adds_the_mean_update(rate: float) -> None:
    config = FederationConfig(aggregation="fedavg", server_learning_rate=rate)

    np.testing.assert_allclose(_run(config), START + rate * sum(MEANS), rtol=1e-5)


def test_fedavgm_follows_hsu_et_al() -> None:
    # https://arxiv.org/abs/1909.06335: v <- beta v + dw; w <- w - v, with dw of the other sign.
    velocity, expected = np.zeros_like(START), START.copy()
    for mean in MEANS:
        velocity = 0.9 * velocity + mean
        expected = expected + 0.5 * velocity

    config = FederationConfig(aggregation="fedavgm", server_learning_rate=0.5, server_momentum=0.9)

    np.testing.assert_allclose(_run(config), expected, rtol=1e-5)


def test_fedadam_follows_algorithm_2_of_reddi_et_al() -> None:
    # https://arxiv.org/abs/2003.00295, Algorithm 2, v at tau^2 before the first round.
    beta_1, beta_2, tau, rate = 0.9, 0.99, 1e-3, 0.1
    first, second, expected = np.zeros_like(START), np.full_like(START, tau**2), START.copy()
    for mean in MEANS:
        first = beta_1 * first + (1 - beta_1) * mean
        second = beta_2 * second + (1 - beta_2) * mean**2
        expected = expected + rate * first / (np.sqrt(second) + tau)

    config = FederationConfig(
        aggregation="fedadam", server_learning_rate=rate, server_momentum=beta_1
    )

    np.testing.assert_allclose(_run(config), expected, rtol=1e-5)


def test_fedavgm_without_momentum_is_fedavg() -> None:
    with_none = FederationConfig(aggregation="fedavgm", server_momentum=0.0)

    np.testing.assert_allclose(_run(with_none), _run(FederationConfig()), rtol=1e-6)


@pytest.mark.parametrize("aggregation", ["fedavg", "fedavgm", "fedadam"])
def test_a_restored_state_goes_on_with_the_same_bits(aggregation: str) -> None:
    config = FederationConfig.model_validate({"aggregation": aggregation})
    weights = Weights({"w": torch.tensor(START, dtype=torch.float32)})
    updates = [Update({"w": torch.tensor(m, dtype=torch.float32)}) for m in MEANS]
    whole, first, second = (ServerOptimizer(config) for _ in range(3))

    for update in updates:
        weights = whole.step(weights, update)
    resumed = first.step(Weights({"w": torch.tensor(START, dtype=torch.float32)}), updates[0])
    second.load_state({name: t.clone() for name, t in first.state().items()})
    for update in updates[1:]:
        resumed = second.step(resumed, update)

    assert torch.equal(weights["w"], resumed["w"])


@pytest.mark.parametrize("aggregation", ["fedavg", "fedavgm", "fedadam"])
def test_weights_and_mean_of_the_round_are_left_as_they_are(aggregation: str) -> None:
    optimizer = ServerOptimizer(FederationConfig.model_validate({"aggregation": aggregation}))
    weights = Weights({"w": torch.tensor(START, dtype=torch.float32)})
    mean = Update({"w": torch.tensor(MEANS[0], dtype=torch.float32)})

    optimizer.step(weights, mean)
    optimizer.step(weights, mean)

    np.testing.assert_array_equal(weights["w"].numpy(), START.astype(np.float32))
    np.testing.assert_array_equal(mean["w"].numpy(), MEANS[0].astype(np.float32))


def test_state_of_another_optimizer_is_refused() -> None:
    optimizer = ServerOptimizer(FederationConfig(aggregation="fedavg"))

    with pytest.raises(DataError, match="fedavg does not have"):
        optimizer.load_state({"momentum/w": torch.zeros(1)})
