"""A normalization that is written out becomes the operator."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.passes.fold.rules.match import (
    fuse_normalization,
    made_by,
    operand,
    over_last_axis,
    square_of,
)
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.workbench import Workbench

_OPSET = 17  # the first with LayerNormalization


class LayerNorm(Rule):
    """``(x - mean) / sqrt(mean((x - mean)^2) + eps) * gamma + beta -> LayerNormalization(x, gamma, beta)``.

    With or without beta. Over the last axis, in float32, with constant gamma and beta of the size of that axis, where
    nobody reads what is computed in between. An older operator set is raised to 17 (option `max_opset`). ONNX Runtime
    makes the same of it by itself.
    """

    name = "layer-norm"
    ops = frozenset({"Add", "Mul"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Replace the nine nodes."""
        found = _match(node, bench)
        if found is None:
            return False
        shape = bench.types[found.source].shape
        weights = [bench.constant(tensor) for tensor in found.weights]
        if not shape or any(weight is None or tuple(weight.shape) != (shape[-1],) for weight in weights):
            return "gamma and beta are not constants with one number for each place of the last axis"
        inputs = (found.source, *found.weights)
        return fuse_normalization("LayerNormalization", found.nodes, inputs, found.epsilon, _OPSET, bench)


@dataclass(frozen=True)
class _Found:
    """The parts of a normalization; gamma and perhaps beta, and its nodes from the last to the first."""

    source: gs.Tensor
    weights: list[gs.Tensor]
    epsilon: float
    nodes: list[gs.Node]


def _match(node: gs.Node, bench: Workbench) -> _Found | None:
    """Return the normalization whose last step is `node`."""
    if node.op == "Mul":
        readers = node.outputs[0].outputs
        if any(reader.op == "Add" and _shifts(reader, bench) for reader in readers):
            return None  # the sum is the last step
        return _scaled(node, [], [], bench)
    product, beta = operand(node, "Mul", bench)
    return None if product is None or beta is None else _scaled(product, [beta], [node], bench)


def _shifts(node: gs.Node, bench: Workbench) -> bool:
    return any(bench.constant(tensor) is not None for tensor in node.inputs)


def _scaled(node: gs.Node, beta: list[gs.Tensor], last: list[gs.Node], bench: Workbench) -> _Found | None:
    """Return the normalization whose product with gamma is `node`."""
    normed, gamma = operand(node, "Div", bench)
    if normed is None or gamma is None:
        return None
    centered = made_by(normed.inputs[0], "Sub", bench)
    root = made_by(normed.inputs[1], "Sqrt", bench)
    added = made_by(root.inputs[0], "Add", bench) if root is not None else None
    variance, offset = operand(added, "ReduceMean", bench)
    epsilon = bench.small_array(offset)
    if centered is None or root is None or added is None or variance is None or epsilon is None or epsilon.size != 1:
        return None
    squared = square_of(variance.inputs[0], centered.outputs[0], bench)
    mean = made_by(centered.inputs[1], "ReduceMean", bench)
    if squared is None or mean is None or mean.inputs[0] is not centered.inputs[0]:
        return None
    if not all(over_last_axis(step, bench) for step in (mean, variance)):
        return None
    nodes = [*last, node, normed, root, added, variance, squared, centered, mean]
    return _Found(centered.inputs[0], [gamma, *beta], float(epsilon.reshape(())), nodes)
