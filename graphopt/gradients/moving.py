"""Gradients of what moves, sums up or normalizes elements."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.gradients.tape import Tape


def reshaped(tape: Tape, node: gs.Node, gradient: gs.Tensor) -> list[gs.Tensor | None] | None:
    """The shape of before."""
    return [tape.like(gradient, node.inputs[0]), *[None] * (len(node.inputs) - 1)]


def transposed(tape: Tape, node: gs.Node, gradient: gs.Tensor) -> list[gs.Tensor | None] | None:
    """The axes of before."""
    rank = len(tape.shape(node.inputs[0]))
    order = node.attrs.get("perm", list(range(rank))[::-1])
    return [tape.op("Transpose", gradient, perm=[int(axis) for axis in np.argsort(order)])]


def joined(tape: Tape, node: gs.Node, gradient: gs.Tensor) -> list[gs.Tensor | None] | None:
    """Each operand its part."""
    axis, start, found = int(node.attrs["axis"]), 0, list[gs.Tensor | None]()
    for item in node.inputs:
        stop = start + tape.shape(item)[axis]
        found.append(tape.op("Slice", gradient, np.array([start]), np.array([stop]), np.array([axis])))
        start = stop
    return found


def sliced(tape: Tape, node: gs.Node, gradient: gs.Tensor) -> list[gs.Tensor | None] | None:
    """``y = x[i:j]`` -> dy at i to j and zero elsewhere; i known and counted from the front, no steps."""
    image, starts, _, *rest = node.inputs
    if not all(isinstance(item, gs.Constant) or item.is_empty() for item in (starts, *rest)):
        return None
    rank = len(tape.shape(image))
    axes = [int(axis) for axis in rest[0].values] if rest and not rest[0].is_empty() else range(rank)
    steps = rest[1].values if len(rest) > 1 and not rest[1].is_empty() else np.ones(1)
    if (starts.values < 0).any() or (steps != 1).any():
        return None
    before = np.zeros(rank, np.int64)
    before[[axis % rank for axis in axes][: starts.values.size]] = starts.values
    behind = tape.op("Sub", tape.op("Sub", tape.op("Shape", image), tape.op("Shape", node.outputs[0])), before)
    pads = tape.op("Concat", before, behind, axis=0)
    return [tape.op("Pad", gradient, pads), *[None] * (len(node.inputs) - 1)]


def picked(tape: Tape, node: gs.Node, gradient: gs.Tensor) -> list[gs.Tensor | None] | None:
    """``y = x[i]`` -> dy at i and zero elsewhere; i a number."""
    table, index = node.inputs
    if not isinstance(index, gs.Constant) or index.shape:
        return None
    size = tape.shape(table)
    axis = int(node.attrs.get("axis", 0)) % len(size)
    place = np.zeros([count if each == axis else 1 for each, count in enumerate(size)], np.float32)
    np.moveaxis(place, axis, 0)[int(index.values)] = 1
    return [tape.op("Mul", tape.op("Unsqueeze", gradient, np.array([axis])), place), None]


def summed(tape: Tape, node: gs.Node, gradient: gs.Tensor) -> list[gs.Tensor | None] | None:
    """A sum gives dy to all of its parts, a mean the same over their number.

    The largest element gets all of it, and of a length each gets ``dy x / y``.
    """
    image, output, rest = node.inputs[0], node.outputs[0], [None] * (len(node.inputs) - 1)
    rank = len(tape.shape(image))
    if node.op == "GlobalAveragePool":
        axes = list(range(2, rank))
    elif "axes" in node.attrs:
        axes = list(node.attrs["axes"])
    elif len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant):
        axes = [int(axis) for axis in node.inputs[1].values]
    else:
        return None
    if not node.attrs.get("keepdims", 1) and node.op != "GlobalAveragePool":
        gradient = tape.op("Unsqueeze", gradient, np.array(sorted(axis % rank for axis in axes)))
        output = tape.op("Unsqueeze", output, np.array(sorted(axis % rank for axis in axes)))
    if node.op == "ReduceMax":
        return [tape.op("Mul", gradient, tape.where(tape.op("Equal", image, output))), *rest]
    if node.op == "ReduceL2":
        return [tape.op("Mul", image, tape.op("Div", gradient, output)), *rest]
    spread = tape.op("Expand", gradient, tape.op("Shape", image))
    if node.op != "ReduceSum":
        sizes = (tape.op("Cast", tape.op("Size", item), to=1) for item in (node.outputs[0], image))
        spread = tape.op("Mul", spread, tape.op("Div", *sizes))
    return [spread, *rest]


def largest(tape: Tape, node: gs.Node, gradient: gs.Tensor) -> list[gs.Tensor | None] | None:
    """The largest element of a window gets dy; not for windows that overlap or reach over the edge."""
    kernel = list(node.attrs["kernel_shape"])
    strides = list(node.attrs.get("strides", [1] * len(kernel)))
    apart = all(step >= size for step, size in zip(strides, kernel, strict=True))
    if not apart or any(node.attrs.get("pads", [0])) or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    if set(node.attrs.get("dilations", [1])) != {1} or node.attrs.get("ceil_mode", 0):
        return None
    image = node.inputs[0]
    _, places = tape.ops("MaxPool", image, count=2, kernel_shape=kernel, strides=strides)
    shape = tape.op("Shape", image)
    return [tape.op("MaxUnpool", gradient, places, shape, kernel_shape=kernel, strides=strides)]


def repeated(tape: Tape, node: gs.Node, gradient: gs.Tensor) -> list[gs.Tensor | None] | None:
    """``y`` repeats each position of x -> ``dx`` is the sum over its copies.

    Not between positions, not by factors that are no whole numbers, and not of batch or channels.
    """
    pairs = (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil"))
    how = [node.attrs.get("coordinate_transformation_mode", "half_pixel")]
    how.append(node.attrs.get("nearest_mode", "round_prefer_floor"))
    scales = node.inputs[2] if len(node.inputs) > 2 else None
    if node.attrs.get("mode", "nearest") != "nearest" or tuple(how) not in pairs or "axes" in node.attrs:
        return None
    if not isinstance(scales, gs.Constant) or scales.values.size < 3:
        return None
    factors = scales.values
    if (factors != np.round(factors)).any() or (factors < 1).any() or (factors[:2] != 1).any():
        return None
    copies = [int(factor) for factor in factors[2:]]
    mean = tape.op("AveragePool", gradient, kernel_shape=copies, strides=copies)
    return [tape.op("Mul", mean, float(np.prod(copies))), *[None] * (len(node.inputs) - 1)]


def softmax(tape: Tape, node: gs.Node, gradient: gs.Tensor) -> list[gs.Tensor | None] | None:
    """``dx = y (dy - sum y dy)``."""
    given = tape.op("Mul", gradient, node.outputs[0])
    whole = tape.total(given, [int(node.attrs.get("axis", -1))])
    return [tape.op("Sub", given, tape.op("Mul", node.outputs[0], whole))]


def layer_norm(tape: Tape, node: gs.Node, gradient: gs.Tensor) -> list[gs.Tensor | None] | None:
    """With ``h = (x - mean) / s``, ``y = g h + b``: ``dx = (e - mean e - h mean e h) / s``, ``e = g dy``; last axis."""
    image, gain, *added = node.inputs
    rank = len(tape.shape(image))
    if int(node.attrs.get("axis", -1)) % rank != rank - 1:
        return None
    centred = tape.op("Sub", image, tape.mean(image, [-1]))
    variance = tape.mean(tape.op("Mul", centred, centred), [-1])
    scale = tape.op("Sqrt", tape.op("Add", variance, float(node.attrs.get("epsilon", 1e-5))))
    normal = tape.op("Div", centred, scale)
    inner = tape.op("Mul", gradient, gain)
    along = tape.op("Mul", normal, tape.mean(tape.op("Mul", inner, normal), [-1]))
    rest = tape.op("Sub", tape.op("Sub", inner, tape.mean(inner, [-1])), along)
    found = [tape.op("Div", rest, scale), tape.op("Mul", gradient, normal), *([gradient] if added else [])]
    own = (tape.unbroadcast(each, item, node.outputs[0]) for each, item in zip(found[1:], node.inputs[1:], strict=True))
    return [found[0], *own]


def transposed_convolution(tape: Tape, node: gs.Node, gradient: gs.Tensor) -> list[gs.Tensor | None] | None:
    """``dx`` is the convolution that it is the transpose of, ``db`` the sum of dy; the kernel's is not given."""
    known = {"strides", "dilations", "pads", "group", "kernel_shape", "output_padding"}
    if not set(node.attrs) <= known | {"auto_pad"} or node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    attrs = {key: value for key, value in node.attrs.items() if key not in ("output_padding", "auto_pad")}
    space = range(2, len(tape.shape(node.inputs[0])))
    bias = [tape.total(gradient, [0, *space], keep=False)] if len(node.inputs) > 2 else []
    return [tape.op("Conv", gradient, node.inputs[1], **attrs), None, *bias]
