"""What a forward pass leaves behind of each layer call, and whether it can be trusted.

A gradient that is given to the wrong example breaks the bound on what one example can do.
So a call whose dimension 0 is not the batch, an input that changed after it was seen, and a
parameter that reaches the losses past its layer are refused, not guessed at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from discreet.common.errors import InputError
from discreet.privacy.factored import Call


class UnsupportedModelError(InputError):
    """The exact gradient of one example cannot be told for this model or this loss."""


@dataclass(frozen=True, slots=True)
class Record:
    """A call of a layer in a forward pass, before its gradient is known.

    Attributes:
        seen: The input.
        version: How often the input had been changed in place by then.
        output: The place in the graph that the gradient of the output comes to.
    """

    seen: torch.Tensor
    version: int
    output: GradientEdge


@dataclass(frozen=True, slots=True)
class Graph:
    """The graph behind some losses.

    Attributes:
        nodes: Every operation in it.
        uses: Parameter -> how many operations take it.
    """

    nodes: frozenset[Node]
    uses: Counter[nn.Parameter]


def record_of(name: str, inputs: tuple[object, ...], output: object) -> Record:
    """The record of a call of layer `name`, taken in a forward hook.

    Raises:
        UnsupportedModelError: If the call is not from one tensor to one tensor.
    """
    if not (inputs and isinstance(inputs[0], torch.Tensor) and isinstance(output, torch.Tensor)):
        raise UnsupportedModelError(
            f"layer {name} must be called with one tensor, by position, and give one: "
            f"call it as layer(x)"
        )
    # The edge, not the tensor: an in-place operation on the output moves the tensor on to
    # another place in the graph.
    return Record(inputs[0], inputs[0]._version, get_gradient_edge(output))


def num_examples_of(losses: torch.Tensor) -> int:
    """B of losses [B].

    Raises:
        UnsupportedModelError: If they are no vector, or have no graph to go back through.
    """
    if losses.dim() != 1:
        raise UnsupportedModelError(
            f"losses must be one number for each example, a vector [B], got shape "
            f"{tuple(losses.shape)}: reduce within each example, never over the batch"
        )
    if len(losses) and losses.grad_fn is None:
        raise UnsupportedModelError(
            "losses must depend on the trained parameters, and have no graph: compute them "
            "from the model's output, outside of torch.no_grad()"
        )
    return len(losses)


def checked_call(name: str, record: Record, gradient: torch.Tensor, num_examples: int) -> Call:
    """The call of layer `name` with its gradient, one row of each for each example.

    Raises:
        UnsupportedModelError: If dimension 0 is not the batch, or the input was changed.
    """
    seen = record.seen
    # A vector is one position without a batch, even where its length happens to be B.
    if not (seen.dim() and gradient.dim() >= 2 and len(seen) == len(gradient) == num_examples):
        raise UnsupportedModelError(
            f"layer {name} must be called with the batch in dimension 0, {num_examples} examples "
            f"here, but took {tuple(seen.shape)} and gave {tuple(gradient.shape)}: expand what "
            f"all examples share, and pad sequences instead of packing them"
        )
    if seen._version != record.version:
        raise UnsupportedModelError(
            f"the input of layer {name} is changed in place after the call: use an operation "
            f"that makes a new tensor"
        )
    return Call(seen, gradient)


def check_uses(
    name: str, parameters: Sequence[nn.Parameter], *, records: Sequence[Record], graph: Graph
) -> None:
    """See that the parameters of layer `name` reach the losses through its calls alone.

    Raises:
        UnsupportedModelError: If they are used more often than the layer was called.
    """
    # A layer none of whose calls reaches the losses has no gradient, and that is right.
    num_calls = sum(record.output.node in graph.nodes for record in records)
    if any(graph.uses[parameter] > num_calls for parameter in parameters):
        raise UnsupportedModelError(
            f"a parameter of layer {name} is used other than by calling the layer, or the "
            f"layer's output is changed in place, or it was called before it was watched: "
            f"call the layer, and use operations that make a new tensor"
        )


def graph_of(losses: torch.Tensor) -> Graph:
    """Walk back from losses that have a graph to all that they depend on."""
    uses: Counter[nn.Parameter] = Counter()
    nodes: set[Node] = set()
    waiting = [losses.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in nodes:
            continue
        nodes.add(node)
        for following, _ in node.next_functions:
            leaf = getattr(following, "variable", None)
            if leaf is not None and isinstance(leaf, nn.Parameter):
                uses[leaf] += 1
            else:
                waiting.append(following)
    return Graph(frozenset(nodes), uses)
