"""Operators that give the same elements other axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Constant
from graphopt.passes.prune.channels.tracker import Layout, Tracker, Write

_LARGEST = 2**22  # elements of the axes that are merged and split, for one reshape


def transpose(node: gs.Node, tracker: Tracker) -> None:
    """Follow an exchange of axes."""
    given, shape = tracker.layout(node.inputs[0]), tracker.shape(node.inputs[0])
    if given is None or shape is None:
        return tracker.stop(node, "the rank of its input is not known")
    order = list(node.attrs.get("perm", range(len(shape) - 1, -1, -1)))
    tracker.follow(node.outputs[0], order.index(given.axis), given.atoms)


def regroup(node: gs.Node, tracker: Tracker) -> None:
    """Follow Flatten, Squeeze and Unsqueeze, which say nothing about sizes."""
    _follow_elements(node, tracker, None)


def reshape(node: gs.Node, tracker: Tracker) -> None:
    """Follow a Reshape to a constant shape; the size of the followed axis in it is corrected."""
    if tracker.layout(node.inputs[0]) is None:
        return
    target = node.inputs[1]
    if not isinstance(target, gs.Constant):
        return tracker.stop(node, "its shape is computed, and may count channels")
    _follow_elements(node, tracker, [int(size) for size in target.values])


def _follow_elements(node: gs.Node, tracker: Tracker, target: Sequence[int] | None) -> None:
    given, before, after = (
        tracker.layout(node.inputs[0]),
        *(tracker.shape(t) for t in (node.inputs[0], node.outputs[0])),
    )
    if given is None:
        return
    if before is None or after is None or 0 in before:
        return tracker.stop(node, "a shape is not known")
    segment = _segment(before, after, given.axis)
    if segment is None:
        return tracker.stop(node, "it merges channels with too much else")
    options = [option for axis in segment[1] if (option := _option(given, before, after, segment, axis)) is not None]
    options = [
        option for option in options if _fits(target, option[0], given.axis, int(node.attrs.get("allowzero", 0)))
    ]
    if not options:
        return tracker.stop(node, "channels are no axis of what it gives")
    axis, inner, outer = _preferred(options, split_last=given.axis == len(before) - 1)
    atoms = tracker.fresh(after[axis])
    tracker.tie(given.atoms[inner], atoms[outer])
    tracker.follow(node.outputs[0], axis, atoms)
    if target is not None and target[axis] > 0:
        tracker.count(node, atoms, _write_element(1, axis))


def _segment(before: Sequence[int], after: Sequence[int], axis: int) -> tuple[range, range] | None:
    """Return the smallest runs of axes around one, before and after, that hold the same elements."""
    start_before = start_after = left = right = 0
    size_before = size_after = 1
    while left < len(before) or right < len(after):
        if size_before <= size_after and left < len(before):
            size_before, left = size_before * before[left], left + 1
        elif right < len(after):
            size_after, right = size_after * after[right], right + 1
        else:
            size_before, left = size_before * before[left], left + 1
        if size_before == size_after and not (left <= axis or _ones_follow(after, right)):
            small = start_before <= axis < left and size_before <= _LARGEST
            return (range(start_before, left), range(start_after, right)) if small else None
        if size_before == size_after and left <= axis:
            start_before, start_after, size_before, size_after = left, right, 1, 1
    return None


def _ones_follow(shape: Sequence[int], position: int) -> bool:
    return position < len(shape) and shape[position] == 1


def _option(
    given: Layout, before: Sequence[int], after: Sequence[int], segment: tuple[range, range], axis: int
) -> tuple[int, np.ndarray, np.ndarray] | None:
    """Return the index of the followed axis and that of an axis of the result for each pair of them that meets.

    Returns:
        The axis, the indices before and those after, int64 [pairs]; None for an axis of one element.
    """
    if after[axis] == 1 and len(given.atoms) > 1:
        return None
    places = np.arange(math.prod(before[i] for i in segment[0]))
    inner = places // math.prod(before[i] for i in segment[0] if i > given.axis) % before[given.axis]
    outer = places // math.prod(after[i] for i in segment[1] if i > axis) % after[axis]
    pairs = np.unique(inner * after[axis] + outer)
    return axis, pairs // after[axis], pairs % after[axis]


def _preferred(
    options: Sequence[tuple[int, np.ndarray, np.ndarray]], *, split_last: bool
) -> tuple[int, np.ndarray, np.ndarray]:
    """Return the axis to follow: of features split into heads and their width the heads, else the least tied one."""
    exact = [option for option in options if len(option[1]) == max(len(set(option[1])), len(set(option[2])))]
    if split_last and len(exact) > 1:
        return exact[-2]
    return min(exact or options, key=lambda option: len(option[1]))


def _fits(target: Sequence[int] | None, axis: int, followed: int, allowzero: int) -> bool:
    """Whether a target shape stays right when the axis shrinks: no other element may copy the followed axis."""
    if target is None:
        return True
    copies = not allowzero and followed < len(target) and target[followed] == 0
    return not copies or axis == followed


def _write_element(index: int, element: int) -> Write:
    """Return a function that puts a number into an element of a constant input."""

    def write(node: gs.Node, kept: int) -> None:
        values = np.array(node.inputs[index].values)
        values[element] = kept
        node.inputs[index] = Constant(f"{node.inputs[index].name}/{node.outputs[0].name}", values)

    return write


def expand(node: gs.Node, tracker: Tracker) -> None:
    """Follow an Expand whose constant shape leaves the channels alone or counts them."""
    given, shape = tracker.layout(node.inputs[0]), tracker.shape(node.inputs[0])
    if given is None or shape is None:
        return
    target = node.inputs[1]
    if not isinstance(target, gs.Constant):
        return tracker.stop(node, "its shape is computed, and may count channels")
    from_end = given.axis - len(shape)
    sizes = [int(size) for size in target.values]
    rank = max(len(shape), len(sizes))
    tracker.follow(node.outputs[0], rank + from_end, given.atoms)
    if len(sizes) >= -from_end and sizes[from_end] != 1:
        tracker.count(node, given.atoms, _write_element(1, len(sizes) + from_end))


def resize(node: gs.Node, tracker: Tracker) -> None:
    """Follow Resize and Upsample of other axes than the channels'."""
    given = tracker.layout(node.inputs[0])
    if given is None:
        return
    scales = node.inputs[1 if len(node.inputs) == 2 else 2] if len(node.inputs) > 1 else None
    sizes = node.inputs[3] if len(node.inputs) > 3 else None
    axes = node.attrs.get("axes")
    position = list(axes).index(given.axis) if axes is not None and given.axis in axes else given.axis
    tracker.follow(node.outputs[0], given.axis, given.atoms)
    if axes is not None and given.axis not in axes:
        return
    if isinstance(sizes, gs.Constant) and sizes.values[position] == len(given.atoms):
        return tracker.count(node, given.atoms, _write_element(3, position))
    factors = scales.values if isinstance(scales, gs.Constant) else node.attrs.get("scales")
    if factors is None or len(factors) <= position or factors[position] != 1:
        tracker.stop(node, "it may resize channels: its scales are not constant, or not one")


def pad(node: gs.Node, tracker: Tracker) -> None:
    """Follow a Pad of other axes than the channels'."""
    given, shape = tracker.layout(node.inputs[0]), tracker.shape(node.inputs[0])
    if given is None:
        return
    listed = node.inputs[1] if len(node.inputs) > 1 else None
    pads = listed.values if isinstance(listed, gs.Constant) else node.attrs.get("pads")
    plain = len(node.inputs) < 4 or node.inputs[3].is_empty()
    if pads is None or shape is None or not plain or pads[given.axis] or pads[given.axis + len(shape)]:
        return tracker.stop(node, "it pads the channels, or its pads are computed")
    tracker.follow(node.outputs[0], given.axis, given.atoms)
