"""Operators that treat every channel by itself."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.passes.prune.channels.tracker import Layout, Tracker


def elementwise(node: gs.Node, tracker: Tracker) -> None:
    """Follow an operator with numpy's broadcasting; constants are cut along, activations are tied."""
    shapes = [tracker.shape(tensor) for tensor in node.inputs]
    found = [(tracker.layout(tensor), shape) for tensor, shape in zip(node.inputs, shapes, strict=True)]
    followed = [(layout, shape) for layout, shape in found if layout is not None]
    if not followed:
        return
    if any(shape is None for shape, tensor in zip(shapes, node.inputs, strict=True) if not tensor.is_empty()):
        return tracker.stop(node, "the shape of an input is not known")
    known = [(layout, len(shape)) for layout, shape in followed if shape is not None]
    from_end = {layout.axis - rank for layout, rank in known}
    if len(from_end) != 1:
        return tracker.stop(node, "it combines channels with other axes")
    (position,) = from_end
    first = known[0][0].atoms
    for layout, _ in known[1:]:
        tracker.tie(first, layout.atoms)
    for index, (tensor, shape) in enumerate(zip(node.inputs, shapes, strict=True)):
        wide = shape is not None and len(shape) >= -position and shape[position] != 1
        if wide and tracker.layout(tensor) is None:
            tracker.cut(node, index, position, first)
        if not wide and not tensor.is_empty():
            tracker.bent.append(first)  # all channels get the same
    rank = max(len(shape) for shape in shapes if shape is not None)
    for output in node.outputs:
        tracker.follow(output, rank + position, first)


def batch_norm(node: gs.Node, tracker: Tracker) -> None:
    """Follow a normalization with statistics and parameters of each channel."""
    given = tracker.layout(node.inputs[0])
    if given is None:
        return
    if given.axis != 1 or len([output for output in node.outputs if output.name]) != 1:
        return tracker.stop(node, "it normalizes another axis, or gives its statistics away")
    for index in range(1, len(node.inputs)):
        tracker.cut(node, index, 0, given.atoms)
    tracker.follow(node.outputs[0], 1, given.atoms)


def layer_norm(node: gs.Node, tracker: Tracker) -> None:
    """Follow a normalization over the last axes; one over channels keeps them, as their number enters its mean."""
    given, shape = tracker.layout(node.inputs[0]), tracker.shape(node.inputs[0])
    if given is None:
        return
    axis = int(node.attrs.get("axis", -1))
    if shape is None or given.axis >= axis % len(shape):
        return tracker.stop(node, "it normalizes over the channels: without some of them its statistics would differ")
    tracker.follow(node.outputs[0], given.axis, given.atoms)


def softmax(node: gs.Node, tracker: Tracker) -> None:
    """Follow an operator over one axis (before opset 13: over all from it on) that is not the channels'."""
    given, shape = tracker.layout(node.inputs[0]), tracker.shape(node.inputs[0])
    if given is None:
        return
    old = tracker.opset < 13
    axis = int(node.attrs.get("axis", 1 if old else -1))
    normalized = shape is None or (given.axis >= axis % len(shape) if old else given.axis == axis % len(shape))
    if normalized:
        return tracker.stop(node, f"{node.op} is over the channels")
    _pass(node, tracker, given)


def quantize(node: gs.Node, tracker: Tracker) -> None:
    """Follow QuantizeLinear and DequantizeLinear of an activation, with one scale or one a channel."""
    given, scale = tracker.layout(node.inputs[0]), tracker.shape(node.inputs[1])
    if given is None:
        return
    if scale is None or len(scale) > 1:
        return tracker.stop(node, "its scales are computed, or in blocks")
    shape = tracker.shape(node.inputs[0])
    if scale and shape is not None and scale[0] != 1:
        if given.axis != int(node.attrs.get("axis", 1)) % len(shape):
            return tracker.stop(node, "its scales lie along another axis")
        for index in (1, 2):
            tracker.cut(node, index, 0, given.atoms)
    _pass(node, tracker, given)


def window(node: gs.Node, tracker: Tracker) -> None:
    """Follow a pool: it moves over the axes from 2 on."""
    given = tracker.layout(node.inputs[0])
    if given is None:
        return
    if given.axis > 1 or len([output for output in node.outputs if output.name]) != 1:
        return tracker.stop(node, "it pools over channels, or gives indices that count them")
    _pass(node, tracker, given)


def _pass(node: gs.Node, tracker: Tracker, given: Layout) -> None:
    tracker.follow(node.outputs[0], given.axis, given.atoms)
