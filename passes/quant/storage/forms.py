"""How weights of a few bits are written into a graph.

``nbits``
    MatMul and Gemm become MatMulNBits, Gather becomes GatherBlockQuantized (both of ONNX Runtime): the weights stay in
    a few bits in memory, too. Other weights as in ``load``.
``qdq``
    DequantizeLinear in front of the plain operator, for any runtime. ONNX Runtime turns that into MatMulNBits for
    matrices (those with a bias only in blocks), and decodes all other weights again in each run.
``load``
    Decoded once, at load, so that the float model runs; see `weight_decoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from graphopt.compensate import Integers
from graphopt.ir.clean import disconnect
from graphopt.model import Model
from graphopt.passes.quant.storage.decoder import Decoder, packed_codes
from graphopt.passes.quant.storage.weights import Use, Weight

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


class Writer(Decoder):
    """Replaces weights by what stores them.

    Args:
        model: Edited in place.
        bits: Bits of a code, 4 or 8.
        form: How codes are written.
    """

    def __init__(self, model: Model, bits: int, form: Format) -> None:
        super().__init__(model, bits)
        self._form = form

    def write(self, weight: Weight, integers: Integers) -> None:
        """Let all users of a weight read its codes."""
        block = kernel_block(integers.codes.shape[2], integers.block, self._bits)
        whole = integers.codes.shape[2] % block == 0
        if self._form == "nbits" and all(_has_kernel(use, whole=whole) for use in weight.uses):
            self._kernels(weight, integers)
        elif self._form == "qdq" and all(self._takes_dequantized(use) for use in weight.uses):
            self._dequantized(weight, integers)
        else:
            redirect(weight.constant, self.decoded(weight, integers))

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
        redirect(weight.constant, self._shaped(weight, decoded))

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


def redirect(old: gs.Tensor, new: gs.Tensor) -> None:
    """Let every user of a tensor read another one."""
    for node in list(old.outputs):
        for index, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[index] = new
