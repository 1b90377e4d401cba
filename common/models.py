"""From a plan's model section to a model, and from a model to weights by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from discreet.common.errors import DataError
from discreet.common.layers import ModelSize, TextModel
from discreet.common.model_bag import BagClassifier
from discreet.common.model_linear import LinearClassifier
from discreet.common.model_recurrent import RecurrentClassifier
from discreet.common.model_transformer import TransformerClassifier
from discreet.common.plan import ModelConfig
from discreet.common.update import Weights

MODELS: Mapping[str, Callable[..., TextModel]] = {
    "linear": LinearClassifier,
    "bag": BagClassifier,
    "lstm": RecurrentClassifier,
    "gru": RecurrentClassifier,
    "transformer": TransformerClassifier,
}
"""Kind of model -> its class, made from the kind's section of the plan and a `ModelSize`."""


def build_model(
    config: ModelConfig, *, vocabulary_size: int, num_labels: int, max_tokens: int, seed: int
) -> TextModel:
    """Make a model with weights that `seed` alone decides, on every machine and thread.

    The global random state is neither read nor changed.
    """
    size = ModelSize(vocabulary_size, num_labels, max_tokens)
    # On "meta" the layers draw nothing; `start` then sets every weight.
    with torch.device("meta"):
        model = MODELS[config.kind](config, size)
    model.to_empty(device="cpu")
    model.start(torch.Generator().manual_seed(seed))
    return model


def weights_of(model: torch.nn.Module) -> Weights:
    """Copies of the trainable weights, by name, without gradients."""
    return Weights({name: p.detach().clone() for name, p in _trainable(model).items()})


def weight_shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the trainable weights."""
    return {name: tuple(p.shape) for name, p in _trainable(model).items()}


def load_weights(model: torch.nn.Module, weights: Weights) -> None:
    """Copy `weights` into the model, by name; all or, on an error, none.

    Raises:
        DataError: If names, shapes or number formats are not the model's own.
    """
    own = _trainable(model)
    if own.keys() != weights.keys():
        missing, unknown = sorted(own.keys() - weights), sorted(weights.keys() - own)
        raise DataError(
            f"weights must have the model's names, but {missing} are missing and {unknown} are "
            f"unknown: load weights that were trained under the same plan"
        )
    for name, parameter in own.items():
        found = weights[name]
        if found.shape != parameter.shape or found.dtype != parameter.dtype:
            raise DataError(
                f"weights {name} must be {parameter.dtype} {tuple(parameter.shape)}, got "
                f"{found.dtype} {tuple(found.shape)}: load weights trained under the same plan"
            )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])


def _trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
