"""Decoders: small chains of standard operators that ONNX Runtime folds once, at load.

Every decoder hangs from initializers only and uses operators whose CPU kernels level-1 constant folding evaluates
(BitShift, Concat, Slice, Cast, Mul, Add, Gather, Reshape), so the running graph is the plain one. All operators exist
from opset 11 on. The nodes are named after the weight they decode, under ``NAME/decode``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, Node, Variable
from graphopt.passes.pack.bits import pack_codes, plane_widths

PREFIX = "/decode/"


class DecoderBuilder:
    """Adds the nodes of decoders to a graph.

    Args:
        graph: Main graph; bodies read the decoded weight from it.
        taken: Names in use, extended by the new ones.
    """

    def __init__(self, graph: gs.Graph, taken: set[str]) -> None:
        self._graph = graph
        self._taken = taken
        self._shared: dict[tuple[str, bytes], gs.Constant] = {}
        self.nodes: list[Node] = []

    def palette(
        self, name: str, codes: np.ndarray, bits: int, levels: np.ndarray, scale: np.ndarray | None
    ) -> Variable:
        """Return the tensor ``levels[codes] * scale``.

        Args:
            name: Name of the weight.
            codes: Index of the level of each element; its shape is the shape of the result.
            bits: Bits of a code, 1 to 8.
            levels: Values, [count].
            scale: Broadcastable to the result; None for one.
        """
        index = self._codes(name, codes, bits)
        flat = self._node(name, "Gather", [self._constant(name, "levels", levels), index])
        return self._finish(name, flat, codes.shape, scale)

    def integers(
        self, name: str, codes: np.ndarray, bits: int, zero: int, dtype: np.dtype, scale: np.ndarray | None
    ) -> Variable:
        """Return the tensor ``(codes - zero) * scale`` of a floating type, or ``codes - zero`` of an integer type.

        Args:
            name: Name of the weight.
            codes: Unsigned integers; their shape is the shape of the result.
            bits: Bits of a code, 1 to 8.
            zero: What code stands for 0.
            dtype: Type of the result.
            scale: Broadcastable to the result; None for one.
        """
        index = self._codes(name, codes, bits)
        if zero:
            index = self._node(name, "Sub", [index, self._constant(name, f"zero{zero}", np.int32(zero))])
        return self._finish(name, self.cast(name, index, dtype), codes.shape, scale)

    def cast(self, name: str, tensor: gs.Tensor, dtype: np.dtype) -> Variable:
        """Return the tensor as another type."""
        return self._node(name, "Cast", [tensor], to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def stored(self, name: str, suffix: str, values: np.ndarray) -> gs.Constant:
        """Return an initializer that belongs to a decoder."""
        return Constant(unique_name(f"{name}{PREFIX}{suffix}", self._taken), values)

    def _codes(self, name: str, codes: np.ndarray, bits: int) -> gs.Tensor:
        """Return the codes as int32, flat."""
        total: gs.Tensor | None = None
        for number, (plane, width) in enumerate(zip(pack_codes(codes, bits), plane_widths(bits), strict=True)):
            part = self._plane(name, self.stored(name, f"codes{number}", plane), width, codes.size)
            if total is None:
                total = part
                continue
            shifted = self._node(name, "Mul", [total, self._constant(name, f"shift{width}", np.int32(1 << width))])
            total = self._node(name, "Add", [shifted, part])
        assert total is not None
        return total

    def _plane(self, name: str, packed: gs.Constant, width: int, count: int) -> gs.Tensor:
        if width == 8:
            return self.cast(name, packed, np.dtype(np.int32))
        slots = [self._slot(name, packed, width, slot) for slot in range(8 // width)]
        flat: gs.Tensor = self._node(name, "Concat", slots, axis=0)
        if packed.shape[0] * (8 // width) != count:
            ends = [self._constant(name, f"end{end}", np.array([end], np.int64)) for end in (0, count)]
            flat = self._node(name, "Slice", [flat, *ends])
        return self.cast(name, flat, np.dtype(np.int32))

    def _slot(self, name: str, packed: gs.Tensor, width: int, slot: int) -> gs.Tensor:
        """Return bits ``slot * width`` and up of each byte: shift what is above out to the left, then all down."""
        above = 8 - width - slot * width
        shifted = packed
        if above:
            by = self._constant(name, f"bits{above}", np.uint8(above))
            shifted = self._node(name, "BitShift", [shifted, by], direction="LEFT")
        by = self._constant(name, f"bits{8 - width}", np.uint8(8 - width))
        return self._node(name, "BitShift", [shifted, by], direction="RIGHT")

    def _finish(self, name: str, flat: gs.Tensor, shape: Sequence[int], scale: np.ndarray | None) -> Variable:
        sizes = np.array(shape, np.int64)
        shaped = self._node(name, "Reshape", [flat, self._constant(name, f"shape{list(shape)}", sizes)])
        return shaped if scale is None else self._node(name, "Mul", [shaped, self.stored(name, "scale", scale)])

    def _constant(self, name: str, suffix: str, values: Any) -> gs.Constant:
        """Return a small constant; equal ones are one object."""
        values = np.asarray(values)
        key = (f"{values.dtype}{values.shape}", values.tobytes())
        if key not in self._shared:
            self._shared[key] = self.stored(name, suffix, values)
        return self._shared[key]

    def _node(self, name: str, op: str, inputs: Sequence[gs.Tensor], **attrs: Any) -> Variable:
        output = Variable(unique_name(f"{name}{PREFIX}{op}", self._taken))
        node = Node(op, output.name, inputs=list(inputs), outputs=[output], attrs=attrs)
        self.nodes.append(node)
        return output
