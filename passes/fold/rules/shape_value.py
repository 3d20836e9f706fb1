"""Integer vectors that follow from known shapes become constants."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fold.derive import HANDLERS
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.workbench import Workbench, is_standard


class ShapeValue(Rule):
    """``Shape(x)[i] -> n`` and sums, products, slices and concatenations of such, where each element is known.

    The dimensions must follow from the model's inputs; shapes that the file merely states are not relied on.
    """

    name = "shape-value"
    ops = frozenset(HANDLERS) - {"Constant"}

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Replace the node's output by a constant."""
        output = node.outputs[0]
        known, dtype = bench.known(output), bench.types[output].dtype
        if known is None or known.numbers is None or dtype is None or len(node.outputs) != 1:
            return False
        if dtype.kind not in "iub" or not _fits(known.numbers, dtype):
            return False
        if bench.is_result(output) and all(bench.uses(tensor) > 1 or not tensor.inputs for tensor in node.inputs):
            return False  # one node for another, and a larger one
        if not bench.is_result(output) and all(_goes_too(user, bench) for user in output.outputs):
            return False  # nobody will read it
        values = np.array(known.numbers, dtype)
        growth = bench.value_cost(output, values) - bench.freed(node)
        if growth > max(bench.budget, 0):
            return f"its value would take {growth} bytes more"
        bench.make_constant(output, values.reshape(()) if known.scalar else values)
        return True


def _goes_too(user: gs.Node, bench: Workbench) -> bool:
    """Return whether the rule replaces this user of a known value as well."""
    known = bench.known(user.outputs[0]) if user.op in ShapeValue.ops and is_standard(user) else None
    return known is not None and known.numbers is not None and bench.types[user.outputs[0]].dtype is not None


def _fits(numbers: tuple[int, ...], dtype: np.dtype) -> bool:
    if dtype.kind == "b":
        return all(number in (0, 1) for number in numbers)
    limits = np.iinfo(dtype)
    return all(limits.min <= number <= limits.max for number in numbers)
