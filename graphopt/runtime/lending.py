"""Handing weights to ONNX Runtime without a copy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort

from graphopt.ir.exporter import copy_tensor_header, export_graph, inline
from graphopt.ir.graph import payload
from graphopt.ir.payload import StoredTensor
from graphopt.ir.placement import constant_homes
from graphopt.model import Model

_LENT = 2**12  # bytes; smaller weights are copied, so that the runtime sees their values beforehand
_ALIGNMENT = 16  # bytes: an SSE vector
_NOWHERE = "*lent*"  # a location that is never read


def lend(model: Model) -> tuple[onnx.ModelProto, Mapping[str, ort.OrtValue]]:
    """Return a model without its large weights, and those weights by name, in the memory where they are.

    The values must stay alive as long as the session. Only weights of the main graph are lent: ONNX Runtime does not
    look into bodies for them.

    Args:
        model: Stays as it is.
    """
    homes = constant_homes(model.graph)
    inner = {id(payload(constant)) for key, held in homes.items() if key != id(model.graph) for constant in held}
    lent = {id(payload(constant)) for constant in homes[id(model.graph)]} - inner
    values: dict[str, ort.OrtValue] = {}

    def write(name: str, held: StoredTensor | np.ndarray) -> onnx.TensorProto:
        if held.nbytes < _LENT or id(held) not in lent or np.dtype(held.dtype).kind not in "fiub":
            return inline(name, held)
        values[name] = ort.OrtValue.ortvalue_from_numpy(_aligned(held))
        proto = onnx.TensorProto()
        if isinstance(held, StoredTensor):
            copy_tensor_header(held.tensor, proto)
        else:
            proto.dims.extend(held.shape)
            proto.data_type = onnx.helper.np_dtype_to_tensor_dtype(held.dtype)
        proto.name = name
        proto.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", _NOWHERE), ("offset", "0"), ("length", str(held.nbytes))):
            proto.external_data.add(key=key, value=value)
        return proto

    return export_graph(model.graph, model.residue, write), values


def _aligned(held: StoredTensor | np.ndarray) -> np.ndarray:
    array = held.load() if isinstance(held, StoredTensor) else held
    if array.flags.c_contiguous and array.ctypes.data % _ALIGNMENT == 0:
        return array
    return np.array(array, order="C")
