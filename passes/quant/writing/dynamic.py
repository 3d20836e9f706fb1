"""Dynamic quantization: weights in integers, ranges of activations found at run time.

It needs no samples, reaches into the bodies of If, Loop and Scan, and suits layers whose input ranges vary much between
inputs. MatMul and Gemm become DynamicQuantizeLinear and MatMulInteger, which ONNX Runtime fuses with what follows;
LSTM becomes ONNX Runtime's own DynamicQuantizeLSTM. Of a large table that Gather reads, only the rows that are read are
turned back into floats. A table that a product reads as well, a tied embedding, is stored once, in the product's
integers; where the product reads it transposed, so does it read the integers, which ONNX Runtime turns once, at load.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.clean import clean, disconnect
from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, Node, Variable, tensor_names
from graphopt.model import Model
from graphopt.passes.quant.nodes.sites import MATRICES, DynamicSite, matrix_of, stored_weight
from graphopt.passes.quant.numbers.store import WeightStore
from graphopt.passes.quant.numbers.weights import quantize_rows
from graphopt.runtime.hazards import carried_into_bodies

_FLOAT32 = np.dtype(np.float32)
_LSTM_INPUTS = 8  # X, W, R, B, sequence_lens, initial_h, initial_c, P


def quantize_recurrent(weight: np.ndarray, *, pairs: bool) -> tuple[np.ndarray, np.ndarray]:
    """Quantize a weight of an LSTM [directions, outputs, inputs]; return codes like it, and scales of each output.

    Args:
        weight: The weight.
        pairs: Whether 16-bit sums of pairs must not saturate.
    """
    directions, outputs, inputs = weight.shape
    codes, scale = quantize_rows(weight.reshape(directions * outputs, inputs), "even" if pairs else "none")
    return codes.reshape(weight.shape), scale.reshape(directions, outputs)


def quantize_dynamic(model: Model, sites: Collection[DynamicSite], store: WeightStore) -> int:
    """Quantize the sites of a model and clean up.

    Args:
        model: Edited in place.
        sites: Sites of this very model.
        store: Integer weights.

    Returns:
        How many nodes run in integers.
    """
    writer = _Writer(model, store, sites)
    for site in sites:
        if site.node.op == "LSTM":
            writer.lstm(site)
        elif site.node.op == "Gather":
            writer.table(site)
        else:
            writer.matrix(site)
    clean(model.graph)
    return len(sites)


class _Writer:
    def __init__(self, model: Model, store: WeightStore, sites: Collection[DynamicSite]) -> None:
        self._taken = tensor_names(model.graph)
        self._carried = carried_into_bodies(model.graph)
        self._store = store
        self._inputs: dict[tuple[int, int], tuple[gs.Tensor, gs.Tensor, gs.Tensor]] = {}
        self._weights: dict[tuple[int, int], tuple[gs.Constant, ...]] = {}
        self._scope: gs.Graph = model.graph
        tables = {id(site.node.inputs[0]) for site in sites if site.node.op == "Gather"}
        products = [(stored_weight(site.node), site) for site in sites if site.node.op in MATRICES]
        self._tied = {id(weight): (weight, turned, site) for (weight, turned), site in products if id(weight) in tables}

    def matrix(self, site: DynamicSite) -> None:
        """MatMul or Gemm: x W = (x_q W_q) (s_x s_w), and the bias after it."""
        self._scope, node = site.scope, site.node
        output = node.outputs[0]
        bias = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
        codes, scale, zero = self._quantized_input(node.inputs[0])
        weight, weight_scale, weight_zero = self._matrix_weight(site)
        disconnect(node)
        name = output.name
        summed = self._node("MatMulInteger", [codes, weight, zero, weight_zero], f"{name}_int32", np.int32)
        real = self._node("Cast", [summed], f"{name}_cast", np.float32, to=int(onnx.TensorProto.FLOAT))
        scales = self._node("Mul", [scale, weight_scale], f"{name}_scales", np.float32)
        if bias is None:
            self._finish("Mul", [real, scales], output)
        else:
            self._finish("Add", [self._node("Mul", [real, scales], f"{name}_unbiased", np.float32), bias], output)

    def table(self, site: DynamicSite) -> None:
        """Gather: rows of integers, with one scale a column, or a row where a product reads the table transposed."""
        self._scope, node = site.scope, site.node
        table, output = node.inputs[0], node.outputs[0]
        product = self._tied.get(id(table))
        codes, scale, zero = self._table_weight(site) if product is None else self._stored_matrix(*product)
        rows = self._variable(f"{output.name}_codes", np.int8)
        node.inputs[0], node.outputs[0] = codes, rows
        if product is not None and product[1]:
            shape = Constant(unique_name(f"{scale.name}_shape", self._taken), np.array([-1, 1]))
            column = self._node("Reshape", [scale, shape], f"{scale.name}_column", np.float32)
            scales = self._node("Gather", [column, node.inputs[1]], f"{output.name}_scales", np.float32)
            real = self._node("Cast", [rows], f"{output.name}_cast", np.float32, to=int(onnx.TensorProto.FLOAT))
            self._finish("Mul", [real, scales], output)
            return
        restored = output
        if id(output) in self._carried:  # ONNX Runtime would crash, but for a Max of one input
            restored = self._variable(f"{output.name}_dequantized", np.float32)
            self._finish("Max", [restored], output)
        self._append("DequantizeLinear", [rows, scale, zero], [restored], axis=-1)

    def lstm(self, site: DynamicSite) -> None:
        """LSTM: the operator takes the weights transposed, [directions, inputs, 4 * hidden], and their scales."""
        self._scope, node = site.scope, site.node
        inputs = [*node.inputs, *(Variable("") for _ in range(_LSTM_INPUTS - len(node.inputs)))]
        for index in (1, 2):
            values, scale, zero = self._recurrent_weight(inputs[index])
            inputs[index] = values
            inputs += [scale, zero]
        outputs, attrs = list(node.outputs), {key: node.attrs[key] for key in node.attrs if key != "layout"}
        disconnect(node)
        fresh = Node("DynamicQuantizeLSTM", node.name, attrs=attrs, inputs=inputs, outputs=outputs)
        fresh.domain = "com.microsoft"
        self._scope.nodes.append(fresh)

    def _quantized_input(self, tensor: gs.Tensor) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor]:
        key = id(self._scope), id(tensor)
        if key not in self._inputs:
            name = tensor.name
            outputs = (
                self._variable(f"{name}_codes", np.uint8),
                self._variable(f"{name}_scale", np.float32),
                self._variable(f"{name}_zero_point", np.uint8),
            )
            self._append("DynamicQuantizeLinear", [tensor], list(outputs))
            self._inputs[key] = outputs
        return self._inputs[key]

    def _matrix_weight(self, site: DynamicSite) -> tuple[gs.Tensor, gs.Constant, gs.Constant]:
        """Return integers [inputs, outputs], scales of the outputs, and zero points."""
        constant, turned = stored_weight(site.node)
        codes, scale, zero = self._stored_matrix(constant, turned, site)
        if turned and id(constant) in self._tied:
            return self._node("Transpose", [codes], f"{codes.name}_turned", np.int8, perm=[1, 0]), scale, zero
        return codes, scale, zero

    def _stored_matrix(self, constant: gs.Constant | None, turned: bool, site: DynamicSite) -> tuple[gs.Constant, ...]:
        """Return the constants of a product; those of a tied embedding lie as the table does."""
        assert constant is not None
        key = id(constant), int(turned)
        if key not in self._weights:
            found = self._store.matrix(site.position, matrix_of(site.node))
            lies = found.values.T if turned and id(constant) in self._tied else found.values
            self._weights[key] = self._constants(constant.name, np.ascontiguousarray(lies), found.scale)
        return self._weights[key]

    def _table_weight(self, site: DynamicSite) -> tuple[gs.Constant, ...]:
        table = site.node.inputs[0]
        key = id(table), 3
        if key not in self._weights:
            found = self._store.table(site.position, table.values)
            self._weights[key] = self._constants(table.name, found.values, found.scale)
        return self._weights[key]

    def _recurrent_weight(self, constant: gs.Constant) -> tuple[gs.Constant, gs.Constant, gs.Constant]:
        key = id(constant), 2
        if key not in self._weights:
            codes, scale = quantize_recurrent(constant.values, pairs=self._store.pairs)
            stored = np.ascontiguousarray(codes.transpose(0, 2, 1))
            self._weights[key] = self._constants(constant.name, stored, scale)
        return self._weights[key]

    def _constants(self, name: str, codes: np.ndarray, scale: np.ndarray) -> tuple[gs.Constant, ...]:
        parts = {"quantized": codes, "scale": scale, "zero_point": np.zeros(scale.shape, np.int8)}
        return tuple(Constant(unique_name(f"{name}_{part}", self._taken), values) for part, values in parts.items())

    def _variable(self, name: str, dtype: Any) -> gs.Variable:
        return Variable(unique_name(name, self._taken), dtype=np.dtype(dtype))

    def _node(self, op: str, inputs: list[gs.Tensor], name: str, dtype: Any, **attrs: Any) -> gs.Tensor:
        output = self._variable(name, dtype)
        self._append(op, inputs, [output], **attrs)
        return output

    def _finish(self, op: str, inputs: list[gs.Tensor], output: gs.Tensor) -> None:
        self._append(op, inputs, [output])

    def _append(self, op: str, inputs: list[gs.Tensor], outputs: list[gs.Tensor], **attrs: Any) -> None:
        self._scope.nodes.append(Node(op, f"{outputs[0].name}/{op}", attrs=attrs, inputs=inputs, outputs=outputs))
