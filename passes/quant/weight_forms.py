"""How weights of a few bits are written into a graph.

``nbits``
    MatMul and Gemm become MatMulNBits, Gather becomes GatherBlockQuantized (both of ONNX Runtime): the weights stay in
    a few bits in memory, too. Other weights as in ``load``.
``qdq``
    DequantizeLinear in front of the plain operator, for any runtime. ONNX Runtime turns that into MatMulNBits for
    matrices (those with a bias only in blocks), and decodes all other weights again in each run.
``load``
    Cast (8 bits) or Gather (4 bits: each byte picks a pair of levels), then Mul with the scales. This hangs from
    initializers only, so constant folding evaluates it once, at load, and what runs is the float model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.compensate import Integers
from graphopt.ir.clean import disconnect
from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, Node, Variable, tensor_names
from graphopt.model import Model
from graphopt.passes.quant.weight_sites import Use, Weight

Format = Literal["nbits", "qdq", "load"]

BLOCKED = 21  # first opset whose DequantizeLinear knows blocks and 4 bits
SLICES = 10  # first opset whose Slice takes its bounds as inputs
_PER_AXIS = 13  # first opset whose DequantizeLinear has an axis
_ACTIVATIONS = 4  # accuracy level of MatMulNBits: activations in 8 bits, which is what has quick kernels
_KERNEL_BLOCKS = (16, 32, 64, 128, 256)
_CONTRIB = "com.microsoft"
_CODES = {
    (4, True): np.dtype(ml_dtypes.int4),
    (4, False): np.dtype(ml_dtypes.uint4),
    (8, True): np.dtype(np.int8),
    (8, False): np.dtype(np.uint8),
}  # by bits, and whether there are no zero points


def refusal(form: Format, bits: int, block: int, opset: int) -> str:
    """Return why a form cannot be written in an opset, or an empty text."""
    if form == "qdq" and opset < (BLOCKED if bits == 4 or block else _PER_AXIS):
        return f"DequantizeLinear of {bits} bits{' in blocks' if block else ''} needs opset {BLOCKED}, not {opset}"
    if block and opset < SLICES:
        return f"blocks need opset {SLICES} or later, not {opset}"
    return ""


class Writer:
    """Replaces weights by what stores them.

    Args:
        model: Edited in place.
        bits: Bits of a code, 4 or 8.
        form: How codes are written.
    """

    def __init__(self, model: Model, bits: int, form: Format) -> None:
        self._model = model
        self._taken = tensor_names(model.graph)
        self._bits = bits
        self._form = form
        self._common: dict[str, gs.Constant] = {}

    def write(self, weight: Weight, integers: Integers) -> None:
        """Let all users of a weight read its codes."""
        block = kernel_block(integers.codes.shape[2], integers.block, self._bits)
        whole = integers.codes.shape[2] % block == 0
        if self._form == "nbits" and all(_has_kernel(use, whole=whole) for use in weight.uses):
            self._kernels(weight, integers)
        elif self._form == "qdq" and all(self._takes_dequantized(use) for use in weight.uses):
            self._dequantized(weight, integers)
        else:
            _redirect(weight.constant, self._decoded(weight, integers))

    def _takes_dequantized(self, use: Use) -> bool:
        """Whether ONNX Runtime has no trouble with DequantizeLinear in front of this reading of a weight.

        Its fusions of it look for the codes in the reader's own graph, so that bodies that capture them do not load.
        """
        return use.role != "table" and use.scope is self._model.graph

    def _kernels(self, weight: Weight, integers: Integers) -> None:
        """Store codes [rows, blocks, bytes of a block], which MatMulNBits and GatherBlockQuantized share."""
        rows, inputs = integers.codes.shape[1:]
        block = kernel_block(inputs, integers.block, self._bits)
        count = -(-inputs // block)
        codes = np.zeros((rows, count * block), np.uint8)
        codes[:, :inputs] = integers.codes[0] + (2 ** (self._bits - 1) if integers.zero is None else 0)
        packed = packed_codes(codes, self._bits)
        stored = [
            self._stored(weight, "codes", packed.reshape(rows, count, -1)),
            self._stored(weight, "scales", _repeated(integers.scale[0], count)),
        ]
        if integers.zero is not None:
            points = _repeated(integers.zero[0], count).astype(np.uint8)
            stored.append(self._stored(weight, "zero_points", packed_codes(points, self._bits)))
        for use in weight.uses:
            if use.role == "matrix":
                self._matrix(use, (inputs, rows), block, stored)
            else:
                self._table(use, packed.shape[1], block, stored)

    def _matrix(self, use: Use, shape: tuple[int, int], block: int, stored: Sequence[gs.Tensor]) -> None:
        """MatMul, Gemm: MatMulNBits, and an Add for the bias of a Gemm."""
        node, output, data = use.node, use.node.outputs[0], use.node.inputs[0]
        bias = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
        disconnect(node)
        product = output if bias is None else self._variable(f"{output.name}_unbiased")
        attrs = {"K": shape[0], "N": shape[1], "bits": self._bits, "block_size": block, "accuracy_level": _ACTIVATIONS}
        self._append(use.scope, "MatMulNBits", [data, *stored], product, attrs, domain=_CONTRIB)
        if bias is not None:
            self._append(use.scope, "Add", [product, bias], output)

    def _table(self, use: Use, width: int, block: int, stored: Sequence[gs.Tensor]) -> None:
        """Gather: GatherBlockQuantized, which reads the codes as [rows, bytes of a row]."""
        codes, *rest = stored
        flat = self._node(
            use.scope, "Reshape", [codes, self._shared("row", np.array([0, width]))], f"{codes.name}_rows"
        )
        output, indices = use.node.outputs[0], use.node.inputs[1]
        disconnect(use.node)
        attrs = {"bits": self._bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
        self._append(use.scope, "GatherBlockQuantized", [flat, indices, *rest], output, attrs, domain=_CONTRIB)

    def _dequantized(self, weight: Weight, integers: Integers) -> None:
        """DequantizeLinear: of a matrix one for each user, which ONNX Runtime fuses with it; else one for all."""
        if all(use.role == "matrix" for use in weight.uses):
            stored = self._dequantizer(weight, integers, turned=True)
            for use in weight.uses:
                self._product(use, self._node(use.scope, "DequantizeLinear", *stored))
            return
        decoded = self._node(self._model.graph, "DequantizeLinear", *self._dequantizer(weight, integers, turned=False))
        _redirect(weight.constant, self._shaped(weight, decoded))

    def _product(self, use: Use, decoded: gs.Tensor) -> None:
        """Let a node read a decoded [inputs, rows]; a plain Gemm becomes MatMul and Add, which fuses more often."""
        node = use.node
        node.inputs[use.index] = decoded
        node.attrs.pop("transB", None)
        if node.op != "Gemm" or not _is_plain(node):
            return
        output, (data, _, *bias) = node.outputs[0], node.inputs
        biased = bool(bias) and not bias[0].is_empty()
        disconnect(node)
        product = self._variable(f"{output.name}_unbiased") if biased else output
        self._append(use.scope, "MatMul", [data, decoded], product)
        if biased:
            self._append(use.scope, "Add", [product, bias[0]], output)

    def _dequantizer(
        self, weight: Weight, integers: Integers, *, turned: bool
    ) -> tuple[list[gs.Tensor], str, dict[str, int]]:
        """Return inputs, name and attributes of a node that decodes to [rows, inputs] or, turned, [inputs, rows]."""
        groups, rows, inputs = integers.codes.shape
        parts: list[np.ndarray] = [
            integers.codes.reshape(groups * rows, inputs),
            integers.scale.reshape(groups * rows, -1),
        ]
        kind = _CODES[self._bits, integers.zero is None]
        parts += [] if integers.zero is None else [integers.zero.reshape(groups * rows, -1)]
        parts = [part.T if turned else part for part in parts]
        attrs = {"axis": int(turned)}
        if parts[1].size == groups * rows:
            parts[1:] = [part.ravel() for part in parts[1:]]
        else:
            attrs = {"axis": int(not turned), "block_size": integers.block}
        types = (kind, np.dtype(np.float32), kind)
        names = ("codes", "scales", "zero_points")
        stored = [
            self._stored(weight, *item) for item in zip(names, map(np.ndarray.astype, parts, types), strict=False)
        ]
        return stored, f"{weight.constant.name}_decoded", attrs

    def _decoded(self, weight: Weight, integers: Integers) -> gs.Tensor:
        """Add a decoder that constant folding evaluates, and return what takes the place of the weight."""
        groups, rows, inputs = integers.codes.shape
        name, graph = weight.constant.name, self._model.graph
        count = integers.scale.shape[-1]
        codes = np.zeros((groups * rows, count * integers.block), np.int16)
        codes[:, :inputs] = integers.codes.reshape(groups * rows, inputs)
        values = self._reshape(self._levels(weight, codes, signed=integers.zero is None), [-1, count, integers.block])
        if integers.zero is not None:
            points = self._stored(weight, "zero_points", integers.zero.reshape(-1, count, 1).astype(np.uint8))
            values = self._node(graph, "Sub", [values, self._float(points)], f"{name}_centred")
        scales = self._stored(weight, "scales", integers.scale.reshape(-1, count, 1))
        values = self._reshape(self._node(graph, "Mul", [values, scales], f"{name}_scaled"), [groups * rows, -1])
        if codes.shape[1] > inputs:
            bounds = [self._shared(f"{end}", np.array([end])) for end in (0, inputs, 1)]
            values = self._node(graph, "Slice", [values, *bounds], f"{name}_cut")
        return self._shaped(weight, values)

    def _levels(self, weight: Weight, codes: np.ndarray, *, signed: bool) -> gs.Tensor:
        """Return a decoder of codes to whole numbers in float, in order but of any shape.

        An odd number of codes is stored in whole bytes: the half byte left over would have to be cut off.
        """
        if self._bits == 8 or codes.size % 2:
            return self._float(self._stored(weight, "codes", codes.astype(np.int8 if signed else np.uint8)))
        pairs = np.arange(256)[:, None] >> np.array([0, 4]) & 15
        levels = self._float(self._shared(f"levels{int(signed)}", (pairs - 8 * signed).astype(np.int8)))
        packed = packed_codes((codes + 8 * signed).reshape(1, -1), 4)
        kind = {"to": int(onnx.TensorProto.INT32)}
        stored = self._stored(weight, "codes", packed.ravel())
        index = self._node(self._model.graph, "Cast", [stored], f"{stored.name}_index", kind)
        return self._node(self._model.graph, "Gather", [levels, index], f"{stored.name}_levels")

    def _shaped(self, weight: Weight, values: gs.Tensor) -> gs.Tensor:
        """Return decoded rows in the shape of the weight."""
        values = self._reshape(values, weight.shape)
        if weight.turned:
            values = self._node(
                self._model.graph, "Transpose", [values], f"{weight.constant.name}_turned", {"perm": [1, 0]}
            )
        values.dtype, values.shape = np.dtype(np.float32), list(weight.constant.shape)
        return values

    def _float(self, tensor: gs.Tensor) -> gs.Tensor:
        kind = {"to": int(onnx.TensorProto.FLOAT)}
        return self._node(self._model.graph, "Cast", [tensor], f"{tensor.name}_float", kind)

    def _reshape(self, tensor: gs.Tensor, shape: Sequence[int]) -> gs.Tensor:
        wanted = self._shared("shape_" + "_".join(map(str, shape)), np.array(shape))
        return self._node(self._model.graph, "Reshape", [tensor, wanted], f"{tensor.name}_shaped")

    def _stored(self, weight: Weight, suffix: str, values: np.ndarray) -> gs.Constant:
        return Constant(unique_name(f"{weight.constant.name}_{suffix}", self._taken), np.ascontiguousarray(values))

    def _shared(self, name: str, values: np.ndarray) -> gs.Constant:
        """Return a small constant that all decoders have in common."""
        if name not in self._common:
            self._common[name] = Constant(unique_name(f"decode/{name}", self._taken), values)
        return self._common[name]

    def _variable(self, name: str) -> gs.Variable:
        return Variable(unique_name(name, self._taken))

    def _node(
        self, scope: gs.Graph, op: str, inputs: Sequence[gs.Tensor], name: str, attrs: Mapping[str, Any] | None = None
    ) -> gs.Tensor:
        output = self._variable(name)
        self._append(scope, op, inputs, output, attrs)
        return output

    def _append(
        self,
        scope: gs.Graph,
        op: str,
        inputs: Sequence[gs.Tensor],
        output: gs.Tensor,
        attrs: Mapping[str, Any] | None = None,
        *,
        domain: str | None = None,
    ) -> None:
        node = Node(op, f"{output.name}/{op}", dict(attrs or {}), list(inputs), [output])
        node.domain = domain
        scope.nodes.append(node)


def kernel_block(inputs: int, block: int, bits: int) -> int:
    """Return the block of a kernel's codes: a power of two, the wanted one, or for one scale a row the cheapest.

    Args:
        inputs: Inputs of a row.
        block: Inputs that share a scale.
        bits: Bits of a code.
    """
    if block < inputs:
        return block
    return min(_KERNEL_BLOCKS, key=lambda size: (-(-inputs // size) * (size * bits // 8 + 4), -size))


def packed_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return codes [rows, count] as bytes, uint8 [rows, bytes]; of two codes of 4 bits the first is the lower half."""
    codes = codes.astype(np.uint8)
    if bits == 8:
        return codes
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return np.asarray(even[:, 0::2] | even[:, 1::2] << 4)


def _repeated(per_block: np.ndarray, count: int) -> np.ndarray:
    """Return [rows, blocks] as [rows, count]: one value a row serves all blocks."""
    return np.repeat(per_block, count, axis=1) if per_block.shape[1] == 1 else per_block


def _has_kernel(use: Use, *, whole: bool) -> bool:
    """Whether ONNX Runtime has a kernel that reads codes in this place; rows of a table come out in whole blocks."""
    if use.role != "matrix":
        return use.role == "table" and whole
    return _is_plain(use.node) and len(use.node.inputs[0].shape or ()) >= 2


def _is_plain(node: gs.Node) -> bool:
    """Whether a MatMul or Gemm multiplies its first input, as it is, and adds at most a bias."""
    attrs = node.attrs
    return float(attrs.get("alpha", 1.0)) == 1.0 == float(attrs.get("beta", 1.0)) and not attrs.get("transA", 0)


def _redirect(old: gs.Tensor, new: gs.Tensor) -> None:
    """Let every user of a tensor read another one."""
    for node in list(old.outputs):
        for index, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[index] = new
