"""Per-example gradients of one layer, kept as factors and never as one matrix per example.

A linear layer's weight gradient for example b is a sum over its positions t of outer
products, `sum_t g_t a_t^T`, where `a` is what the layer saw and `g` the gradient of the loss
with respect to what it gave. An embedding's is `g_t` added to the row of token t. So the
norm and the clipped sum over examples can be had from `a` and `g` alone, exactly:

- one position: `|g|^2 |a|^2`;
- few positions: `sum_ts <a_t, a_s> <g_t, g_s>`, two small Gram matrices;
- many positions: the matrix itself, which is then smaller than `a` and `g` together, and
  makes the clipped sum nearly free;
- embedding: rows of equal tokens of one example are summed first, then squared.

Cost decides, never accuracy: each form takes no more memory than `a` and `g` do. All of it
is computed in the parameter's own format, float32 or float64, under autocast too.

Source:
    Goodfellow (2015), https://arxiv.org/abs/1510.01799. Li et al. (2022),
    https://arxiv.org/abs/2110.05679, section 4. Bu et al. (2023),
    https://arxiv.org/abs/2210.00038: both forms, and one backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

# How far rounding may move the Gram form, in units of the last place of its largest terms.
# They cancel where a gradient is small because its positions oppose each other.
_GRAM_ROUNDING = 16


Sampler = Callable[[nn.Module, list[torch.Tensor], torch.Tensor], dict[torch.Tensor, torch.Tensor]]
"""Per-example gradients of one call of a layer: (layer, [input], output gradient) ->
parameter -> [B, ...]. The shape of Opacus' grad samplers."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a layer in a forward pass.

    Attributes:
        seen: The input [B, ...].
        gradient: d(sum of losses) / d(output) [B, ...].
    """

    seen: torch.Tensor
    gradient: torch.Tensor


class LayerGradients(Protocol):
    """The gradients of one layer's parameters, one for each of B examples."""

    squared_norms: torch.Tensor
    """[B]: squared L2 norm of each example's gradient, over all of the layer's parameters.

    Not below the true one by more than a millionth; not finite where the gradient is not.
    """

    def add_to_grad(self, factors: torch.Tensor, bad: torch.Tensor | None) -> None:
        """Add the sum over examples, example b times `factors[b]`, to each trained `.grad`.

        Args:
            factors: [B], finite.
            bad: bool [B], examples left out altogether; their gradients may hold NaN, which
                no factor would turn into zero. None means there are none.
        """
        ...


class LinearGradients:
    """Gradients of an `nn.Linear`.

    Args:
        layer: The layer; weight, bias or both are trained.
        calls: Its calls on the same B examples, at least one.
    """

    def __init__(self, layer: nn.Linear, calls: Sequence[Call]) -> None:
        self._layer = layer
        dtype = layer.weight.dtype
        self._seen = _positions([call.seen for call in calls], dtype)
        self._gradient = _positions([call.gradient for call in calls], dtype)
        self._each: torch.Tensor | None = None
        self._bias: torch.Tensor | None = None
        self.squared_norms = self._gradient.new_zeros(len(self._gradient))
        if layer.weight.requires_grad:
            self.squared_norms = self._weight_norms()
        if layer.bias is not None and layer.bias.requires_grad:
            self._bias = self._gradient.sum(1)
            self.squared_norms = self.squared_norms + _square_sums(self._bias)

    def _weight_norms(self) -> torch.Tensor:
        seen, gradient = self._seen, self._gradient
        num_positions, width_in, width_out = seen.shape[1], seen.shape[2], gradient.shape[2]
        if num_positions == 1:
            return seen.square().sum((1, 2)) * gradient.square().sum((1, 2))
        if num_positions * (width_in + width_out) <= width_in * width_out:
            return _gram_norms(seen, gradient)
        # Smaller than `seen` and `gradient`, or the Gram form would have been chosen.
        self._each = torch.bmm(gradient.mT, seen).flatten(1)
        return _square_sums(self._each)

    def add_to_grad(self, factors: torch.Tensor, bad: torch.Tensor | None) -> None:
        """See `LayerGradients`."""
        if self._each is not None:
            _add(self._layer.weight, self._each, factors, bad)
        elif self._layer.weight.requires_grad:
            seen, gradient = _without(self._seen, bad), _without(self._gradient, bad)
            if seen.shape[2] < gradient.shape[2]:
                seen = seen * factors[:, None, None]
            else:
                gradient = gradient * factors[:, None, None]
            grad_of(self._layer.weight).addmm_(gradient.flatten(0, 1).mT, seen.flatten(0, 1))
        if self._bias is not None:
            _add(self._layer.bias, self._bias, factors, bad)


class EmbeddingGradients:
    """Gradients of an `nn.Embedding`: never [B, rows, width], only rows that were looked up.

    The row of `padding_idx` gets no gradient, as in torch.

    Args:
        layer: The layer; its weight is trained.
        calls: Its calls on the same B examples, at least one.
    """

    def __init__(self, layer: nn.Embedding, calls: Sequence[Call]) -> None:
        self._weight = layer.weight
        num_examples = len(calls[0].gradient)
        tokens = torch.cat([call.seen.reshape(num_examples, -1) for call in calls], 1)
        gradient = _positions([call.gradient for call in calls], layer.weight.dtype)
        # One number for "this token in this example", so that one pass finds the equal ones.
        example = torch.arange(num_examples, device=tokens.device)[:, None]
        pairs, place = _distinct((tokens + example * layer.num_embeddings).view(-1))
        self._token = pairs % layer.num_embeddings
        self._example = pairs.div(layer.num_embeddings, rounding_mode="floor")
        self._rows = gradient.new_zeros(len(pairs), gradient.shape[2])
        self._rows.index_add_(0, place, gradient.flatten(0, 1))
        if layer.padding_idx is not None:
            self._rows.masked_fill_((self._token == layer.padding_idx)[:, None], 0)
        self.squared_norms = gradient.new_zeros(num_examples)
        self.squared_norms.index_add_(0, self._example, _square_sums(self._rows))

    def add_to_grad(self, factors: torch.Tensor, bad: torch.Tensor | None) -> None:
        """See `LayerGradients`."""
        rows = _without(self._rows, None if bad is None else bad[self._example])
        rows = rows * factors[self._example][:, None]
        grad_of(self._weight).index_add_(0, self._token, rows)


class MaterialisedGradients:
    """Gradients held as one tensor per example, for parameters that are small.

    Args:
        each: Parameter -> its gradients [B, ...], at least one.
    """

    def __init__(self, each: Mapping[torch.Tensor, torch.Tensor]) -> None:
        self._each = {parameter: part.flatten(1) for parameter, part in each.items()}
        norms = [_square_sums(part) for part in self._each.values()]
        self.squared_norms = torch.stack(norms).sum(0)

    def add_to_grad(self, factors: torch.Tensor, bad: torch.Tensor | None) -> None:
        """See `LayerGradients`."""
        for parameter, part in self._each.items():
            _add(parameter, part, factors, bad)


def grad_of(parameter: torch.Tensor) -> torch.Tensor:
    """The `.grad` of a parameter; zeros are put there if there is none yet."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def layer_norm_gradients(layer: nn.LayerNorm, calls: Sequence[Call]) -> MaterialisedGradients:
    """Gradients of an `nn.LayerNorm`; Opacus 1.6 fails on one without a bias.

    Args:
        layer: The layer; weight, bias or both are trained.
        calls: Its calls on the same B examples, at least one.
    """
    dtype, size = layer.weight.dtype, layer.weight.numel()
    gradient = _positions([call.gradient for call in calls], dtype, size)
    each: dict[torch.Tensor, torch.Tensor] = {}
    if layer.weight.requires_grad:
        shape, ones = layer.normalized_shape, torch.ones_like(layer.weight)
        normed = [
            # With weights of one, torch takes a way that is twice as fast as with none.
            nn.functional.layer_norm(call.seen.to(dtype), shape, ones, eps=layer.eps)
            for call in calls
        ]
        each[layer.weight] = (_positions(normed, dtype, size) * gradient).sum(1)
    if layer.bias is not None and layer.bias.requires_grad:
        each[layer.bias] = gradient.sum(1)
    return MaterialisedGradients(each)


def sampled_gradients(
    sampler: Sampler, layer: nn.Module, calls: Sequence[Call]
) -> MaterialisedGradients:
    """Gradients of any layer, from a function that gives those of one call.

    Args:
        sampler: Gives the per-example gradients of one call.
        layer: The layer.
        calls: Its calls on the same B examples, at least one.
    """
    each: dict[torch.Tensor, torch.Tensor] = {}
    dtype = next(p for p in layer.parameters(recurse=False) if p.requires_grad).dtype
    for call in calls:
        seen = call.seen.to(dtype) if call.seen.is_floating_point() else call.seen
        found = sampler(layer, [seen], call.gradient.to(dtype))
        for parameter, part in found.items():
            if parameter.requires_grad:
                each[parameter] = each[parameter] + part if parameter in each else part
    return MaterialisedGradients(each)


def _positions(
    tensors: Sequence[torch.Tensor], dtype: torch.dtype, width: int | None = None
) -> torch.Tensor:
    """Tensors [B, ..., width] of several calls as one [B, positions, width]."""
    parts = [t.reshape(len(t), -1, width or t.shape[-1]).to(dtype) for t in tensors]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _square_sums(each: torch.Tensor) -> torch.Tensor:
    """Sum of squares of each row of `each` [B, numel]; no copy of it is made."""
    norms: torch.Tensor = torch.linalg.vector_norm(each, dim=1)
    return norms.square_()


def _gram_norms(seen: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """`|sum_t g_t a_t^T|^2` of each example, without the matrix; never too small."""
    seen_products = torch.bmm(seen, seen.mT)
    gradient_products = torch.bmm(gradient, gradient.mT)
    # Sum of |g_t| |a_t|: what the norm would be, were all positions to pull one way.
    largest = seen_products.diagonal(dim1=1, dim2=2) * gradient_products.diagonal(dim1=1, dim2=2)
    largest = largest.clamp_(min=0).sqrt_().sum(1)
    squared = seen_products.mul_(gradient_products).sum((1, 2)).clamp_(min=0)
    rounding = _GRAM_ROUNDING * torch.finfo(seen.dtype).eps
    return squared + rounding * largest.square()


def _add(
    parameter: torch.Tensor, each: torch.Tensor, factors: torch.Tensor, bad: torch.Tensor | None
) -> None:
    """Add gradients `each` [B, numel], times the factors, to the parameter's."""
    grad_of(parameter).add_((factors @ _without(each, bad)).view_as(parameter))


def _distinct(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The distinct values of `keys` [N], and the place of each key among them [N]."""
    # Rows of sorted buckets, as the hashed linear model has, need no second sort.
    is_sorted = bool((keys[1:] >= keys[:-1]).all())
    unique = torch.unique_consecutive if is_sorted else torch.unique
    values, place = unique(keys, return_inverse=True)
    return values, place


def _without(each: torch.Tensor, bad: torch.Tensor | None) -> torch.Tensor:
    """`each` [B, ...] with exact zeros for the bad examples: 0 * NaN would be NaN."""
    if bad is None:
        return each
    return each.masked_fill(bad.view(-1, *[1] * (each.dim() - 1)), 0)
