"""From what a model gives back to its weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.gradients.elementwise import ELEMENTWISE, Rule
from graphopt.gradients.linear import averaged, convolution, gemm, product
from graphopt.gradients.moving import (
    joined,
    largest,
    layer_norm,
    picked,
    repeated,
    reshaped,
    sliced,
    softmax,
    summed,
    transposed,
    transposed_convolution,
)
from graphopt.gradients.tape import Tape
from graphopt.ir.graph import bodies

OPSET = 13  # the first in which ReduceSum and Unsqueeze take their axes as an input

_RULES: dict[str, Rule] = {
    **ELEMENTWISE,
    "AveragePool": averaged,
    "Concat": joined,
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "Flatten": reshaped,
    "Gather": picked,
    "Gemm": gemm,
    "GlobalAveragePool": summed,
    "Identity": reshaped,
    "LayerNormalization": layer_norm,
    "MatMul": product,
    "MaxPool": largest,
    "ReduceL2": summed,
    "ReduceMax": summed,
    "ReduceMean": summed,
    "ReduceSum": summed,
    "Reshape": reshaped,
    "Resize": repeated,
    "Slice": sliced,
    "Softmax": softmax,
    "Squeeze": reshaped,
    "Transpose": transposed,
    "Unsqueeze": reshaped,
}


@dataclass(frozen=True, eq=False)
class Gradients:
    """Gradients that a graph has been given.

    Attributes:
        of: By the name of the constant, the tensor that its gradient is; those that are not known are missing.
        stops: Names of nodes that no rule leads through: nothing is known of what lies before them.
    """

    of: Mapping[str, gs.Tensor]
    stops: tuple[str, ...]


def add_gradients(
    tape: Tape, seeds: Sequence[tuple[gs.Tensor, gs.Tensor]], weights: Collection[gs.Constant]
) -> Gradients:
    """Add the nodes that compute the gradients of a sum with respect to weights.

    Args:
        tape: Writes into the graph; its nodes are in topological order.
        seeds: Tensors of the graph, each with the gradient of the sum with respect to it alone.
        weights: What is asked for, used in the main graph only.
    """
    nodes = list(tape.graph.nodes)
    given: dict[int, list[gs.Tensor]] = {}
    for tensor, gradient in seeds:
        given.setdefault(id(tensor), []).append(gradient)
    leading = _leading(nodes, weights)
    blocked: set[int] = set()
    stops = []
    for node in reversed(nodes):
        if id(node) not in leading or not any(id(item) in given or id(item) in blocked for item in node.outputs):
            continue
        found = None if any(id(item) in blocked for item in node.outputs) else _through(tape, node, given)
        if found is None:
            stops.append(str(node.name))
            blocked.update(id(item) for item in _read(node))
            continue
        for item, gradient in zip(node.inputs, found, strict=True):
            if gradient is not None:
                given.setdefault(id(item), []).append(gradient)
    known = (item for item in weights if id(item) in given and id(item) not in blocked)
    return Gradients({item.name: _sum(tape, given[id(item)]) for item in known}, tuple(stops))


def _through(tape: Tape, node: gs.Node, given: Mapping[int, list[gs.Tensor]]) -> list[gs.Tensor | None] | None:
    """Return the gradient of each input of a node, or None where no rule says it."""
    rule = _RULES.get(node.op)
    plain = node.domain in (None, "", "ai.onnx") and [id(item) in given for item in node.outputs].count(True) == 1
    if rule is None or not plain or id(node.outputs[0]) not in given:
        return None
    return rule(tape, node, _sum(tape, given[id(node.outputs[0])]))


def _sum(tape: Tape, parts: Sequence[gs.Tensor]) -> gs.Tensor:
    return parts[0] if len(parts) == 1 else tape.op("Sum", *parts)


def _leading(nodes: Sequence[gs.Node], weights: Collection[gs.Constant]) -> set[int]:
    """Return the ids of the nodes that depend on one of the weights."""
    reached = {id(item) for item in weights}
    found = set()
    for node in nodes:
        if any(id(item) in reached for item in _read(node)):
            found.add(id(node))
            reached.update(id(item) for item in node.outputs)
    return found


def _read(node: gs.Node) -> list[gs.Tensor]:
    """Return what a node reads, also inside of bodies."""
    return [*node.inputs, *(item for body in bodies(node) for inner in body.nodes for item in _read(inner))]
