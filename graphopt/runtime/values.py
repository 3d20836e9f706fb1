"""Tensors of the element types that ONNX Runtime does not exchange with numpy: bf16, fp8 and those below 8 bits.

They cross as the bytes of ONNX's raw_data, which is the layout both sides document.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from graphopt.ir.payload import stored_bytes

_NATIVE = frozenset(
    f"tensor({name})"
    for name in (
        "float", "double", "float16", "string", "bool",
        "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    )
)  # fmt: skip


def is_foreign(onnx_type: str) -> bool:
    """Whether numpy cannot hold a tensor of this type of ONNX Runtime, such as ``tensor(bfloat16)``."""
    return onnx_type.startswith("tensor(") and onnx_type not in _NATIVE


def to_ort_value(array: Any) -> Any:
    """Return the array as an OrtValue on the CPU, whatever its element type.

    Raises:
        TypeError: It is no array.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"a {type(array).__name__} cannot be fed to a model with bf16, fp8 or sub-byte tensors")
    if array.dtype.kind in "OUSb" or np.issubdtype(array.dtype, np.number):
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
    tensor = numpy_helper.from_array(array)
    value = ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), tensor.data_type)
    if tensor.raw_data:
        ctypes.memmove(value.data_ptr(), tensor.raw_data, len(tensor.raw_data))
    return value


def from_ort_value(value: Any) -> Any:
    """Return what an OrtValue on the CPU holds: an array, a list of arrays, or None where an optional has no value."""
    if not value.has_value():
        return None
    if not value.is_tensor() or not is_foreign(value.data_type()):
        return value.numpy()
    shape = tuple(value.shape())
    nbytes = stored_bytes(value.element_type(), shape)
    raw = ctypes.string_at(value.data_ptr(), nbytes) if nbytes else b""
    return numpy_helper.to_array(onnx.TensorProto(data_type=value.element_type(), dims=shape, raw_data=raw))


def run_foreign(session: Any, outputs: Sequence[str], feeds: dict[str, Any]) -> list[Any]:
    """Run a session some of whose tensors numpy cannot hold; sequences of such are not supported."""
    held = {name: to_ort_value(value) for name, value in feeds.items()}
    return [from_ort_value(value) for value in session.run_with_ort_values(list(outputs), held)]
