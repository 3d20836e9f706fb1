"""Operators that sum over channels: they take some and give others."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.prune.channels.tracker import Tracker

_COMPUTED = "its weight is computed by the graph; run fold before"


def conv(node: gs.Node, tracker: Tracker) -> None:
    """Follow ``Y[n, o] = sum_i W[o, i] * X[n, i]``, with W of [out, in / groups, *kernel].

    A depthwise convolution keeps its channels. In any other grouped one, the n-th channels of all groups are tied, on
    either side, so that groups stay of equal size.
    """
    weight, given = node.inputs[1], tracker.layout(node.inputs[0])
    if not isinstance(weight, gs.Constant) or (given is not None and given.axis != 1):
        return tracker.stop(node, _COMPUTED)
    group, outputs = int(node.attrs.get("group", 1)), weight.shape[0]
    if weight.shape[1] == 1 and group > 1:
        return _depthwise(node, tracker)
    if given is not None:
        shares = given.atoms.reshape(group, -1)
        tracker.tie(shares[:1], shares)
        tracker.cut(node, 1, 1, shares[0], "takes")
    first = tracker.fresh(outputs // group)
    _give(node, tracker, axis=0, atoms=np.tile(first, group))
    tracker.work(node, given.atoms[: weight.shape[1]] if given is not None else None, first)


def _depthwise(node: gs.Node, tracker: Tracker) -> None:
    given = tracker.layout(node.inputs[0])
    if given is None:
        return
    atoms = np.repeat(given.atoms, node.inputs[1].shape[0] // len(given.atoms))
    for index in (1, 2):
        tracker.cut(node, index, 0, atoms)
    tracker.count(node, given.atoms, lambda cut, kept: cut.attrs.update(group=kept))
    tracker.work(node, atoms)
    tracker.follow(node.outputs[0], 1, atoms)


def conv_transpose(node: gs.Node, tracker: Tracker) -> None:
    """Follow a transposed convolution, W of [in, out / groups, *kernel]; the channels of a grouped one stay."""
    weight, given = node.inputs[1], tracker.layout(node.inputs[0])
    if not isinstance(weight, gs.Constant) or (given is not None and given.axis != 1):
        return tracker.stop(node, _COMPUTED)
    if int(node.attrs.get("group", 1)) != 1:
        return tracker.stop(node, "transposed convolutions in groups have no rule")
    if given is not None:
        tracker.cut(node, 1, 0, given.atoms, "takes")
    atoms = tracker.fresh(weight.shape[1])
    _give(node, tracker, axis=1, atoms=atoms)
    tracker.work(node, given.atoms if given is not None else None, atoms)


def _give(node: gs.Node, tracker: Tracker, *, axis: int, atoms: np.ndarray) -> None:
    tracker.cut(node, 1, axis, atoms, "gives")
    tracker.cut(node, 2, 0, atoms)
    tracker.follow(node.outputs[0], 1, atoms)


def gemm(node: gs.Node, tracker: Tracker) -> None:
    """Follow ``Y = alpha * X W + beta * C`` with X of [n, in]."""
    weight, given = node.inputs[1], tracker.layout(node.inputs[0])
    if not isinstance(weight, gs.Constant) or node.attrs.get("transA", 0) or (given is not None and given.axis != 1):
        return tracker.stop(node, _COMPUTED)
    rows = 0 if node.attrs.get("transB", 0) else 1
    if given is not None:
        tracker.cut(node, 1, 1 - rows, given.atoms, "takes")
    atoms = tracker.fresh(weight.shape[rows])
    tracker.cut(node, 1, rows, atoms, "gives")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if isinstance(bias, gs.Constant) and bias.shape and bias.shape[-1] == len(atoms):
        tracker.cut(node, 2, -1, atoms)
    elif isinstance(bias, gs.Constant):
        tracker.bent.append(atoms)  # one number for all
    elif bias is not None and not bias.is_empty() and not isinstance(bias, gs.Constant):
        tracker.stop(node, "what it adds is no constant")
        tracker.lock(atoms, node.name, "what it adds is no constant")
    tracker.follow(node.outputs[0], 1, atoms)
    tracker.work(node, given.atoms if given is not None else None, atoms)


def matmul(node: gs.Node, tracker: Tracker) -> None:
    """Follow ``Y[..., o] = sum_i X[..., i] W[i, o]``, or a product of two activations."""
    left, right = node.inputs[:2]
    if not isinstance(left, gs.Constant) and not isinstance(right, gs.Constant):
        return _activations(node, tracker)
    given, shape = tracker.layout(left), tracker.shape(left)
    if not isinstance(right, gs.Constant) or len(right.shape) != 2 or shape is None or len(shape) < 2:
        return tracker.stop(node, "only products with a constant matrix on the right have a rule")
    takes = given is not None and given.axis == len(shape) - 1
    if given is not None and not takes:
        tracker.lock(given.atoms, node.name, "its rows are channels, and so are its columns")
    if given is not None and takes:
        tracker.cut(node, 1, 0, given.atoms, "takes")
    atoms = tracker.fresh(right.shape[1])
    tracker.cut(node, 1, 1, atoms, "gives")
    tracker.follow(node.outputs[0], len(shape) - 1, atoms)
    tracker.work(node, given.atoms if given is not None and takes else None, atoms)


def _activations(node: gs.Node, tracker: Tracker) -> None:
    """Follow a product of two activations: channels are summed over, or number the matrices of a stack (heads)."""
    left, right = (tracker.layout(tensor) for tensor in node.inputs[:2])
    shapes = [tracker.shape(tensor) for tensor in node.inputs[:2]]
    if left is None and right is None:
        return
    tracker.bent.extend(layout.atoms for layout in (left, right) if layout is not None)
    if shapes[0] is None or shapes[1] is None or left is None or right is None:
        return tracker.stop(node, "it multiplies channels with an activation whose channels are not known")
    rank = max(len(shapes[0]), len(shapes[1]))
    if left.axis == len(shapes[0]) - 1 and right.axis == len(shapes[1]) - 2:
        tracker.tie(left.atoms, right.atoms)
        return tracker.work(node, left.atoms)
    from_end = left.axis - len(shapes[0])
    if from_end != right.axis - len(shapes[1]) or from_end >= -2 or len(left.atoms) != len(right.atoms):
        return tracker.stop(node, "it multiplies channels of one side with other axes of the other")
    tracker.tie(left.atoms, right.atoms)
    tracker.follow(node.outputs[0], rank + from_end, left.atoms)
    tracker.work(node, left.atoms)
