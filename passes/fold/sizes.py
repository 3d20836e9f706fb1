"""What things cost in a file, in bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.exporter import export_graph
from graphopt.ir.graph import payload, payload_bytes
from graphopt.ir.payload import StoredTensor, stored_bytes
from graphopt.ir.tensors import header
from graphopt.model import Model
from graphopt.shapes import TensorType

_ATTRIBUTE_TYPE = 3  # bytes of its tag and value
_ATTRIBUTE_AT_LEAST = 8  # bytes of tags, lengths, type and value


def file_bytes(model: Model) -> int:
    """Return the size of the model's file with all weights inside, without writing them."""
    total = 0

    def write(name: str, held: StoredTensor | np.ndarray) -> onnx.TensorProto:
        nonlocal total
        total += held.nbytes if isinstance(held, StoredTensor) else _array_bytes(held)
        return header(name, held)

    proto = export_graph(model.graph, model.residue, write, write)
    return int(proto.ByteSize()) + total


def _array_bytes(values: np.ndarray) -> int:
    if values.dtype == object:
        return sum(len(item if isinstance(item, bytes) else str(item).encode()) for item in values.flat)
    return stored_bytes(onnx.helper.np_dtype_to_tensor_dtype(values.dtype), values.shape)


def constant_cost(constant: gs.Constant) -> int:
    """Return how many bytes an initializer takes."""
    held = payload(constant)
    if isinstance(held, StoredTensor) and not held.is_external:
        stored = held.tensor  # numbers in typed fields may take less than their type
        named = _field(len(constant.name)) - (_field(len(stored.name)) if stored.name else 0)
        return _field(int(stored.ByteSize()) + named)
    return tensor_cost(constant.name, tuple(held.shape), payload_bytes(constant))


def array_cost(name: str, values: np.ndarray) -> int:
    """Return how many bytes come with an initializer of these values."""
    return tensor_cost(name, values.shape, _array_bytes(values))


def predicted_cost(name: str, known: TensorType) -> int | None:
    """Return how many bytes come with an initializer of this type and shape; None where they are not known."""
    if known.dtype is None or known.shape is None or known.dtype == object:
        return None
    sizes = tuple(size for size in known.shape if isinstance(size, int))
    if len(sizes) != len(known.shape):
        return None
    return tensor_cost(name, sizes, stored_bytes(onnx.helper.np_dtype_to_tensor_dtype(known.dtype), sizes))


def constant_node_cost(output: str, value: int) -> int:
    """Return how many bytes come with a Constant node.

    Args:
        output: Name of what it makes.
        value: Bytes of an initializer without a name that holds the same.
    """
    attribute = _field(len("value")) + _ATTRIBUTE_TYPE + value
    return _field(_field(len("Constant")) + _field(len(output)) + _field(attribute))


def tensor_cost(name: str, shape: tuple[int, ...], nbytes: int) -> int:
    """Return the size of a TensorProto inside a graph, with its bytes as raw data."""
    own = (_field(len(name)) if name else 0) + _field(nbytes) + 2 + sum(1 + _varint(size) for size in shape)
    return _field(own)


def node_cost(node: gs.Node) -> int:
    """Return how many bytes go with a node, at least; the weights in its attributes count."""
    names = [str(tensor.name) for tensor in (*node.inputs, *node.outputs)]
    return named_node_cost(node.op, node.name, names, node.attrs)


def named_node_cost(op: str, name: str, tensors: Sequence[str], attrs: Mapping[str, Any]) -> int:
    """Return how many bytes come with a node, at least.

    Args:
        op: Its operator.
        name: Its name.
        tensors: Names of its inputs and outputs.
        attrs: Its attributes.
    """
    names = (op, *([name] if name else []), *tensors)
    attributes = sum(len(key) + _attribute_cost(value) for key, value in attrs.items())
    return _field(sum(_field(len(text)) for text in names) + attributes)


def _attribute_cost(value: Any) -> int:
    if isinstance(value, gs.Constant):
        return _ATTRIBUTE_AT_LEAST + constant_cost(value)
    if isinstance(value, (list, str, bytes)):
        return _ATTRIBUTE_AT_LEAST + len(value)
    return _ATTRIBUTE_AT_LEAST


def _field(length: int) -> int:
    """Return the size of a protobuf field of so many bytes with its tag."""
    return 1 + _varint(length) + length


def _varint(number: int) -> int:
    return max(1, (number.bit_length() + 6) // 7)
