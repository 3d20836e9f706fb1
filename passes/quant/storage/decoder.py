"""Weights of a few bits that are decoded once, at load: what hangs from initializers only, constant folding evaluates.

Cast (8 bits) or Gather (4 bits: each byte picks a pair of levels), Sub of the zero points, Mul with the scales, and
what brings the rows into the shape of the weight. What runs is the float model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.compensate import Integers
from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, Node, Variable, tensor_names
from graphopt.model import Model
from graphopt.passes.quant.storage.weights import Weight


class Decoder:
    """Writes nodes that decode weights.

    Args:
        model: Edited in place.
        bits: Bits of a code, 4 or 8.
    """

    def __init__(self, model: Model, bits: int) -> None:
        self._model = model
        self._taken = tensor_names(model.graph)
        self._bits = bits
        self._common: dict[str, gs.Constant] = {}

    def decoded(self, weight: Weight, integers: Integers) -> gs.Tensor:
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


def packed_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return codes [rows, count] as bytes, uint8 [rows, bytes]; of two codes of 4 bits the first is the lower half."""
    codes = codes.astype(np.uint8)
    if bits == 8:
        return codes
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return np.asarray(even[:, 0::2] | even[:, 1::2] << 4)
