"""Writing a placement into a model: QuantizeLinear and DequantizeLinear around every integer unit.

The pattern is the one the runtime fuses: each activation has one QuantizeLinear with a constant scale and an explicit
zero point, each integer unit reads DequantizeLinear and is read by QuantizeLinear only, weights are int8 per output
channel behind a DequantizeLinear, and the bias is int32 with the product of the two scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.clean import clean, disconnect
from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, Node, Variable, tensor_names
from graphopt.model import Model
from graphopt.passes.quant.nodes.placement import Placement, stored_output
from graphopt.passes.quant.nodes.units import Unit, outputs_of_scopes
from graphopt.passes.quant.numbers.ranges import Affine, affine
from graphopt.passes.quant.numbers.store import WeightStore
from graphopt.passes.quant.numbers.weights import QuantizedWeight, least_scale, quantize_bias
from graphopt.runtime.hazards import carried_into_bodies
from graphopt.targets import Convention

_FLOAT32 = np.dtype(np.float32)
_SELF_QUANTIZED = frozenset({"Conv", "ConvTranspose", "Gemm"})  # by ONNX Runtime, between integers


def insert(model: Model, units: Mapping[int, Unit], placement: Placement, parameters: Mapping[str, Affine],
           store: WeightStore, convention: Convention) -> int:  # fmt: skip
    """Write a placement into a model and clean up.

    Args:
        model: Edited in place; a copy of the model that the placement was made for.
        units: The units of this copy by position.
        placement: What runs in integers.
        parameters: Of every stored tensor, by name.
        store: Integer weights.
        convention: How the target wants integers written.

    Returns:
        How many nodes run in integers.
    """
    writer = _Writer(model, placement, parameters, store, convention)
    mine = [units[unit.position] for unit in placement.units]
    writer.announce(mine)
    for unit in mine if convention.stores_outputs else ():
        writer.store_output(unit)
    for unit in mine:
        writer.feed(unit)
    clean(model.graph)
    return len(mine)


class _Writer:
    def __init__(self, model: Model, placement: Placement, parameters: Mapping[str, Affine], store: WeightStore,
                 convention: Convention) -> None:  # fmt: skip
        self._graph = model.graph
        self._placement = placement
        self._parameters = parameters
        self._store = store
        self._convention = convention
        self._taken = tensor_names(model.graph)
        self._integer: set[int] = set()
        self._handed_out = outputs_of_scopes(model.graph)
        self._carried = carried_into_bodies(model.graph)
        self._restored: dict[int, gs.Tensor] = {}
        self._scalars: dict[tuple[str, Affine], tuple[gs.Constant, gs.Constant]] = {}
        self._weights: dict[int, tuple[gs.Constant, gs.Constant, QuantizedWeight]] = {}
        self._zeros: dict[tuple[int, ...], gs.Constant] = {}

    def announce(self, units: Iterable[Unit]) -> None:
        """Tell which nodes will read integers, and what scales their weights must have."""
        units = list(units)
        self._integer = {id(unit.node) for unit in units}
        for unit in units:  # a weight that several share needs the largest of their least scales
            if unit.weight is not None:
                self._store.weight(unit, self._least(unit, float(self._parameters[unit.inputs[0].name].scale)))

    def store_output(self, unit: Unit) -> None:
        """Put a quantizer pair behind a unit: all readers of its output see what was stored."""
        if not stored_output(unit, self._placement):
            return
        output = unit.output
        raw = self._variable(f"{output.name}_raw", _FLOAT32, output.shape)
        if unit.clamp is not None:
            disconnect(unit.clamp)
        unit.node.outputs[0] = raw
        restored = output
        if self._needs_screen(output):
            restored = self._variable(f"{output.name}_dequantized", _FLOAT32, output.shape)
            self._node("Max", [restored], output)
        self._pair(raw, restored, output.name)
        self._restored[id(output)] = restored

    def _needs_screen(self, tensor: gs.Tensor) -> bool:
        """Whether the float readers of a stored tensor must not see that it comes from a DequantizeLinear.

        ONNX Runtime gives each reader of a DequantizeLinear one of its own, which hides from its fusions (Gelu, layer
        normalization) that two readers read the same; and it quantizes the weights of a Conv between integers by
        itself, with one scale. And its optimizer ends the process where what moves such a tensor is read in the body
        of an If or Loop. A Max of one input stops all of it, for less than a second DequantizeLinear takes.
        """
        if id(tensor) in self._carried:
            return True
        readers = [node for node in tensor.outputs if id(node) not in self._integer]
        count = len(readers) + (id(tensor) in self._handed_out)
        return count > 1 or any(node.op in _SELF_QUANTIZED for node in readers)

    def feed(self, unit: Unit) -> None:
        """Let a unit read integers."""
        for index in unit.activations:
            unit.node.inputs[index] = self._stored(unit.node.inputs[index])
        for index in unit.constants:
            unit.node.inputs[index] = self._constant(unit.node.inputs[index])
        if unit.weight is not None:
            self._weigh(unit)

    def _stored(self, tensor: gs.Tensor) -> gs.Tensor:
        """Return the tensor as it is read back from integers."""
        if id(tensor) not in self._restored:
            restored = self._variable(f"{tensor.name}_dequantized", _FLOAT32, tensor.shape)
            self._pair(tensor, restored, tensor.name)
            self._restored[id(tensor)] = self._restored[id(restored)] = restored
        return self._restored[id(tensor)]

    def _pair(self, source: gs.Tensor, target: gs.Tensor, name: str) -> None:
        scale, zero = self._parameter_constants(name)
        codes = self._variable(f"{name}_quantized", self._parameters[name].dtype, source.shape)
        self._node("QuantizeLinear", [source, scale, zero], codes)
        self._node("DequantizeLinear", [codes, scale, zero], target)

    def _parameter_constants(self, name: str) -> tuple[gs.Constant, gs.Constant]:
        group, parameters = self._placement.groups[name], self._parameters[name]
        if (group, parameters) not in self._scalars:
            self._scalars[group, parameters] = self._affine_constants(group, parameters)
        return self._scalars[group, parameters]

    def _affine_constants(self, name: str, parameters: Affine) -> tuple[gs.Constant, gs.Constant]:
        return (
            self._constant_tensor(f"{name}_scale", np.asarray(parameters.scale, np.float32)),
            self._constant_tensor(f"{name}_zero_point", np.asarray(parameters.zero_point, parameters.dtype)),
        )

    def _constant(self, constant: gs.Constant) -> gs.Tensor:
        """Store a constant operand as integers like those of activations."""
        values = constant.values
        parameters = affine(float(values.min()), float(values.max()), signed=self._convention.signed)
        stored = self._constant_tensor(f"{constant.name}_quantized", parameters.codes(values))
        restored = self._variable(f"{constant.name}_dequantized", _FLOAT32, constant.shape)
        self._node("DequantizeLinear", [stored, *self._affine_constants(constant.name, parameters)], restored)
        return restored

    def _weigh(self, unit: Unit) -> None:
        """Replace weight and bias by integers behind a DequantizeLinear."""
        weight, bias = unit.weight, unit.bias
        assert weight is not None
        input_scale = float(self._input_scale(unit))
        real_bias = self._real_bias(unit)
        quantized = self._store.weight(unit, self._least(unit, input_scale))
        values, scale = self._weight_constants(weight.name, quantized)
        axis = {} if quantized.axis is None else {"axis": quantized.axis}
        restored = self._variable(f"{weight.name}_dequantized", _FLOAT32, weight.shape)
        self._node("DequantizeLinear", [values, scale, self._zero(quantized.scale.shape, np.int8)], restored, **axis)
        unit.node.inputs[1] = restored
        if real_bias is not None and not self._convention.integer_bias:
            self._take_bias(unit, self._constant_tensor(f"{unit.node.outputs[0].name}_bias", real_bias))
        elif real_bias is not None:
            name = bias.name if bias is not None else f"{unit.node.outputs[0].name}_bias"  # the clamp may be gone
            self._set_bias(unit, name, real_bias, np.asarray(quantized.scale * input_scale, np.float32), axis)

    def _least(self, unit: Unit, input_scale: float) -> np.ndarray | None:
        """Return the least scale of each channel with which the bias fits, or None without an integer bias."""
        bias = self._real_bias(unit) if self._convention.integer_bias else None
        return None if bias is None else least_scale(bias, input_scale)

    def _real_bias(self, unit: Unit) -> np.ndarray | None:
        """The bias with its mean corrected; None where there is none, or no place for one."""
        shift = self._store.bias_shift.get(unit.position)
        if unit.bias is not None:
            values = unit.bias.values.reshape(-1)
            return values if shift is None else np.asarray(values + shift, np.float32)
        return None if shift is None or unit.node.op == "MatMul" else shift.astype(np.float32)

    def _set_bias(self, unit: Unit, name: str, bias: np.ndarray, scale: np.ndarray, axis: dict[str, int]) -> None:
        codes = self._constant_tensor(f"{name}_quantized", quantize_bias(bias, scale))
        constant = self._constant_tensor(f"{name}_scale", scale)
        restored = self._variable(f"{name}_dequantized", _FLOAT32, list(bias.shape))
        arguments = {"axis": 0} if axis else {}
        self._node("DequantizeLinear", [codes, constant, self._zero(scale.shape, np.int32)], restored, **arguments)
        self._take_bias(unit, restored)

    def _take_bias(self, unit: Unit, bias: gs.Tensor) -> None:
        if len(unit.node.inputs) > 2:
            unit.node.inputs[2] = bias
        else:
            unit.node.inputs.append(bias)

    def _input_scale(self, unit: Unit) -> np.float32:
        """Scale of the first input: of the copy that `feed` put there."""
        restored = unit.node.inputs[0]
        return np.float32(restored.inputs[0].inputs[1].values)

    def _weight_constants(self, name: str, weight: QuantizedWeight) -> tuple[gs.Constant, gs.Constant]:
        if id(weight) not in self._weights:
            values = self._constant_tensor(f"{name}_quantized", weight.values)
            self._weights[id(weight)] = values, self._constant_tensor(f"{name}_scale", weight.scale), weight
        return self._weights[id(weight)][:2]

    def _zero(self, shape: tuple[int, ...], dtype: type) -> gs.Constant:
        """Zero points of one type and length, shared by all who need them."""
        key = (np.dtype(dtype).num, *shape)
        if key not in self._zeros:
            name = f"zero_{np.dtype(dtype).name}" + "".join(f"_{size}" for size in shape)
            self._zeros[key] = self._constant_tensor(name, np.zeros(shape, dtype))
        return self._zeros[key]

    def _constant_tensor(self, name: str, values: np.ndarray) -> gs.Constant:
        return Constant(unique_name(name, self._taken), values)

    def _variable(self, name: str, dtype: np.dtype, shape: object) -> gs.Variable:
        return Variable(unique_name(name, self._taken), dtype=dtype, shape=shape)

    def _node(self, op: str, inputs: list[gs.Tensor], output: gs.Tensor, **attrs: int) -> None:
        name = f"{output.name}/{op}"
        self._graph.nodes.append(Node(op, name, attrs=attrs, inputs=inputs, outputs=[output]))
