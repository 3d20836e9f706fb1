"""What a Constant node says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Constant, OpaqueAttribute
from graphopt.ir.payload import StoredSparseTensor

_STATED: dict[str, Any] = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_string": object,
    "value_strings": object,
}


def stated_constant(attrs: Mapping[str, Any]) -> gs.Constant | None:
    """Return the value that the attributes of a Constant node state; None where they refer to something else."""
    if len(attrs) != 1:
        return None
    ((name, value),) = attrs.items()
    if name == "value" and isinstance(value, gs.Constant):
        return value
    if name == "sparse_value" and isinstance(value, OpaqueAttribute):
        return Constant("", StoredSparseTensor(value.proto.sparse_tensor))
    if name in _STATED and isinstance(value, (int, float, str, bytes, list)):
        return Constant("", np.array(value, _STATED[name]))
    return None
