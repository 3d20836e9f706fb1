"""Two changes of shape in a row become one."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Node
from graphopt.passes.fold.rules.reshape_target import constant_target
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.workbench import Workbench, is_standard

_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


class MergeReshapes(Rule):
    """``B(A(x)) -> Reshape(x, shape of the result)`` for A, B among Reshape, Flatten, Squeeze, Unsqueeze.

    Nobody else may read A's output, and the resulting shape must be known but for one dimension and those that it has
    in common with x.
    """

    name = "merge-reshapes"
    ops = _RESHAPES

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Replace the node and its producer."""
        first = bench.producer(node.inputs[0])
        if first is None or first.op not in _RESHAPES or not is_standard(first):
            return False
        if not bench.only_reader(node, node.inputs[0]):
            return False
        source, output = first.inputs[0], node.outputs[0]
        wanted = bench.values.dims(output)
        target = None if wanted is None else constant_target(wanted, bench.values.dims(source))
        if target is None:
            return f"its shape is not known well enough to skip the {first.op} before it"
        shape = bench.new_constant("shape", np.array(target, np.int64), node)
        merged = Node("Reshape", node.name, {}, [source, shape], [])
        bench.add(merged, node)
        bench.remove(node)
        bench.remove(first)
        merged.outputs.append(output)
        bench.touch([merged, *output.outputs])
        return True
