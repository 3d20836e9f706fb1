"""Decoders: small chains of standard operators that ONNX Runtime folds once, at load.

Every decoder hangs from initializers only and uses operators whose CPU kernels level-1 constant folding evaluates
(Cast, Gather, Reshape, Add, Mul, Slice, CumSum, Expand), so the running graph is the plain one. All of them exist from
opset 11 on. A decoder of 4 bits::

    lut = Gather(levels, table4)        # [256, 2]: the two values that a byte stands for; table4 is shared by all
    weight = Reshape(Gather(lut, Cast(codes)), shape) [* scale]

The decoded tensor has the weight's name; what else belongs to it is called ``NAME/...``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, Node, Variable
from graphopt.passes.pack.bits import bits_for, code_table, pack_codes, padded_count, plane_widths
from graphopt.passes.pack.sizes import constant_bytes, node_bytes

Shared = dict[tuple[Any, ...], gs.Tensor]
_INDEX = np.dtype(np.int32)


class DecoderBuilder:
    """Collects the decoders of one graph.

    Args:
        taken: Names in use, extended by those of the decoders that are kept.
    """

    def __init__(self, taken: set[str]) -> None:
        self._taken = taken
        self._shared: Shared = {}
        self.nodes: list[Node] = []

    def draft(self, name: str) -> Draft:
        """Return an empty decoder for the weight of this name, to be filled and then kept or discarded."""
        return Draft(name, set(self._taken), dict(self._shared))

    def keep(self, draft: Draft) -> None:
        """Take up a decoder; drafts that were started before must not be kept any more."""
        self._taken |= draft.taken
        self._shared = draft.shared
        self.nodes.extend(draft.nodes)


class Draft:
    """A decoder in the making.

    Attributes:
        nbytes: What it adds to the file, exactly.
        nodes: Its nodes in topological order.
        taken: Names in use, its own included.
        shared: Tensors that decoders have in common, by content.
    """

    def __init__(self, name: str, taken: set[str], shared: Shared) -> None:
        self.name = name
        self.taken = taken
        self.shared = shared
        self.nodes: list[Node] = []
        self.nbytes = 0

    def discard(self) -> None:
        """Unlink the nodes from what they share with others."""
        for node in self.nodes:
            node.inputs.clear()
            node.outputs.clear()

    def finish(self, tensor: gs.Tensor, name: str) -> gs.Tensor:
        """Give the decoded tensor, the output of the last node, its name."""
        node = self.nodes[-1]
        self.nbytes -= node_bytes(node)
        tensor.name = node.name = name
        self.nbytes += node_bytes(node)
        return tensor

    def levels(self, codes: np.ndarray, levels: np.ndarray) -> gs.Tensor:
        """Return ``levels[codes]``, in order but of any shape.

        Args:
            codes: Index of the level of each element, any shape.
            levels: Values, [count]; at most 256.
        """
        bits = bits_for(len(levels))
        if len(plane_widths(bits)) > 1 or bits == 8:
            return self.node("Gather", [self.stored("levels", levels), self.codes(codes, bits)])
        full = np.concatenate([levels, np.repeat(levels[-1:], 2**bits - len(levels))])  # the table has every code
        lut = self.node("Gather", [self.stored("levels", full), self._table(bits, 0)])
        values = self.node("Gather", [lut, self._bytes(pack_codes(codes, bits)[0])])
        return self._cut(values, codes, bits)

    def codes(self, codes: np.ndarray, bits: int) -> gs.Tensor:
        """Return the codes as int32, in order but of any shape."""
        planes, widths = pack_codes(codes, bits), plane_widths(bits)
        if bits == 8:
            return self._bytes(planes[0])
        total: gs.Tensor | None = None
        rest = bits
        for plane, width in zip(planes, widths, strict=True):
            rest -= width
            part = self.node("Gather", [self._table(width, rest), self._bytes(plane)])
            part = self._flat(part) if len(widths) > 1 else part
            total = part if total is None else self.node("Add", [total, part])
        assert total is not None
        return self._cut(total, codes, bits)

    def cast(self, tensor: gs.Tensor, dtype: np.dtype) -> gs.Tensor:
        """Return the tensor as another type."""
        return self.node("Cast", [tensor], to=int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))))

    def reshape(self, flat: gs.Tensor, shape: Sequence[int]) -> gs.Tensor:
        """Return a flat tensor in a shape."""
        return self.node("Reshape", [flat, self.common("shape", np.array(shape, np.int64))])

    def stored(self, suffix: str, values: np.ndarray) -> gs.Constant:
        """Return an initializer of the decoder's own."""
        constant = Constant(unique_name(f"{self.name}/{suffix}", self.taken), np.ascontiguousarray(values))
        self.nbytes += constant_bytes(constant)
        return constant

    def common(self, name: str, values: np.ndarray) -> gs.Tensor:
        """Return a constant that all decoders have in common; equal ones are one object."""
        key = ("constant", str(values.dtype), values.shape, values.tobytes())
        if key not in self.shared:
            constant = Constant(unique_name(f"decode/{name}", self.taken), values)
            self.nbytes += constant_bytes(constant)
            self.shared[key] = constant
        return self.shared[key]

    def node(self, op: str, inputs: Sequence[gs.Tensor], *, name: str = "", **attrs: Any) -> gs.Tensor:
        """Add a node and return its output, which is called after the operator unless `name` says otherwise."""
        output = Variable(unique_name(name or f"{self.name}/{op}", self.taken))
        node = Node(op, output.name, inputs=list(inputs), outputs=[output], attrs=attrs)
        self.nodes.append(node)
        self.nbytes += node_bytes(node)
        return output

    def _bytes(self, values: np.ndarray) -> gs.Tensor:
        return self.cast(self.stored("codes", values), _INDEX)

    def _flat(self, tensor: gs.Tensor) -> gs.Tensor:
        return self.reshape(tensor, [-1])

    def _cut(self, tensor: gs.Tensor, codes: np.ndarray, bits: int) -> gs.Tensor:
        """Drop what belongs to the codes that only fill the last byte."""
        if padded_count(codes.size, bits) == codes.size:
            return tensor
        flat = self._flat(tensor)
        ends = [self.common(f"index{end}", np.array([end], np.int64)) for end in (0, codes.size)]
        return self.node("Slice", [flat, *ends])

    def _table(self, width: int, shift: int) -> gs.Tensor:
        """Return the codes of every byte, moved up by `shift` bits, int32 [256, 8 / width]; one for all decoders."""
        key = ("table", width, shift)
        if key not in self.shared:
            name = f"decode/table{width}" + (f"_{shift}" if shift else "")
            if shift:
                by = self.common(f"times{1 << shift}", np.array(1 << shift, _INDEX))
                self.shared[key] = self.node("Mul", [self._table(width, 0), by], name=name)
            else:
                stored = self.common(f"bytes{width}", code_table(width))
                self.shared[key] = self.node(
                    "Cast", [stored], name=name, to=int(onnx.helper.np_dtype_to_tensor_dtype(_INDEX))
                )
        return self.shared[key]
