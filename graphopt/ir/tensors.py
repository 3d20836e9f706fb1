"""Tensor messages of payloads: with their bytes, without them, or with a word on where they are."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from graphopt.ir.payload import StoredTensor


def inline(name: str, held: StoredTensor | np.ndarray) -> onnx.TensorProto:
    """Write the payload into the proto itself."""
    if isinstance(held, np.ndarray):
        return numpy_helper.from_array(held, name)
    proto = onnx.TensorProto()
    if held.is_external:
        _copy_header(held.tensor, proto)
        proto.raw_data = held.raw_bytes().tobytes()
    else:
        proto.CopyFrom(held.tensor)
    if proto.name != name:
        proto.name = name
    return proto


def header(name: str, held: StoredTensor | np.ndarray) -> onnx.TensorProto:
    """Return a tensor without its bytes: type and shape under a new name."""
    proto = onnx.TensorProto()
    if isinstance(held, StoredTensor):
        _copy_header(held.tensor, proto)
    else:
        proto.dims.extend(held.shape)
        proto.data_type = onnx.helper.np_dtype_to_tensor_dtype(held.dtype)
    proto.name = name
    return proto


def elsewhere(name: str, held: StoredTensor | np.ndarray, **where: str | int) -> onnx.TensorProto:
    """Return a tensor whose bytes are outside the file, with the entries that tell where.

    Source: https://github.com/onnx/onnx/blob/main/docs/ExternalData.md
    """
    proto = header(name, held)
    proto.data_location = onnx.TensorProto.EXTERNAL
    for key, value in where.items():
        proto.external_data.add(key=key, value=str(value))
    return proto


def _copy_header(source: onnx.TensorProto, target: onnx.TensorProto) -> None:
    """Copy everything but the bytes and where they lie."""
    target.dims.extend(source.dims)
    target.data_type = source.data_type
    target.name = source.name
    if source.HasField("doc_string"):
        target.doc_string = source.doc_string
    target.metadata_props.extend(source.metadata_props)
