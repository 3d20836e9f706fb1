"""Slices that share out a whole axis become one split."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fold.rules.merge_slices import cut_of
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.rules.sketch import Sketch, grows
from graphopt.passes.fold.workbench import Workbench, is_standard

_SPLIT_AS_INPUT = 13  # first operator set in which the sizes are an input
Piece = tuple[int, int, gs.Node]


class SlicesToSplit(Rule):
    """``Slice(x, 0, a), Slice(x, a, b), ... -> Split(x, [a, b - a, ...])`` along one axis of known size.

    The slices must cover the axis once, each must have elements, and all must stand in one graph.
    """

    name = "slices-to-split"
    ops = frozenset({"Slice"})
    late = True

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Replace the slices; the first of them is where it starts."""
        cut = cut_of(node, bench)
        shape = bench.types[node.inputs[0]].shape
        if cut is None or shape is None or len(cut.axes) != 1:
            return False
        axis, size = cut.axes[0], shape[cut.axes[0]]
        pieces = _pieces(node, axis, size, bench) if isinstance(size, int) else []
        bounds = [0, *(end for _, end, _ in pieces)]
        starts = [start for start, _, _ in pieces]
        if len(pieces) < 2 or pieces[0][2] is not node or bounds != [*starts, size] or bounds != sorted(set(bounds)):
            return False
        return _merge([piece for _, _, piece in pieces], axis, np.diff(bounds), bench)


def _pieces(node: gs.Node, axis: int, size: int, bench: Workbench) -> list[Piece]:
    """Return start, end and node of each plain slice of the tensor along the axis, in order."""
    found: list[Piece] = []
    for user in {id(user): user for user in node.inputs[0].outputs}.values():
        if user.op != "Slice" or not is_standard(user) or bench.graph_of(user) is not bench.graph_of(node):
            continue
        cut = cut_of(user, bench) if user.inputs[0] is node.inputs[0] else None
        if cut is not None and cut.axes == [axis] and cut.steps == [1]:
            start, end, _ = slice(cut.starts[0], cut.ends[0]).indices(size)
            found.append((start, end, user))
    return sorted(found, key=lambda piece: piece[:2])


def _merge(slices: list[gs.Node], axis: int, sizes: np.ndarray, bench: Workbench) -> Outcome:
    source, outputs = slices[0].inputs[0], [piece.outputs[0] for piece in slices]
    if bench.opset(slices[0]) < _SPLIT_AS_INPUT:
        sketch = Sketch("Split", [source], attrs={"axis": axis, "split": [int(size) for size in sizes]})
    else:
        sketch = Sketch("Split", [source, sizes.astype(np.int64)], "split", {"axis": axis})
    reason = grows(slices, sketch, outputs, bench)
    if reason:
        return reason
    split = sketch.node(slices[0], bench)
    bench.add(split, slices[0])
    for piece in slices:
        bench.remove(piece)
    split.outputs.extend(outputs)
    bench.touch([split, *(user for tensor in outputs for user in tensor.outputs)])
    return True
