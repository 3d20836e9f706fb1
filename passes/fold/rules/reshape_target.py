"""A target shape that is computed at run time becomes a constant one."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fold.ints import Element, is_dimension
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.workbench import Workbench


class ReshapeTarget(Rule):
    """``Reshape(x, [d0(x), 12, s]) -> Reshape(x, [0, 12, -1])``: 0 copies a dimension of x, -1 stands for the rest.

    Fits where every element of the target is a number, or the dimension of x at the same place, except one. Not where
    the node reads 0 as a size (``allowzero``).
    """

    name = "reshape-target"
    ops = frozenset({"Reshape"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Give the node a constant target."""
        if len(node.inputs) != 2 or bench.constant(node.inputs[1]) is not None or node.attrs.get("allowzero", 0):
            return False
        wanted = bench.known(node.inputs[1])
        if wanted is None or wanted.scalar:
            return False
        target = constant_target(wanted.items, bench.values.dims(node.inputs[0]), copied={0})
        if target is None:
            return False
        values = np.array(target, np.int64)
        bench.set_input(node, 1, bench.new_constant("shape", values, node))
        return True


def constant_target(
    wanted: tuple[Element, ...], dims: tuple[int | str, ...] | None, *, copied: frozenset[int] | set[int] = frozenset()
) -> list[int] | None:
    """Return a constant target that means the same as `wanted` for a tensor of these dimensions, or None.

    Args:
        wanted: Elements of the target.
        dims: Dimensions of the tensor that is reshaped.
        copied: Numbers that stand for the tensor's own dimension: 0 in the target of a Reshape; none in a shape.
    """
    if any(isinstance(item, int) and item not in copied and (item == 0 or item < -1) for item in wanted):
        return None
    unknown = [index for index, item in enumerate(wanted) if not isinstance(item, int)]
    if len(unknown) == 1 and -1 not in wanted:  # better than a copied 0: it holds for empty tensors as well
        return [item if isinstance(item, int) else -1 for item in wanted]
    target: list[int] = []
    for index, item in enumerate(wanted):
        same = dims is not None and index < len(dims) and is_dimension(item) and dims[index] == item
        target.append(item if isinstance(item, int) else 0 if same else -1)
    return target if target.count(-1) <= 1 else None
