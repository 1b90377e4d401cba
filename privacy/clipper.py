"""The sum of clipped per-example gradients, in one backward pass.

`PerExampleClipper` watches a model's trained layers. Autograd is asked for the gradients of
the layers' outputs alone, so it computes no gradient of any weight; `discreet.privacy.factored`
turns inputs and output gradients into exact norms, and then into the clipped sum.

What must stay true:

- Every trained parameter belongs to one layer whose per-example gradients are known. Any
  other model is refused when the clipper is made, or at its first batch.
- Dimension 0 of a layer's input and output is the batch, in the order of the losses.
- One example's loss depends on no other example: the loss's affair, and that of the test of
  sensitivity that each model must pass. BatchNorm, which breaks it, is refused here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from discreet.privacy.factored import (
    Call,
    EmbeddingGradients,
    LayerGradients,
    LinearGradients,
    Sampler,
    grad_of,
    layer_norm_gradients,
    sampled_gradients,
)
from discreet.privacy.graph import (
    Record,
    UnsupportedModelError,
    check_uses,
    checked_call,
    graph_of,
    num_examples_of,
    record_of,
)

__all__ = ["PerExampleClipper", "UnsupportedModelError"]

# Rounding of a norm, in units of its last place: a factor is made smaller by this, so that
# no contribution is over the bound.
_NORM_ROUNDING = 4

_Formula = Callable[[Sequence[Call]], LayerGradients]


@dataclass(slots=True)
class _Layer:
    """A watched layer: what it is, and its calls since the last backward pass."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    formula: _Formula
    records: list[Record]


class PerExampleClipper:
    """Adds the sum of clipped per-example gradients to `.grad`, for one model.

    Known layers: `nn.Linear`, `nn.Embedding` and `nn.LayerNorm` in factored form, called any
    number of times in a forward pass; normalisation, convolution and what else Opacus has a
    grad sampler for, with one gradient held per example. Frozen layers are left alone.

    Usable as a context manager, which closes it.

    Args:
        model: Watched until `close`.
        clipping_norm: Largest L2 norm of one example's gradient over all parameters, finite
            and > 0.

    Raises:
        UnsupportedModelError: If a trained parameter is in a layer of another kind, in two
            layers or in half precision, the model has BatchNorm or nothing to train, or
            torch is set to multiply float32 matrices in fewer digits.
    """

    def __init__(self, model: nn.Module, clipping_norm: float) -> None:
        self._clipping_norm = clipping_norm
        self._is_watching = True
        self._is_verified = False
        modules = _checked_layers(model)
        # All layers before the first hook: a refused model stays as it was.
        self._layers = [
            _Layer(name, _trained_in(module), _formula_of(name, module), [])
            for name, module in modules
        ]
        self._handles = [
            module.register_forward_hook(partial(self._record, layer))
            for layer, (_, module) in zip(self._layers, modules, strict=True)
        ]

    def __enter__(self) -> PerExampleClipper:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the model as it was before; gradients stay."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._layers.clear()

    def backward(self, losses: torch.Tensor) -> None:
        """Add the sum of the clipped gradients of `losses` to the parameters' `.grad`.

        Batches add up until the gradients are cleared. An example whose loss or gradient is
        not finite adds exactly zero and changes nobody else's part. Parameters that the
        losses do not depend on, and an empty batch, get zeros.

        Args:
            losses: [B], one number for each example, from one forward pass of the model since
                the last call. B may be 0.

        Raises:
            UnsupportedModelError: If the losses are no such vector, or the forward pass used
                parameters in a way in which examples cannot be told apart. No gradient has
                been changed then.
        """
        taken = [layer.records for layer in self._layers]
        for layer in self._layers:
            layer.records = []
        parts: list[LayerGradients] = []
        if num_examples_of(losses):
            if not self._is_verified:
                self._verify(losses, taken)
            parts = self._gradients(losses, taken)
        with torch.no_grad():
            for layer in self._layers:
                for parameter in layer.parameters:
                    grad_of(parameter)
            if parts:
                self._add_clipped(losses, parts)

    def _record(
        self, layer: _Layer, module: nn.Module, inputs: tuple[object, ...], output: object
    ) -> None:
        # Checkpointing runs the forward pass again inside of the backward pass; the edges of
        # the first run are those that the gradients come to.
        if self._is_watching and torch.is_grad_enabled():
            layer.records.append(record_of(layer.name, inputs, output))

    def _verify(self, losses: torch.Tensor, taken: list[list[Record]]) -> None:
        graph = graph_of(losses)
        for layer, records in zip(self._layers, taken, strict=True):
            check_uses(layer.name, layer.parameters, records=records, graph=graph)
        self._is_verified = True

    def _gradients(self, losses: torch.Tensor, taken: list[list[Record]]) -> list[LayerGradients]:
        edges = [record.output for records in taken for record in records]
        if not edges:
            return []
        self._is_watching = False
        try:
            # Asked for outputs only, autograd leaves out every weight's own gradient.
            found = iter(
                torch.autograd.grad(losses, edges, torch.ones_like(losses), allow_unused=True)
            )
        finally:
            self._is_watching = True
        parts = []
        with torch.no_grad(), torch.autocast(losses.device.type, enabled=False):
            for layer, records in zip(self._layers, taken, strict=True):
                # `records` stands first: at its end zip must not have taken a gradient more.
                calls = [
                    checked_call(layer.name, record, gradient, len(losses))
                    for record, gradient in zip(records, found, strict=False)
                    if gradient is not None
                ]
                if calls:
                    parts.append(layer.formula(calls))
        return parts

    def _add_clipped(self, losses: torch.Tensor, parts: list[LayerGradients]) -> None:
        norms = torch.stack([part.squared_norms for part in parts]).sum(0).sqrt_()
        norms *= 1 + _NORM_ROUNDING * torch.finfo(norms.dtype).eps
        is_bad = ~(norms.isfinite() & losses.isfinite())
        factors = (self._clipping_norm / norms).clamp_(max=1).masked_fill_(is_bad, 0)
        bad = is_bad if bool(is_bad.any()) else None
        while parts:
            # Popped, so that what a layer holds is freed before the next one's sum is made.
            parts.pop().add_to_grad(factors, bad)


def _checked_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers of a model that hold trained parameters, or the reason why it is refused."""
    layers = []
    owners: dict[nn.Parameter, str] = {}
    for path, module in model.named_modules():
        name = path or type(module).__name__
        if isinstance(module, _BatchNorm):
            raise UnsupportedModelError(
                f"layer {name} is a BatchNorm, which mixes the examples of a batch: use "
                f"LayerNorm or GroupNorm"
            )
        if getattr(module, "max_norm", None) is not None and isinstance(module, nn.Embedding):
            raise UnsupportedModelError(
                f"layer {name} has max_norm, which changes weights without noise: leave it out"
            )
        trained = _trained_in(module)
        for parameter in trained:
            if parameter in owners:
                raise UnsupportedModelError(
                    f"layers {owners[parameter]} and {name} share a parameter: give each its "
                    f"own, or freeze it"
                )
            owners[parameter] = name
        if trained:
            layers.append((name, module))
    _check_formats(owners)
    return layers


def _trained_in(module: nn.Module) -> tuple[nn.Parameter, ...]:
    """The trained parameters of a module itself, not of the modules in it.

    Opacus' recurrent networks show the parameters of their cells as their own, too.
    """
    inside = {parameter for child in module.children() for parameter in child.parameters()}
    own = module.parameters(recurse=False)
    return tuple(p for p in own if p.requires_grad and p not in inside)


def _check_formats(owners: Mapping[nn.Parameter, str]) -> None:
    formats = {parameter.dtype for parameter in owners}
    if formats not in ({torch.float32}, {torch.float64}):
        raise UnsupportedModelError(
            f"trained parameters must all be float32, or all float64, got "
            f"{sorted(map(str, formats)) or 'none to train'}: noise is lost in fewer digits; use "
            f"autocast for speed"
        )
    if torch.get_float32_matmul_precision() != "highest":
        raise UnsupportedModelError(
            "torch's float32 matmul precision must be 'highest', or norms are off by a "
            "thousandth: call torch.set_float32_matmul_precision('highest')"
        )


def _formula_of(name: str, module: nn.Module) -> _Formula:
    """What turns the calls of a layer into its per-example gradients."""
    has_own_forward = "forward" in vars(module)
    names = {n for n, p in module.named_parameters(recurse=False) if p.requires_grad}
    is_plain = isinstance(getattr(module, "weight", None), nn.Parameter)
    if is_plain and not has_own_forward and names <= {"weight", "bias"}:
        # By the forward function, not the class: a subclass may compute something else.
        forward = type(module).forward
        if isinstance(module, nn.Linear) and forward is nn.Linear.forward:
            return partial(LinearGradients, module)
        if isinstance(module, nn.Embedding) and forward is nn.Embedding.forward:
            return partial(EmbeddingGradients, module)
        if isinstance(module, nn.LayerNorm) and forward is nn.LayerNorm.forward:
            return partial(layer_norm_gradients, module)
    sampler = None if has_own_forward else _opacus_sampler(module)
    if sampler is None:
        raise UnsupportedModelError(
            f"layer {name} ({type(module).__name__}) trains {sorted(names)}, and its gradient "
            f"for one example is not known: build it from Linear, Embedding and LayerNorm, "
            f"freeze it, or register a grad sampler for its class with Opacus"
        )
    return partial(sampled_gradients, sampler, module)


def _opacus_sampler(module: nn.Module) -> Sampler | None:
    # Takes seconds, and most models need none.
    from opacus.grad_sample import GradSampleHooks  # type: ignore[import-untyped]

    # Opacus pads with zeros whatever the mode; its samplers of these three expect calls that
    # it has rearranged; running statistics are trained on examples without noise.
    if (
        isinstance(module, nn.EmbeddingBag | nn.Linear | nn.Embedding | nn.LayerNorm)
        or type(module).__name__ == "SequenceBias"
        or getattr(module, "padding_mode", "zeros") != "zeros"
        or getattr(module, "track_running_stats", False)
    ):
        return None
    sampler: Sampler | None = GradSampleHooks.GRAD_SAMPLERS.get(type(module))
    return sampler
