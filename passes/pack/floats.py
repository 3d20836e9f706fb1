"""A copy of a model whose integer weights are floats, so that they can be rounded as floats are, and the way back.

What a DequantizeLinear makes of int8 weights or of an int32 bias becomes a float weight of the copy, and a product in
integers one in floats: ``MatMulInteger(x, W, z) -> MatMul(Cast(x) - Cast(z), W)``. After rounding, int8 weights have
few distinct values, which a palette holds; the scales stay, so that the runtime fuses as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, Node, Variable, constants, payload, tensor_names
from graphopt.model import Model
from graphopt.passes.pack.forms import Form
from graphopt.passes.pack.rounding import Rounding
from graphopt.passes.pack.storage import rewire
from graphopt.passes.pack.units import Unit, find_units

_PRODUCTS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}
_INTEGERS = frozenset(map(np.dtype, (np.int8, np.int32)))


@dataclass(frozen=True, eq=False)
class Rounded:
    """What became of a weight.

    Attributes:
        form: How its codes can be stored; None where its values tell.
        bias: What was shifted together with it, or None.
    """

    form: Form | None
    bias: gs.Constant | None


@dataclass(frozen=True, eq=False)
class _Twin:
    """A weight of the copy and what it stands for.

    Attributes:
        constant: Float weight of the copy.
        original: Weight of the model.
        scale: Broadcastable to both; None where the original is a float weight itself.
        before: Payload of the copy's weight at first.
    """

    constant: gs.Constant
    original: gs.Constant
    scale: np.ndarray | None
    before: object

    def write_back(self) -> None:
        """Give the original what has become of the copy's weight."""
        if payload(self.constant) is self.before:
            return
        if self.scale is None:
            self.original.values = payload(self.constant)
            return
        limits = np.iinfo(self.original.dtype)
        whole = np.rint(self.constant.values / self.scale.astype(np.float64))
        self.original.values = np.clip(whole, limits.min, limits.max).astype(self.original.dtype)


class Floats:
    """The copy of one model.

    Args:
        model: Stays as it is until `write_back`.
        candidates: Weights that may be rounded, int8 ones included.

    Attributes:
        model: The copy.
        units: Its weights that can be rounded, in graph order.
    """

    def __init__(self, model: Model, candidates: Sequence[gs.Constant]) -> None:
        self.model = model.copy()
        wanted = {id(constant) for constant in candidates}
        pairs = list(zip(constants(self.model.graph), constants(model.graph), strict=True))
        self._twins = [_Twin(copy, original, None, payload(copy)) for copy, original in pairs]
        chosen = [copy for copy, original in pairs if id(original) in wanted]
        originals = {id(copy): original for copy, original in pairs}
        decoded = _decoded(self.model, originals) + _products(self.model, originals)
        self._twins += decoded
        scales = {id(twin.constant): twin.scale for twin in decoded}
        whole = [twin.constant for twin in decoded if id(twin.original) in wanted]
        self.units = _fixed(find_units(self.model, [*chosen, *whole]), scales)

    def write_back(self, rounded: Iterable[Rounding]) -> dict[int, Rounded]:
        """Give the model what has become of the weights of the copy.

        Args:
            rounded: Weights of the copy.

        Returns:
            What became of each weight of the model that was rounded, by its id.
        """
        original = {id(twin.constant): twin.original for twin in self._twins}
        found = {}
        for item in rounded:
            bias = None if item.bias is None else original[id(item.bias)]
            found[id(original[id(item.unit.constant)])] = Rounded(item.form(), bias)
        for twin in self._twins:
            twin.write_back()
        return found


def _decoded(model: Model, originals: dict[int, gs.Constant]) -> list[_Twin]:
    """Replace what DequantizeLinear nodes of the main graph make of weights by float weights, in place."""
    found = []
    for node in model.graph.nodes:
        scale = _scale(node)
        if scale is None:
            continue
        stored, output = node.inputs[0], node.outputs[0]
        values = np.asarray(stored.values.astype(np.float32) * scale, np.float32)
        constant = Constant(f"{output.name}/float", values)
        rewire(output, constant)
        found.append(_Twin(constant, originals[id(stored)], scale, payload(constant)))
    return found


def _products(model: Model, originals: dict[int, gs.Constant]) -> list[_Twin]:
    """Replace products in integers by products in floats, in place, where a Cast reads them; return their weights."""
    found = []
    taken = tensor_names(model.graph)
    shown = {id(tensor) for tensor in model.graph.outputs}
    nodes: list[gs.Node] = []
    for node in model.graph.nodes:
        if node.op in _PRODUCTS and _is_symmetric(node) and not any(id(tensor) in shown for tensor in node.outputs):
            stored = node.inputs[1]
            constant = Constant(unique_name(f"{stored.name}/float", taken), stored.values.astype(np.float32))
            scale = np.ones([1] * len(stored.shape), np.float32)
            found.append(_Twin(constant, originals[id(stored)], scale, payload(constant)))
            nodes += _as_floats(node, constant, taken)
        else:
            nodes.append(node)
    model.graph.nodes[:] = nodes
    return found


def _is_symmetric(node: gs.Node) -> bool:
    """Whether a product has an int8 weight of its own whose zero is zero, and what it gives is made a float."""
    stored, zeros = node.inputs[1], list(node.inputs)[3:4]
    if not isinstance(stored, gs.Constant) or stored.dtype != np.int8 or len(stored.outputs) != 1:
        return False
    if any(not zero.is_empty() and not (isinstance(zero, gs.Constant) and not zero.values.any()) for zero in zeros):
        return False
    return all(user.op == "Cast" for user in node.outputs[0].outputs)


def _as_floats(node: gs.Node, weight: gs.Constant, taken: set[str]) -> list[gs.Node]:
    """Return nodes that give the same product in floats, under the same name."""
    to = {"to": int(onnx.TensorProto.FLOAT)}
    made: list[gs.Node] = []

    def add(op: str, inputs: list[gs.Tensor], **attrs: int) -> gs.Tensor:
        output = Variable(unique_name(f"{node.outputs[0].name}/{op}", taken), dtype=np.float32)
        made.append(Node(op, output.name, attrs, inputs, [output]))
        return output

    read = add("Cast", [node.inputs[0]], **to)
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        read = add("Sub", [read, add("Cast", [node.inputs[2]], **to)])
    output, attrs = node.outputs[0], dict(node.attrs)
    node.outputs.clear()
    node.inputs.clear()
    output.dtype = np.float32
    made.append(Node(_PRODUCTS[node.op], node.name, attrs, [read, weight], [output]))
    return made


def _scale(node: gs.Node) -> np.ndarray | None:
    """Return the scale by which a DequantizeLinear multiplies a weight of its own, broadcastable to it, else None."""
    if node.op != "DequantizeLinear" or node.domain not in (None, "", "ai.onnx"):
        return None
    if not all(isinstance(tensor, gs.Constant) or tensor.is_empty() for tensor in node.inputs):
        return None
    stored, scale, *zero = node.inputs
    if np.dtype(stored.dtype) not in _INTEGERS or scale.dtype != np.float32 or len(stored.outputs) != 1:
        return None
    if any(not tensor.is_empty() and tensor.values.any() for tensor in zero) or not node.outputs[0].outputs:
        return None
    factors = np.asarray(scale.values)
    if factors.size == 1:
        return factors.reshape([1] * len(stored.shape))
    axis = int(node.attrs.get("axis", 1))
    if factors.ndim != 1 or factors.size != stored.shape[axis] or not (factors > 0).all():
        return None
    return factors.reshape([-1 if index == axis % len(stored.shape) else 1 for index in range(len(stored.shape))])


def _fixed(units: Iterable[Unit], scales: dict[int, np.ndarray | None]) -> list[Unit]:
    """Return the units, those of integer weights with their scales; those whose scale is not one a row are left out."""
    found = []
    for unit in units:
        scale = scales.get(id(unit.constant))
        if scale is None:
            found.append(unit)
            continue
        spread = np.transpose(np.broadcast_to(scale, unit.constant.shape), unit.order)
        matrix = spread.reshape(unit.groups, unit.rows, -1)
        if (matrix == matrix[..., :1]).all():
            found.append(replace(unit, scale=matrix[..., :1].astype(np.float64)))
    return found
