"""What things cost in a file, in bytes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.exporter import copy_tensor_header, export_graph
from graphopt.ir.graph import payload_bytes
from graphopt.ir.payload import StoredTensor, stored_bytes
from graphopt.model import Model
from graphopt.shapes import TensorType

_TENSOR_OVERHEAD = 14  # bytes; tags, lengths, dimensions and type of a TensorProto
_NODE_OVERHEAD = 8
_ATTRIBUTE_OVERHEAD = 12


def file_bytes(model: Model) -> int:
    """Return the size of the model's file with all weights inside, without writing them."""
    total = 0

    def write(name: str, held: StoredTensor | np.ndarray) -> onnx.TensorProto:
        nonlocal total
        proto = onnx.TensorProto()
        if isinstance(held, StoredTensor):
            copy_tensor_header(held.tensor, proto)
            total += held.nbytes
        else:
            proto.dims.extend(held.shape)
            proto.data_type = onnx.helper.np_dtype_to_tensor_dtype(held.dtype)
            total += _array_bytes(held)
        proto.name = name
        return proto

    proto = export_graph(model.graph, model.residue, write, write)
    return int(proto.ByteSize()) + total


def _array_bytes(values: np.ndarray) -> int:
    if values.dtype == object:
        return sum(len(item if isinstance(item, bytes) else str(item).encode()) for item in values.flat)
    return stored_bytes(onnx.helper.np_dtype_to_tensor_dtype(values.dtype), values.shape)


def constant_cost(constant: gs.Constant) -> int:
    """Return about how many bytes an initializer takes."""
    return payload_bytes(constant) + len(constant.name) + _TENSOR_OVERHEAD


def array_cost(name: str, values: np.ndarray) -> int:
    """Return about how many bytes an initializer with these values takes."""
    return _array_bytes(values) + len(name) + _TENSOR_OVERHEAD


def predicted_cost(name: str, known: TensorType) -> int | None:
    """Return about how many bytes an initializer of a known type and shape takes; None where they are not known."""
    if known.dtype is None or known.shape is None or known.dtype == object:
        return None
    sizes = [size for size in known.shape if isinstance(size, int)]
    if len(sizes) != len(known.shape):
        return None
    element_type = onnx.helper.np_dtype_to_tensor_dtype(known.dtype)
    return stored_bytes(element_type, tuple(sizes)) + len(name) + _TENSOR_OVERHEAD if math.prod(sizes) >= 0 else None


def node_cost(node: gs.Node) -> int:
    """Return about how many bytes a node takes, with the weights in its attributes."""
    names = sum(len(tensor.name) + 2 for tensor in (*node.inputs, *node.outputs))
    attributes = sum(len(name) + _attribute_cost(value) for name, value in node.attrs.items())
    return _NODE_OVERHEAD + len(node.op) + len(node.name) + names + attributes


def _attribute_cost(value: Any) -> int:
    if isinstance(value, gs.Constant):
        return _ATTRIBUTE_OVERHEAD + constant_cost(value)
    if isinstance(value, (list, str, bytes)):
        return _ATTRIBUTE_OVERHEAD + len(value)
    return _ATTRIBUTE_OVERHEAD
