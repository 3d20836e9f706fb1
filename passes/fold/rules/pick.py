"""One slice of an axis, and the axis dropped."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Node
from graphopt.passes.fold.rules.rule import Outcome, Rule
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
        starts, ends, axes, steps = (
            _numbers(cut, position, name, bench)
            for position, name in ((1, "starts"), (2, "ends"), (3, "axes"), (4, "steps"))
        )
        dropped = _numbers(node, 1, "axes", bench)
        shape = bench.types[cut.inputs[0]].shape
        if shape is None or not starts or not ends or len(starts) != 1 or not dropped or len(dropped) != 1:
            return False
        axis = (axes or [0])[0] % len(shape)
        if axis != dropped[0] % len(shape) or (steps or [1]) != [1] or not _single(starts[0], ends[0]):
            return False
        output = node.outputs[0]
        index = bench.new_constant("index", np.array(starts[0], np.int64), node)
        picked = Node("Gather", node.name, {"axis": axis}, [cut.inputs[0], index], [])
        bench.add(picked, node)
        bench.remove(node)
        bench.remove(cut)
        picked.outputs.append(output)
        bench.touch([picked, *output.outputs])
        return True


def _numbers(node: gs.Node, position: int, attribute: str, bench: Workbench) -> list[int] | None:
    if isinstance(node.attrs.get(attribute), list):
        return list(node.attrs[attribute])
    return bench.ints(node.inputs[position]) if len(node.inputs) > position else None


def _single(start: int, end: int) -> bool:
    """Return whether a slice from `start` to `end` has one element, whatever the length of the axis."""
    return end >= _TO_THE_END if start == -1 else end == start + 1
