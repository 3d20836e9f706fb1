"""A normalization by the root of the mean square that is written out becomes the operator."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.passes.fold.rules.match import (
    fuse_normalization,
    made_by,
    operand,
    over_last_axis,
    scalar,
    shifted,
    square_of,
)
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.workbench import Workbench, is_standard

_OPSET = 23  # the first with RMSNormalization


class RMSNorm(Rule):
    """``x / sqrt(mean(x^2) + eps) * gamma -> RMSNormalization(x, gamma)``.

    The division may be a product with a reciprocal, or with the power -0.5. Over the last axis, in float32, with a
    constant gamma of the size of that axis, where nobody reads what is computed in between. An older operator set is
    raised to 23 only if the option `max_opset` allows it: runtimes that are older than ONNX 1.18 do not know it.
    """

    name = "rms-norm"
    ops = frozenset({"Mul"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Replace the six nodes."""
        found = _match(node, bench)
        if found is None:
            return False
        shape, gamma = bench.types[found.source].shape, bench.constant(found.gamma)
        if not shape or gamma is None or tuple(gamma.shape) != (shape[-1],):
            return "gamma is not a constant with one number for each place of the last axis"
        if _is_centered(found.source, bench):
            return "its mean is taken off: it is part of a LayerNormalization"
        inputs = (found.source, found.gamma)
        return fuse_normalization("RMSNormalization", found.nodes, inputs, found.epsilon, _OPSET, bench)


@dataclass(frozen=True)
class _Found:
    """The parts of a normalization; its nodes from the last to the first."""

    source: gs.Tensor
    gamma: gs.Tensor
    epsilon: float
    nodes: list[gs.Node]


def _match(node: gs.Node, bench: Workbench) -> _Found | None:
    """Return the normalization whose last product is `node`."""
    if len(node.inputs) != 2:
        return None
    for scaled, gamma in (node.inputs, node.inputs[::-1]):
        normed = bench.producer(scaled)
        if normed is None or not is_standard(normed) or bench.constant(gamma) is None:
            continue
        source, root, between = _divided(normed, bench)
        squares, epsilon = shifted(root, bench)
        mean = made_by(squares, "ReduceMean", bench)
        square = None if mean is None or source is None else square_of(mean.inputs[0], source, bench)
        if source is None or root is None or mean is None or square is None or epsilon is None:
            continue
        if over_last_axis(mean, bench):
            return _Found(source, gamma, epsilon, [node, normed, *between, root, mean, square])
    return None


def _is_centered(tensor: gs.Tensor, bench: Workbench) -> bool:
    """Return whether the tensor is ``x - mean(x)``."""
    difference = made_by(tensor, "Sub", bench)
    mean = None if difference is None else made_by(difference.inputs[1], "ReduceMean", bench)
    return mean is not None and difference is not None and mean.inputs[0] is difference.inputs[0]


def _divided(node: gs.Node, bench: Workbench) -> tuple[gs.Tensor | None, gs.Node | None, list[gs.Node]]:
    """Return x, the node that makes s, and the nodes between, of ``x / sqrt(s)`` in any form."""
    if node.op == "Div":
        root = made_by(node.inputs[1], "Sqrt", bench)
        return (None, None, []) if root is None else (node.inputs[0], bench.producer(root.inputs[0]), [root])
    inverse, source = operand(node, "Reciprocal", bench) if node.op == "Mul" else (None, None)
    if inverse is not None:
        root = made_by(inverse.inputs[0], "Sqrt", bench)
        return (None, None, []) if root is None else (source, bench.producer(root.inputs[0]), [inverse, root])
    power, source = operand(node, "Pow", bench) if node.op == "Mul" else (None, None)
    if power is None or scalar(power.inputs[1], bench) != -0.5:
        return None, None, []
    return source, bench.producer(power.inputs[0]), [power]
