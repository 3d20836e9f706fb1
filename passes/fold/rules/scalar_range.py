"""Bounds of a range in the form that the standard asks for."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Node
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.workbench import Workbench
from graphopt.shapes import TensorType


class ScalarRange(Rule):
    """``Range(a, b, c) -> Range(squeeze(a), squeeze(b), squeeze(c))`` for bounds that are vectors of one element.

    Such a model is not valid, but ONNX Runtime takes it as long as it does not know the shapes beforehand. Other rules
    make them known, and then it does not.
    """

    name = "scalar-range"
    ops = frozenset({"Range"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Give the node scalars."""
        vectors = [index for index, tensor in enumerate(node.inputs) if bench.types[tensor].shape == (1,)]
        for index in vectors:
            tensor = node.inputs[index]
            values = bench.small_array(tensor)
            if values is not None:
                bench.set_input(node, index, bench.new_constant("scalar", values.reshape(()), node))
                continue
            scalar = bench.new_variable(tensor.name, TensorType(bench.types[tensor].dtype, ()))
            shape = bench.new_constant("shape", np.array([], np.int64), node)
            bench.add(Node("Reshape", node.name, {}, [tensor, shape], [scalar]), node)
            bench.set_input(node, index, scalar)
        return bool(vectors)
