"""Decoders: small chains of standard operators that ONNX Runtime folds once, at load.

Every decoder hangs from initializers only and uses operators whose CPU kernels level-1 constant folding evaluates, so
the running graph is the plain one: Add, Cast, Clip, ConvInteger, CumSum, Expand, Gather, Mul, Reshape, Round, Slice and
Tile. All of them exist from opset 11 on. A decoder of 4 bits::

    lut = Gather(levels, table4)        # [256, 2]: the two values that a byte stands for; table4 is shared by all
    weight = Reshape(Gather(lut, Cast(codes)), shape) [* scale]

and one of 6 bits, whose codes lie in a plane of 4 bits and one of 2::

    lut = Gather(levels, table6)        # [4096, 2]: the two values of a byte of one plane and half a byte of the other
    weight = Reshape(Gather(lut, Cast(high) + Gather(halves, Cast(low))), shape) [* scale]

and one of 4 bits on a trellis, whose windows are of 8 bits, see `graphopt.compensate.trellis`::

    windows = ConvInteger(Reshape(Gather(table4 as uint8, Cast(codes)), [1, 1, .., ..]), [16, 1])
    weight = Reshape(Gather(levels, windows), shape) * scale

What costs time at load is looking up: so several elements are looked up at once where it can be. Integers of a weight's
size have two axes or more: those of one axis could be a shape, and ONNX's inference follows each of them, with 70
bytes.

The decoded tensor has the weight's name; initializers that belong to it are called ``NAME/codes`` and so on. Names on
the way from these to it are short, for a file holds each of them three times: ``decode/Gather_7``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.compensate.trellis import lanes, reach
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
        """Return ``levels[codes]``, in the shape of the codes.

        Args:
            codes: Index of the level of each element, any shape but empty.
            levels: Values, [count]; at most 256.
        """
        bits = bits_for(len(levels))
        if bits == 8:
            places = self.widened("codes", np.asarray(codes, np.uint8), _INDEX)
            return self.node("Gather", [self.stored("levels", levels), places])
        full = np.concatenate([levels, np.repeat(levels[-1:], 2**bits - len(levels))])  # the table has every code
        lut = self.node("Gather", [self.stored("levels", full), self._table(bits)])
        return self._shaped(self.node("Gather", [lut, self._rows(codes, bits)]), codes, bits)

    def trellis(self, codes: np.ndarray, levels: np.ndarray, bits: int) -> gs.Tensor:
        """Return the level of the window of each code, float32, in their order.

        A convolution in integers, whose kernel holds powers of two, puts each code behind those before it in its chain.
        It sees one image, for every further one would take time.

        Args:
            codes: Indices, [before, rows, behind]; that of row r follows that of row ``r - lanes(rows)``.
            levels: Of each window, float32 that half precision holds exactly, [2**(bits + MEMORY)].
            bits: Of a code.
        """
        before, rows, behind = codes.shape
        earlier, step = reach(bits), lanes(rows) * behind
        factors = (1 << (bits * np.arange(earlier, -1, -1))).astype(np.uint8)
        if before == 1:
            image, kernel, gap, pads = (rows * behind // step, step), factors[:, None], 1, [earlier, 0, 0, 0]
        else:
            image, kernel, gap, pads = (before, rows * behind), factors[None], step, [0, earlier * step, 0, 0]
        looked_up = self.node("Gather", [self._narrow_table(bits), self._rows(codes, bits)])
        chains = self._shaped(looked_up, codes.reshape(1, 1, *image), bits)
        shifts = self.common("kernel", kernel[None, None])
        windows = self.node("ConvInteger", [chains, shifts], dilations=[1, gap], pads=pads)
        return self.node("Gather", [self._levels_of_windows(levels, 2 ** ((earlier + 1) * bits)), windows])

    def bits(self, flags: np.ndarray) -> gs.Tensor:
        """Return flags as int32, in their shape."""
        return self._shaped(self.node("Gather", [self._table(1), self._rows(flags, 1)]), flags, 1)

    def widened(self, suffix: str, values: np.ndarray, dtype: np.dtype) -> gs.Tensor:
        """Return values of the decoder's own as another type, in their shape."""
        if not _may_be_shape(values):
            return self.cast(self.stored(suffix, values), dtype)
        return self.reshape(self.cast(self.stored(suffix, values[None]), dtype), (-1,))

    def scaled(self, tensor: gs.Tensor, scale: np.ndarray) -> gs.Tensor:
        """Return a float32 tensor times scales of the decoder's own, float16 or float32."""
        single = np.dtype(np.float32)
        stored: gs.Tensor = self.stored("scale", scale)
        return self.node("Mul", [tensor, stored if scale.dtype == single else self.cast(stored, single)])

    def rounded(self, tensor: gs.Tensor, low: float, high: float) -> gs.Tensor:
        """Return a float32 tensor as int8, rounded to nearest and limited."""
        limits = [self.common(name, np.array(value, np.float32)) for name, value in (("low", low), ("high", high))]
        whole = self.node("Round", [self.node("Clip", [tensor, *limits])])
        return self.cast(whole, np.dtype(np.int8))

    def plain(self, suffix: str, values: np.ndarray) -> gs.Tensor:
        """Return values of the decoder's own as they are."""
        return (
            self.reshape(self.stored(suffix, values[None]), (-1,))
            if _may_be_shape(values)
            else self.stored(suffix, values)
        )

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
        output = Variable(unique_name(name or f"decode/{op}", self.taken))
        node = Node(op, output.name, inputs=list(inputs), outputs=[output], attrs=attrs)
        self.nodes.append(node)
        self.nbytes += node_bytes(node)
        return output

    def _bytes(self, values: np.ndarray) -> gs.Tensor:
        return self.cast(self.stored("codes", values), _INDEX)

    def _shaped(self, values: gs.Tensor, codes: np.ndarray, bits: int) -> gs.Tensor:
        """Return decoded values in the shape of their codes, without those that only fill the last byte."""
        shape = codes.shape if codes.ndim != 1 else (-1,)
        if padded_count(codes.size, bits) == codes.size:
            return self.reshape(values, shape)
        ends = [self.common(f"index{end}", np.array([end], np.int64)) for end in (0, codes.size)]
        values = self.node("Slice", [self.reshape(values, [-1]), *ends])
        return values if codes.ndim == 1 else self.reshape(values, shape)

    def _rows(self, codes: np.ndarray, bits: int) -> gs.Tensor:
        """Return the row of `_table` for each group of codes: a byte of the first plane, and the rest above it."""
        first, *others = pack_codes(codes, bits)
        if not others:
            return self._bytes(first[None])
        group, rest = 8 // plane_widths(bits)[0], list(plane_widths(bits)[1:])
        across = 8 // (group * min(rest))  # groups whose bits share a byte of the narrowest plane
        rows, above = self._bytes(first.reshape(1, -1, across)), 8
        for plane, width in zip(others, rest, strict=True):
            held = group * width
            part = self.node("Gather", [self._shifted(held, above), self._bytes(plane[None])])
            part = part if 8 // held == across else self.reshape(part, [1, -1, across])
            rows, above = self.node("Add", [rows, part]), above + held
        return rows

    def _table(self, bits: int) -> gs.Tensor:
        """Return the codes of every group that fills a byte of the first plane, int32 [rows, codes]; one for all."""
        key = ("table", bits)
        if key not in self.shared:
            widths = plane_widths(bits)
            group = 8 // widths[0]
            table = self._whole(f"bytes{widths[0]}", code_table(widths[0]))
            for width in widths[1:]:
                low = code_table(width)[: 2 ** (group * width), None, :group]
                by = self.common(f"times{2**width}", np.array(2**width, _INDEX))
                high = self.node("Mul", [table, by], name=f"decode/high{bits}")
                both = self.node("Add", [high, self._whole(f"rest{width}", low)], name=f"decode/codes{bits}")
                shape = self.common("rows", np.array([-1, group], np.int64))
                table = self.node("Reshape", [both, shape], name=f"decode/table{bits}")
            self.shared[key] = table
        return self.shared[key]

    def _narrow_table(self, bits: int) -> gs.Tensor:
        """Return `_table` as uint8."""
        key = ("narrow table", bits)
        if key not in self.shared:
            to = int(onnx.TensorProto.UINT8)
            self.shared[key] = self.node("Cast", [self._table(bits)], name=f"decode/narrow{bits}", to=to)
        return self.shared[key]

    def _levels_of_windows(self, levels: np.ndarray, count: int) -> gs.Tensor:
        """Return the levels of a trellis as float32, [count], again and again; weights of the same bits share it.

        So what a convolution gives need not lose the bits that are above those of a window.
        """
        key = ("windows", count, levels.tobytes())
        if key not in self.shared:
            narrow, to = levels.astype(np.float16), int(onnx.TensorProto.FLOAT)
            half = self.common(f"half{len(levels)}", narrow)
            found = self.node("Cast", [half], name=f"decode/levels{len(levels)}", to=to)
            if count > len(levels):
                times = self.common("times", np.array([count // len(levels)], np.int64))
                found = self.node("Tile", [found, times], name=f"decode/levels{count}")
            self.shared[key] = found
        return self.shared[key]

    def _shifted(self, width: int, shift: int) -> gs.Tensor:
        """Return what every byte holds in parts of `width` bits, moved up by `shift` bits, int32 [256, 8 / width]."""
        key = ("shifted", width, shift)
        if key not in self.shared:
            by = self.common(f"times{1 << shift}", np.array(1 << shift, _INDEX))
            whole = self._whole(f"bytes{width}", code_table(width))
            self.shared[key] = self.node("Mul", [whole, by], name=f"decode/shifted{width}_{shift}")
        return self.shared[key]

    def _whole(self, name: str, values: np.ndarray) -> gs.Tensor:
        """Return a shared table of bytes as int32."""
        key = ("whole", name, values.shape)
        if key not in self.shared:
            to = int(onnx.helper.np_dtype_to_tensor_dtype(_INDEX))
            self.shared[key] = self.node("Cast", [self.common(name, values)], name=f"decode/{name}_int32", to=to)
        return self.shared[key]


def _may_be_shape(values: np.ndarray) -> bool:
    return bool(values.ndim == 1 and values.dtype.kind in "iu")
