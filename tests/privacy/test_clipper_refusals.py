"""What the clipper refuses: every model whose per-example gradient it cannot be sure of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from discreet.common.errors import InputError
from discreet.privacy.clipper import PerExampleClipper, UnsupportedModelError


class OwnForward(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


class OwnParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.scale


class MoreParameters(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)
        self.extra = nn.Parameter(torch.ones(2))


def patched() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.forward = lambda inputs: inputs  # type: ignore[method-assign]
    return layer


def patched_norm() -> nn.Module:
    layer = nn.RMSNorm(2)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


def tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 5))
    model[1].weight = model[0].weight
    return model


def frozen(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(False)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "own forward": (lambda: OwnForward(2, 2), "OwnForward"),
    "own parameter": (OwnParameter, r"trains \['scale'\]"),
    "more parameters": (MoreParameters, "MoreParameters"),
    "patched forward": (patched, "Linear"),
    "patched forward of a sampled layer": (patched_norm, "RMSNorm"),
    "torch attention": (lambda: nn.MultiheadAttention(4, 2), "MultiheadAttention"),
    "torch lstm": (lambda: nn.LSTM(2, 2), "LSTM"),
    "embedding bag": (lambda: nn.EmbeddingBag(4, 2), "EmbeddingBag"),
    "parametrised": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
        "ParametrizationList|ParametrizedLinear|Linear",
    ),
    "circular padding": (lambda: nn.Conv1d(2, 2, 3, 1, 1, padding_mode="circular"), "Conv1d"),
    "running statistics": (
        lambda: nn.InstanceNorm1d(2, affine=True, track_running_stats=True),
        "InstanceNorm1d",
    ),
    "batch norm": (lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "1 is a BatchNorm"),
    "frozen batch norm": (
        lambda: nn.Sequential(nn.Linear(2, 2), frozen(nn.BatchNorm1d(2))),
        "mixes the examples",
    ),
    "max norm": (lambda: nn.Embedding(4, 2, max_norm=1.0), "max_norm"),
    "frozen max norm": (
        lambda: nn.Sequential(frozen(nn.Embedding(4, 2, max_norm=1.0)), nn.Linear(2, 2)),
        "max_norm",
    ),
    "tied weights": (tied, "layers 0 and 1 share a parameter"),
    "half precision": (lambda: nn.Linear(2, 2).half(), "float16"),
    "bfloat16": (lambda: nn.Linear(2, 2).bfloat16(), "autocast"),
    "two formats": (lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), "float64"),
    "nothing to train": (lambda: frozen(nn.Linear(2, 2)), "none to train"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_without_known_gradients_is_refused_before_any_batch(name: str) -> None:
    make, reason = REFUSED[name]
    model = make()

    with pytest.raises(UnsupportedModelError, match=reason):
        PerExampleClipper(model, 1.0)

    assert not any(module._forward_hooks for module in model.modules())


def test_the_refusal_is_an_input_error() -> None:
    assert issubclass(UnsupportedModelError, InputError)


def test_coarse_products_are_refused() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(UnsupportedModelError, match="highest"):
            PerExampleClipper(nn.Linear(2, 2), 1.0)
    finally:
        torch.set_float32_matmul_precision("highest")


class Odd(nn.Module):
    """Linear layers, used in an odd way."""

    def __init__(self, use: Callable[[Odd, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.use = use
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.places = nn.Embedding(7, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.use(self, inputs).flatten(1).square().sum(1)


def changed_input(model: Odd, inputs: torch.Tensor) -> torch.Tensor:
    hidden = inputs * 2
    out: torch.Tensor = model.first(hidden)
    hidden.mul_(3)
    return out


ODD: dict[str, tuple[Callable[[Odd, torch.Tensor], torch.Tensor], str]] = {
    "weight used past its layer": (
        lambda m, x: functional.linear(x, m.first.weight),
        "layer first is used other than by calling",
    ),
    "weight used in and past its layer": (
        lambda m, x: functional.linear(m.first(x), m.first.weight),
        "layer first is used other than by calling",
    ),
    "output of more than two dimensions changed in place": (
        lambda m, x: m.first(x).relu_(),
        "changed in place",
    ),
    "input changed in place": (changed_input, "input of layer first is changed in place"),
    "called by keyword": (lambda m, x: m.first(input=x), "by position"),
    "batch in dimension 1": (
        lambda m, x: m.first(x.transpose(0, 1)).transpose(0, 1),
        "dimension 0",
    ),
    "rows that all examples share": (
        lambda m, x: m.second(x) + m.places(torch.arange(2)),
        "layer places must be called with the batch in dimension 0",
    ),
    "one row for all examples": (
        lambda m, x: x + m.places(torch.arange(2)[None]),
        "layer places must be called with the batch in dimension 0",
    ),
    "a vector": (lambda m, x: x + m.first(torch.ones(3)), "dimension 0"),
    "a scalar": (lambda m, x: x + m.places(torch.tensor(1)), "dimension 0"),
}


@pytest.mark.parametrize("name", ODD)
def test_a_forward_pass_that_mixes_examples_is_refused(name: str) -> None:
    use, reason = ODD[name]
    model = Odd(use)

    with (
        PerExampleClipper(model, 1.0) as clipper,
        pytest.raises(UnsupportedModelError, match=reason),
    ):
        clipper.backward(model(torch.randn(4, 2, 3)))

    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "reduce",
    [
        lambda losses: losses.mean(),
        lambda losses: losses[:, None],
        lambda losses: losses[:2],
        lambda losses: torch.cat([losses, losses]),
    ],
)
def test_losses_that_are_not_one_for_each_example_are_refused(
    reduce: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    model = nn.Linear(3, 1)

    with PerExampleClipper(model, 1.0) as clipper, pytest.raises(UnsupportedModelError):
        clipper.backward(reduce(model(torch.randn(4, 3))[:, 0]))

    assert model.weight.grad is None


def test_losses_without_a_graph_are_refused() -> None:
    model = nn.Linear(3, 1)

    with PerExampleClipper(model, 1.0) as clipper:
        with torch.no_grad():
            losses = model(torch.randn(4, 3))[:, 0]
        with pytest.raises(UnsupportedModelError, match="no_grad"):
            clipper.backward(losses)


def test_losses_that_depend_on_nothing_trained_give_zeros() -> None:
    model = nn.Linear(3, 1)
    elsewhere = torch.ones(4, requires_grad=True)

    with PerExampleClipper(model, 1.0) as clipper:
        clipper.backward(elsewhere * 2)

    assert not model.weight.grad.any()
    assert elsewhere.grad is None


def test_a_refused_batch_does_not_stay_behind() -> None:
    model = Odd(lambda m, x: m.first(x))
    inputs = torch.randn(4, 2, 3)
    with PerExampleClipper(model, 1e9) as clipper:
        with pytest.raises(UnsupportedModelError):
            clipper.backward(model(inputs).mean())
        clipper.backward(model(inputs))

    found = [p.grad.clone() for p in model.first.parameters()]
    model.zero_grad()
    model(inputs).sum().backward()
    for ours, autograd in zip(found, model.first.parameters(), strict=True):
        torch.testing.assert_close(ours, autograd.grad)
