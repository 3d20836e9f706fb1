"""One slice of an axis, and the axis dropped."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fold.rules.merge_slices import cut_of
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.rules.sketch import Sketch, merge
from graphopt.passes.fold.workbench import Workbench, is_standard

_TO_THE_END = 2**31 - 1


class Pick(Rule):
    """``Squeeze(Slice(x, i, i + 1, axis), axis) -> Gather(x, i, axis)``, where nobody else reads the slice."""

    name = "pick"
    ops = frozenset({"Squeeze"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Replace both nodes."""
        cut = bench.producer(node.inputs[0])
        if cut is None or cut.op != "Slice" or not is_standard(cut) or not bench.only_reader(node, node.inputs[0]):
            return False
        taken, shape = cut_of(cut, bench), bench.types[cut.inputs[0]].shape
        given = node.attrs.get("axes")
        dropped = given if isinstance(given, list) else bench.ints(node.inputs[1]) if len(node.inputs) > 1 else None
        if taken is None or shape is None or dropped is None or len(taken.axes) != 1 or len(dropped) != 1:
            return False
        axis = taken.axes[0]
        if axis != dropped[0] % len(shape) or taken.steps != [1] or not _single(taken.starts[0], taken.ends[0]):
            return False
        index = np.array(taken.starts[0], np.int64)
        return merge([node, cut], Sketch("Gather", [cut.inputs[0], index], "index", {"axis": axis}), bench)


def _single(start: int, end: int) -> bool:
    """Return whether a slice from `start` to `end` has one element, whatever the length of the axis."""
    return end >= _TO_THE_END if start == -1 else end == start + 1
