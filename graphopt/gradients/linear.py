"""Gradients of linear operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.gradients.tape import Tape

_END = np.iinfo(np.int64).max


def convolution(tape: Tape, node: gs.Node, gradient: gs.Tensor) -> list[gs.Tensor | None] | None:
    """``y = w * x + b`` -> ``dx`` by the turned kernel, ``dw`` by correlating x with dy, ``db`` the sum of dy.

    Not with auto_pad; the kernel of a grouped convolution only where each group reads one channel and gives one.
    """
    if node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    geometry = Geometry.of(tape, node)
    bias = [tape.total(gradient, geometry.all_but_channels, keep=False)] if len(node.inputs) > 2 else []
    return [_of_image(tape, node.inputs, gradient, geometry), _of_kernel(tape, node, gradient, geometry), *bias]


def averaged(tape: Tape, node: gs.Node, gradient: gs.Tensor) -> list[gs.Tensor | None] | None:
    """``y`` is each channel's convolution with a kernel of equal weights -> ``dx`` by the turned one.

    Not with auto_pad or ceil_mode, nor where positions beyond the edge do not count.
    """
    attrs = node.attrs
    if attrs.get("auto_pad", "NOTSET") != "NOTSET" or attrs.get("ceil_mode", 0):
        return None
    if any(attrs.get("pads", [0])) and not attrs.get("count_include_pad", 0):
        return None
    kernel = list(attrs["kernel_shape"])
    weight = tape.const(np.full((1, 1, *kernel), 1 / np.prod(kernel), np.float32))
    image, given = (_apart(tape, item, len(kernel)) for item in (node.inputs[0], gradient))
    return [tape.like(_of_image(tape, [image, weight], given, Geometry(kernel, attrs)), node.inputs[0])]


def _apart(tape: Tape, tensor: gs.Tensor, space: int) -> gs.Tensor:
    """Return each channel as an image of its own, [batch * channels, 1, ...]."""
    sizes = tape.op("Slice", tape.op("Shape", tensor), np.array([2]), np.array([2 + space]))
    return tape.op("Reshape", tensor, tape.op("Concat", np.array([-1, 1]), sizes, axis=0))


class Geometry:
    """How a convolution moves over its image."""

    def __init__(self, kernel: Sequence[int], attrs: dict[str, Any]) -> None:
        space = len(kernel)
        self.kernel = list(kernel)
        self.group = int(attrs.get("group", 1))
        self.strides = list(attrs.get("strides", [1] * space))
        self.dilations = list(attrs.get("dilations", [1] * space))
        self.pads = list(attrs.get("pads", [0] * 2 * space))
        self.all_but_channels = [0, *range(2, 2 + space)]

    @classmethod
    def of(cls, tape: Tape, node: gs.Node) -> Geometry:
        """Return that of a node."""
        return cls(tape.shape(node.inputs[1])[2:], node.attrs)

    @property
    def is_pointwise(self) -> bool:
        """Whether each position reads itself alone."""
        return set(self.kernel) | set(self.strides) == {1} and not any(self.pads)


def _of_image(tape: Tape, inputs: Sequence[gs.Tensor], gradient: gs.Tensor, geometry: Geometry) -> gs.Tensor:
    """Return the gradient of what a convolution reads, from its image and kernel and that of what it gives."""
    image, kernel = inputs[:2]
    reach = [d * (k - 1) for d, k in zip(geometry.dilations, geometry.kernel, strict=True)]
    pads = [reach[i % len(reach)] - pad for i, pad in enumerate(geometry.pads)]
    if set(geometry.strides) == {1} and min(pads) >= 0:
        turned = _turned(tape, kernel, geometry)
        return tape.op("Conv", gradient, turned, group=geometry.group, dilations=geometry.dilations, pads=pads)
    space = len(geometry.kernel)
    attrs = {"strides": geometry.strides, "dilations": geometry.dilations, "group": geometry.group}
    spread = tape.op("ConvTranspose", gradient, kernel, pads=[*geometry.pads[:space], *[0] * space], **attrs)
    # Of the positions at the end some are padding, which a negative pad takes off, and some no stride has reached.
    missing = tape.op("Sub", tape.op("Shape", image), tape.op("Shape", spread))
    return tape.op("Pad", spread, tape.op("Concat", tape.op("Sub", missing, missing), missing, axis=0))


def _turned(tape: Tape, kernel: gs.Tensor, geometry: Geometry) -> gs.Tensor:
    """Return the kernel of the way back, with inputs for outputs and all positions reversed."""
    outputs, inputs, *_ = tape.shape(kernel)
    group, space = geometry.group, len(geometry.kernel)
    if inputs > 1 or outputs > group:
        split = tape.op("Reshape", kernel, np.array([group, outputs // group, inputs, *geometry.kernel]))
        kernel = tape.op("Transpose", split, perm=[0, 2, 1, *range(3, 3 + space)])
        kernel = tape.op("Reshape", kernel, np.array([group * inputs, outputs // group, *geometry.kernel]))
    if set(geometry.kernel) == {1}:
        return kernel
    starts, ends, axes = np.full(space, -1), np.full(space, -_END), np.arange(2, 2 + space)
    return tape.op("Slice", kernel, starts, ends, axes, starts)


def _of_kernel(tape: Tape, node: gs.Node, gradient: gs.Tensor, geometry: Geometry) -> gs.Tensor | None:
    image, kernel = node.inputs[:2]
    outputs, inputs, *_ = tape.shape(kernel)
    if geometry.group == 1 and geometry.is_pointwise:
        flat = [
            tape.op("Reshape", item, np.array([0, size, -1])) for item, size in ((gradient, outputs), (image, inputs))
        ]
        product = tape.op("MatMul", flat[0], tape.op("Transpose", flat[1], perm=[0, 2, 1]))
        return tape.like(tape.total(product, [0]), kernel)
    attrs = {"strides": geometry.dilations, "dilations": geometry.strides, "pads": geometry.pads}
    swap = [1, 0, *range(2, 2 + len(geometry.kernel))]
    if geometry.group == 1:
        pair = (tape.op("Transpose", item, perm=swap) for item in (image, gradient))
        return tape.op("Transpose", _cropped(tape, tape.op("Conv", *pair, **attrs), geometry), perm=swap)
    if inputs > 1 or outputs != geometry.group:
        return None
    batch, channels, *size = tape.shape(image)
    same = [0] * len(size)  # as many positions as there are, which may differ from sample to sample
    wide = tape.op("Reshape", image, np.array([1, batch * channels, *same]))
    narrow = tape.op("Reshape", gradient, np.array([batch * channels, 1, *same]))
    found = _cropped(tape, tape.op("Conv", wide, narrow, group=batch * channels, **attrs), geometry)
    return tape.like(tape.total(tape.op("Reshape", found, np.array([batch, channels, *geometry.kernel])), [0]), kernel)


def _cropped(tape: Tape, found: gs.Tensor, geometry: Geometry) -> gs.Tensor:
    """Return the kernel's own positions; beyond them lie those that no stride reached."""
    space = len(geometry.kernel)
    zeros, axes = np.zeros(space, np.int64), np.arange(2, 2 + space)
    return tape.op("Slice", found, zeros, np.array(geometry.kernel, np.int64), axes)


def product(tape: Tape, node: gs.Node, gradient: gs.Tensor) -> list[gs.Tensor | None] | None:
    """``y = a b`` -> ``da = dy b^T``, ``db = a^T dy``; not with vectors."""
    left, right = node.inputs
    sizes = tape.shape(left), tape.shape(right)
    if min(map(len, sizes)) < 2:
        return None
    back = tape.op("MatMul", gradient, _swapped(tape, right))
    if len(sizes[1]) == 2:
        rows = tape.op("Reshape", left, np.array([-1, sizes[1][0]]))
        given = tape.op("Reshape", gradient, np.array([-1, sizes[1][1]]))
        return [back, tape.op("MatMul", tape.op("Transpose", rows, perm=[1, 0]), given)]
    if len(sizes[0]) != len(sizes[1]) or sizes[0][:-2] != sizes[1][:-2]:
        return None
    return [back, tape.op("MatMul", _swapped(tape, left), gradient)]


def _swapped(tape: Tape, tensor: gs.Tensor) -> gs.Tensor:
    rank = len(tape.shape(tensor))
    return tape.op("Transpose", tensor, perm=[*range(rank - 2), rank - 1, rank - 2])


def gemm(tape: Tape, node: gs.Node, gradient: gs.Tensor) -> list[gs.Tensor | None] | None:
    """``y = a b + c`` -> as for a product, and ``dc = dy``; not with factors or a transposed a."""
    attrs = node.attrs
    if attrs.get("alpha", 1.0) != 1.0 or attrs.get("beta", 1.0) != 1.0 or attrs.get("transA", 0):
        return None
    left, right, *added = node.inputs
    turned = bool(attrs.get("transB", 0))
    back = tape.op("MatMul", gradient, right if turned else tape.op("Transpose", right, perm=[1, 0]))
    pair = (gradient, left) if turned else (left, gradient)
    weight = tape.op("MatMul", tape.op("Transpose", pair[0], perm=[1, 0]), pair[1])
    return [back, weight, *(tape.unbroadcast(gradient, item, node.outputs[0]) for item in added)]
