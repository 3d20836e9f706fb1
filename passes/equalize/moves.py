"""Operators that move channels to other axes, or go over all that is not channels."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.equalize.roles import Axes, Known, Roles, rank_of


def transpose(node: gs.Node, known: Known) -> Roles:
    axes = known(node.inputs[0])
    rank = rank_of(node.outputs[0])
    if not axes or not rank:
        return Roles()
    order = [int(axis) for axis in node.attrs.get("perm", range(rank - 1, -1, -1))]
    moved = tuple(order.index(axis) for axis in axes)
    return Roles(hands_on=[(node.inputs[0], moved)]) if moved == tuple(sorted(moved)) else Roles()


def reshape(node: gs.Node, known: Known) -> Roles:
    """Reshape, Flatten, Squeeze: channels on the last axes may be split or joined, whatever happens to those before."""
    axes, shape, found = known(node.inputs[0]), node.inputs[0].shape, node.outputs[0].shape
    if not axes:
        return Roles()
    tail = _tail(shape, axes)
    if not tail:
        return Roles()
    wanted, size = int(np.prod([shape[axis] for axis in axes])), 1
    moved: list[int] = []
    for axis in range(len(found) - 1, -1, -1):
        if size == wanted:
            break
        if not isinstance(found[axis], int):
            return Roles()
        size *= found[axis]
        moved.insert(0, axis)
    return Roles(hands_on=[(node.inputs[0], tuple(moved))]) if size == wanted else Roles()


def _tail(shape: list[int | str | None], axes: Axes) -> bool:
    """Whether axes are the last ones, except for others of size 1."""
    rest = [axis for axis in range(axes[0], len(shape)) if axis not in axes]
    return all(shape[axis] == 1 for axis in rest) and all(isinstance(shape[axis], int) for axis in axes)


def reduce(node: gs.Node, known: Known) -> Roles:
    """Reductions within a channel."""
    axes, rank = known(node.inputs[0]), len(node.inputs[0].shape or ())
    over = node.inputs[1].values if len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant) else None
    over = node.attrs.get("axes") if over is None else over
    if not axes or over is None:
        return Roles()
    gone = {int(axis) % rank for axis in over}
    if gone & set(axes):
        return Roles()
    kept = bool(node.attrs.get("keepdims", 1))
    moved = axes if kept else tuple(axis - sum(item < axis for item in gone) for axis in axes)
    return Roles(hands_on=[(node.inputs[0], moved)])
