"""What nodes and initializers take in a file, exactly, in bytes."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.exporter import inline
from graphopt.ir.graph import payload, payload_bytes
from graphopt.ir.payload import StoredSparseTensor, StoredTensor

_TYPED_FIELDS = 2**12  # bytes; numbers in typed fields may take less than their type, which matters for small weights


def constant_bytes(constant: gs.Constant) -> int:
    """Return what an initializer adds to the file."""
    held = payload(constant)
    if isinstance(held, StoredSparseTensor):
        return field_bytes(held.tensor.ByteSize())
    if isinstance(held, StoredTensor) and not held.is_external and not held.tensor.HasField("raw_data"):
        return field_bytes(inline(constant.name, held).ByteSize())
    if payload_bytes(constant) < _TYPED_FIELDS and not isinstance(held, StoredTensor):
        return field_bytes(inline(constant.name, held).ByteSize())
    return tensor_bytes(constant.name, tuple(held.shape), payload_bytes(constant))


def tensor_bytes(name: str, shape: tuple[int, ...], nbytes: int) -> int:
    """Return what an initializer of this shape adds to the file, its values as raw bytes."""
    proto = onnx.TensorProto(name=name, dims=shape, data_type=onnx.TensorProto.FLOAT)
    return field_bytes(proto.ByteSize() + field_bytes(nbytes))


def node_bytes(node: gs.Node) -> int:
    """Return what a node adds to the file."""
    inputs, outputs = ([tensor.name for tensor in tensors] for tensors in (node.inputs, node.outputs))
    proto = onnx.helper.make_node(node.op, inputs, outputs, name=node.name or None, **node.attrs)
    return field_bytes(proto.ByteSize())


def field_bytes(length: int) -> int:
    """Return the bytes of a protobuf field of so many bytes, with its tag and length."""
    return 1 + max(1, -(-length.bit_length() // 7)) + length
