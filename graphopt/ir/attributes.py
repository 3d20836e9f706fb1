"""Values of attributes that GraphSurgeon holds as plain Python objects."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper

from graphopt.errors import ModelError


def plain_attribute(name: str, value: Any, kind: Any) -> onnx.AttributeProto:
    """Return the proto of a number, text, array or list; of the type that the attribute had in the file, if any."""
    if isinstance(value, gs.Node.AttributeRef):
        kinds = {float: "FLOAT", int: "INT", str: "STRING", gs.Tensor: "TENSOR", gs.Graph: "GRAPH"}
        if value.type not in kinds:
            raise ModelError(f"attribute '{name}' refers to '{value.name}' with an unknown type")
        return onnx.AttributeProto(name=name, ref_attr_name=value.name, type=kinds[value.type])
    if isinstance(value, np.ndarray):
        return onnx.helper.make_attribute(name, numpy_helper.from_array(value, name))
    if isinstance(value, list) and not value:
        if kind is None:
            raise ModelError(f"attribute '{name}' is an empty list, whose type ONNX cannot tell")
        return onnx.AttributeProto(name=name, type=kind)
    if kind == onnx.AttributeProto.FLOAT and isinstance(value, int):
        value = float(value)
    elif kind == onnx.AttributeProto.FLOATS and isinstance(value, list):
        value = [float(item) for item in value]
    return onnx.helper.make_attribute(name, value)


def same_value(value: Any, origin: Any) -> bool:
    """Whether two attribute values are alike to the bit: a NaN is itself, and -0.0 is not 0.0."""
    if type(value) is not type(origin):
        return False
    if isinstance(value, float):
        return struct.pack("d", value) == struct.pack("d", origin)
    if isinstance(value, list):
        return len(value) == len(origin) and all(map(same_value, value, origin))
    return bool(value == origin)
