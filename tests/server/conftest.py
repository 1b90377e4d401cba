"""The plan and the weights of the tests in this folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from discreet.common.plan import Plan
from discreet.common.update import Weights

# Under importlib mode a test folder is not on the path, and `scripted_sites` lies in it.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., Plan]:
    def make(*, privacy: object = "none", rounds: int = 3, **federation: object) -> Plan:
        return Plan.model_validate(
            {
                "name": "test",
                "task": {"labels": ["ham", "spam"]},
                "model": {"kind": "linear", "buckets": 16, "ngrams": 1},
                "privacy": privacy,
                "training": {
                    "rounds": rounds,
                    "sample_rate": 0.1,
                    "expected_batch_size": 8,
                    "learning_rate": 1.0,
                },
                "federation": {"update_clipping_norm": 100.0, **federation},
            }
        )

    return make


@pytest.fixture
def start_weights() -> Weights:
    return Weights({"w": torch.zeros(2, 3), "b": torch.ones(3)})
