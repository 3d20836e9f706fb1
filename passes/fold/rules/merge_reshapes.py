"""Two changes of shape in a row become one."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fold.rules.reshape_target import constant_target
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.rules.sketch import Sketch, merge
from graphopt.passes.fold.workbench import Workbench, is_standard

_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


class MergeReshapes(Rule):
    """``B(A(x)) -> Reshape(x, shape of the result)`` for A, B among Reshape, Flatten, Squeeze, Unsqueeze.

    A Transpose that only moves axes of size 1 and a Gather of the only element of an axis count as well, beside one of
    those.
    Nobody else may read A's output, and the resulting shape must be known but for one dimension and those that it has
    in common with x.
    """

    name = "merge-reshapes"
    ops = _RESHAPES | {"Transpose", "Gather"}

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Replace the node and its producer."""
        first = bench.producer(node.inputs[0])
        if first is None or not is_standard(first) or not {first.op, node.op} & _RESHAPES:
            return False
        if not all(_only_reshapes(step, bench) for step in (first, node)):
            return False
        if not bench.only_reader(node, node.inputs[0]):
            return False
        source, output = first.inputs[0], node.outputs[0]
        wanted = bench.values.dims(output)
        target = None if wanted is None else constant_target(wanted, bench.values.dims(source))
        if target is None:
            return f"its shape is not known well enough to skip the {first.op} before it"
        return merge([node, first], Sketch("Reshape", [source, np.array(target, np.int64)], "shape"), bench)


def _only_reshapes(node: gs.Node, bench: Workbench) -> bool:
    if node.op in _RESHAPES:
        return True
    shape = bench.types[node.inputs[0]].shape if node.op in ("Transpose", "Gather") else None
    if shape is None:
        return False
    if node.op == "Gather":
        index = bench.small_array(node.inputs[1])
        only = index is not None and index.shape == () and int(index) in (0, -1)
        return only and bool(shape) and shape[node.attrs.get("axis", 0)] == 1
    perm = node.attrs.get("perm")
    order = perm if isinstance(perm, list) else list(reversed(range(len(shape))))
    moved = [axis for axis in order if shape[axis] != 1]
    return moved == sorted(moved)
