"""A normalization that is written out becomes the operator."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Node
from graphopt.passes.fold.rules.match import fuse, made_by, operand, over_last_axis, reads_only_inside, square_of
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.workbench import Workbench

_OPSET = 17  # the first with LayerNormalization


class LayerNorm(Rule):
    """``(x - mean) / sqrt(mean((x - mean)^2) + eps) * gamma + beta -> LayerNormalization(x, gamma, beta)``.

    Over the last axis, in float32, with constant gamma and beta of the size of that axis, where nobody reads what is
    computed in between. An older operator set is raised to 17 (option `max_opset`). ONNX Runtime makes the same of it
    by itself.
    """

    name = "layer-norm"
    ops = frozenset({"Add"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Replace the nine nodes."""
        found = _match(node, bench)
        if found is None:
            return False
        source, gamma, beta, epsilon, inner = found
        shape = bench.types[source].shape
        size = shape[-1] if shape else None
        weights = (bench.constant(gamma), bench.constant(beta))
        if any(weight is None or tuple(weight.shape) != (size,) for weight in weights):
            return "gamma and beta are not constants with one number for each place of the last axis"
        if bench.types[source].dtype != np.float32:
            return "it is not float32"
        if not reads_only_inside(inner, bench):
            return "what is computed in between is used elsewhere too"
        reason = bench.raise_opset(inner, _OPSET)
        if reason:
            return reason
        attrs = {"axis": -1, "epsilon": epsilon}
        fuse(inner, Node("LayerNormalization", node.name, attrs, [source, gamma, beta], []), bench)
        return True


def _match(node: gs.Node, bench: Workbench) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor, float, list[gs.Node]] | None:
    """Return x, gamma, beta, epsilon and the nodes of a normalization that ends at `node`."""
    scaled, beta = operand(node, "Mul", bench)
    normed, gamma = operand(scaled, "Div", bench)
    if scaled is None or normed is None or beta is None or gamma is None:
        return None
    centered = made_by(normed.inputs[0], "Sub", bench)
    root = made_by(normed.inputs[1], "Sqrt", bench)
    shifted = made_by(root.inputs[0], "Add", bench) if root is not None else None
    variance, offset = operand(shifted, "ReduceMean", bench)
    epsilon = bench.small_array(offset)
    if centered is None or root is None or variance is None or epsilon is None or epsilon.size != 1:
        return None
    squared = square_of(variance.inputs[0], centered.outputs[0], bench)
    mean = made_by(centered.inputs[1], "ReduceMean", bench)
    if squared is None or mean is None or mean.inputs[0] is not centered.inputs[0]:
        return None
    if not all(over_last_axis(step, bench) for step in (mean, variance)):
        return None
    inner = [node, scaled, normed, root, shifted, variance, squared, centered, mean]
    return centered.inputs[0], gamma, beta, float(epsilon.reshape(())), inner
