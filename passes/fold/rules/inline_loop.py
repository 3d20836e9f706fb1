"""A loop that runs once."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Node
from graphopt.passes.fold.rules.inline_body import inline_body
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.workbench import Workbench
from graphopt.shapes import TensorType

_AXES_AS_INPUT = 13  # first operator set in which Unsqueeze has them so


class InlineLoop(Rule):
    """``Loop(1, true, v) -> the nodes of its body``, with 0 for the iteration, true for the condition, v for the state.

    The trip count must be the constant 1, the condition left out or the constant true. What the body collects over its
    iterations gets the axis that they would be stacked along.
    """

    name = "inline-loop"
    ops = frozenset({"Loop"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Move the nodes of the body into the graph around it."""
        body = node.attrs.get("body")
        if not isinstance(body, gs.Graph) or not _runs_once(node, bench):
            return False
        state = node.inputs[2:]
        if len(body.inputs) != 2 + len(state) or len(body.outputs) != 1 + len(node.outputs):
            return False
        if any(tensor.is_empty() for tensor in state):
            return "a part of its state is left out"
        first = bench.new_constant("first", np.array(0, np.int64), node)
        true = bench.new_constant("true", np.array(True), node)
        given = dict(zip(map(id, body.inputs), [first, true, *state], strict=True))
        for inner, outer in zip(body.inputs, [first, true, *state], strict=True):
            bench.redirect(inner, outer)
        found = [given.get(id(tensor), tensor) for tensor in body.outputs[1:]]
        results = []
        for index, (source, target) in enumerate(zip(found, node.outputs, strict=True)):
            if not target.is_empty():
                collected = index >= len(state)
                results.append((_stacked(source, body, node, bench) if collected else source, target))
        inline_body(body, node, results, bench)
        return True


def _runs_once(node: gs.Node, bench: Workbench) -> bool:
    count = bench.ints(node.inputs[0]) if node.inputs and not node.inputs[0].is_empty() else None
    if count != [1]:
        return False
    if len(node.inputs) < 2 or node.inputs[1].is_empty():
        return True
    condition = bench.small_array(node.inputs[1])
    return condition is not None and condition.size == 1 and bool(condition.reshape(()))


def _stacked(source: gs.Tensor, body: gs.Graph, node: gs.Node, bench: Workbench) -> gs.Tensor:
    """Return a tensor with one more axis in front, made in the body."""
    known = bench.types[source]
    stacked = bench.new_variable(source.name, TensorType(known.dtype, known.shape and (1, *known.shape)))
    unsqueeze = Node("Unsqueeze", "", {}, [source], [stacked])
    if bench.opset(node) < _AXES_AS_INPUT:
        unsqueeze.attrs["axes"] = [0]
    else:
        unsqueeze.inputs.append(bench.new_constant("axes", np.array([0], np.int64), node))
    bench.put(unsqueeze, body)
    return stacked
