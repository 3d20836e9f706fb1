"""Operators that join, take apart or reduce axes, or tell of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Constant
from graphopt.passes.prune.channels.tracker import Tracker, Write


def concat(node: gs.Node, tracker: Tracker) -> None:
    """Follow a Concat: along the channels it lines them up, along another axis it ties them."""
    layouts = [tracker.layout(tensor) for tensor in node.inputs]
    shapes = [tracker.shape(tensor) for tensor in node.inputs]
    followed = [layout for layout in layouts if layout is not None]
    if not followed:
        return
    axes = {layout.axis for layout in followed}
    sizes = [shape for shape in shapes if shape is not None]
    if len(axes) != 1 or len(sizes) != len(shapes):
        return tracker.stop(node, "it joins different axes, or a shape is not known")
    (axis,) = axes
    along = int(node.attrs["axis"]) % len(sizes[0]) == axis
    pieces = []
    for index, (layout, shape) in enumerate(zip(layouts, sizes, strict=True)):
        atoms = layout.atoms if layout is not None else tracker.fresh(shape[axis]) if along else followed[0].atoms
        if layout is None:
            tracker.cut(node, index, axis, atoms)
        pieces.append(atoms)
    if along:
        return tracker.follow(node.outputs[0], axis, np.concatenate(pieces))
    for atoms in pieces[1:]:
        tracker.tie(pieces[0], atoms)
    tracker.follow(node.outputs[0], axis, pieces[0])


def split(node: gs.Node, tracker: Tracker) -> None:
    """Follow a Split; one of the channels gets explicit sizes when they change."""
    given, shape = tracker.layout(node.inputs[0]), tracker.shape(node.inputs[0])
    if given is None:
        return
    parts = [tracker.shape(output) for output in node.outputs]
    if shape is None or any(part is None for part in parts):
        return tracker.stop(node, "a shape is not known")
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    if axis != given.axis:
        for output in node.outputs:
            tracker.follow(output, given.axis, given.atoms)
        return
    if len(node.inputs) > 1 and not isinstance(node.inputs[1], gs.Constant):
        return tracker.stop(node, "the sizes of its parts are computed")
    sizes = [part[axis] for part in parts if part is not None]
    ends = np.cumsum(sizes)
    for index, (output, size, end) in enumerate(zip(node.outputs, sizes, ends, strict=True)):
        piece = given.atoms[end - size : end]
        tracker.follow(output, axis, piece)
        tracker.count(node, piece, _write_part(index, sizes, as_input=tracker.opset >= 13))


def _write_part(index: int, sizes: Sequence[int], *, as_input: bool) -> Write:
    """Return a function that puts the size of one part into a Split, which states all of them from then on."""

    def write(node: gs.Node, kept: int) -> None:
        node.attrs.pop("num_outputs", None)
        if not as_input:
            present = list(node.attrs.get("split", sizes))
            node.attrs["split"] = [*present[:index], kept, *present[index + 1 :]]
            return
        values = np.array(node.inputs[1].values if len(node.inputs) > 1 else sizes, np.int64)
        values[index] = kept
        stated = Constant(f"{node.outputs[0].name}/sizes", values)
        if len(node.inputs) > 1:
            node.inputs[1] = stated
        else:
            node.inputs.append(stated)

    return write


def slice_(node: gs.Node, tracker: Tracker) -> None:
    """Follow a Slice; one of the channels by constants, forward and without gaps, gets new ends."""
    given, shape = tracker.layout(node.inputs[0]), tracker.shape(node.inputs[0])
    if given is None or shape is None:
        return tracker.stop(node, "the shape of its input is not known")
    if len(node.inputs) < 3:
        return tracker.stop(node, "slices of opset 9 and before have no rule")
    axes, steps = (node.inputs[index] if len(node.inputs) > index else None for index in (3, 4))
    if any(tensor is not None and not isinstance(tensor, gs.Constant) for tensor in (axes, steps)):
        return tracker.stop(node, "its axes are computed")
    listed = [int(axis) % len(shape) for axis in axes.values] if axes is not None else list(range(len(shape)))
    if given.axis not in listed:
        return tracker.follow(node.outputs[0], given.axis, given.atoms)
    position = listed.index(given.axis)
    step = int(steps.values[position]) if steps is not None else 1
    if step != 1 or not all(isinstance(node.inputs[index], gs.Constant) for index in (1, 2)):
        return tracker.stop(node, "it takes channels in steps, or by computed ends")
    first, last, _ = slice(*(int(node.inputs[index].values[position]) for index in (1, 2))).indices(len(given.atoms))
    tracker.follow(node.outputs[0], given.axis, given.atoms[first:last])
    if (first, last) != (0, len(given.atoms)):
        tracker.count(node, given.atoms[:first], _write_end(1, position))
        tracker.count(node, given.atoms[:last], _write_end(2, position))


def _write_end(index: int, position: int) -> Write:
    def write(node: gs.Node, kept: int) -> None:
        values = np.array(node.inputs[index].values)
        values[position] = kept
        node.inputs[index] = Constant(f"{node.outputs[0].name}/ends{index}", values)

    return write


def gather(node: gs.Node, tracker: Tracker) -> None:
    """Follow a Gather from another axis than the channels', or from an embedding table, which gives channels."""
    table, indices = node.inputs[:2]
    axis, ranks = int(node.attrs.get("axis", 0)), [tracker.shape(tensor) for tensor in (table, indices)]
    if tracker.layout(indices) is not None or ranks[0] is None or ranks[1] is None:
        return tracker.stop(node, "it looks channels up")
    axis, depth = axis % len(ranks[0]), len(ranks[1])
    if isinstance(table, gs.Constant) and axis == 0 and len(table.shape) == 2 and not isinstance(indices, gs.Constant):
        atoms = tracker.fresh(table.shape[1])
        tracker.cut(node, 0, 1, atoms, "gives")
        return tracker.follow(node.outputs[0], depth, atoms)
    given = tracker.layout(table)
    if given is None:
        return
    if given.axis == axis:
        return tracker.stop(node, "it picks channels by number")
    tracker.follow(node.outputs[0], given.axis + (depth - 1 if axis < given.axis else 0), given.atoms)


def reduce(node: gs.Node, tracker: Tracker) -> None:
    """Follow a reduction of other axes than the channels'."""
    given, shape = tracker.layout(node.inputs[0]), tracker.shape(node.inputs[0])
    if given is None:
        return
    listed = node.inputs[1] if len(node.inputs) > 1 and not node.inputs[1].is_empty() else None
    axes = listed.values if isinstance(listed, gs.Constant) else node.attrs.get("axes", node.attrs.get("axis"))
    if shape is None or (listed is not None and not isinstance(listed, gs.Constant)):
        return tracker.stop(node, "the axes that it reduces are computed")
    all_axes = [] if node.attrs.get("noop_with_empty_axes", 0) else range(len(shape))
    reduced = {int(axis) % len(shape) for axis in (np.atleast_1d(axes) if axes is not None else all_axes)}
    if given.axis in reduced:
        return tracker.stop(node, f"{node.op} is over the channels")
    gone = 0 if node.attrs.get("keepdims", 1) else sum(axis < given.axis for axis in reduced)
    tracker.follow(node.outputs[0], given.axis - gone, given.atoms)


def argument(node: gs.Node, tracker: Tracker) -> None:
    """Follow ArgMax and ArgMin, whose axis is 0 where it is not stated."""
    node.attrs.setdefault("axis", 0)
    reduce(node, tracker)


def shape_of(node: gs.Node, tracker: Tracker) -> None:
    """Let a Shape pass of which no one looks at the number of channels."""
    given, shape = tracker.layout(node.inputs[0]), tracker.shape(node.inputs[0])
    if given is None or shape is None:
        return tracker.stop(node, "the rank of its input is not known")
    first, last, _ = slice(node.attrs.get("start", 0), node.attrs.get("end")).indices(len(shape))
    seen = list(range(first, last))
    if any(_looks_at(reader, node.outputs[0], seen, given.axis) for reader in node.outputs[0].outputs):
        tracker.stop(node, "what it tells of channels is computed with")


def _looks_at(reader: gs.Node, told: gs.Tensor, seen: Sequence[int], axis: int) -> bool:
    """Whether a reader of a shape may use the size of an axis."""
    if axis not in seen:
        return False
    place = seen.index(axis)
    if reader.op == "Gather" and reader.inputs[0] is told and isinstance(reader.inputs[1], gs.Constant):
        return bool((reader.inputs[1].values % len(seen) == place).any())
    if reader.op == "Slice" and all(isinstance(tensor, gs.Constant) for tensor in reader.inputs[1:]):
        start, end = (int(reader.inputs[index].values[0]) for index in (1, 2))
        step = int(reader.inputs[4].values[0]) if len(reader.inputs) > 4 else 1
        return place in range(len(seen))[start:end:step]
    return True
