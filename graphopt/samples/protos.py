"""Samples as ONNX stores them beside its test models: a folder with ``input_0.pb``, ``input_1.pb``, and so on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from graphopt.errors import SampleError
from graphopt.model import TensorSpec
from graphopt.samples.fit import Fit

_KINDS: dict[str, Any] = {
    "tensor_type": onnx.TensorProto,
    "sequence_type": onnx.SequenceProto,
    "map_type": onnx.MapProto,
    "optional_type": onnx.OptionalProto,
}


def read_data_set(folder: Path, fit: Fit) -> dict[str, Any]:
    """Return one sample; file N belongs to the model's input N.

    Raises:
        SampleError: There are more files than inputs, or a file is damaged or of another type.
    """
    specs = list(fit.specs.values())
    feeds = {}
    for path in folder.glob("input_*.pb"):
        number = path.stem.removeprefix("input_")
        if not number.isdigit() or int(number) >= len(specs):
            raise SampleError(
                f"'{path}': the model has {len(specs)} inputs, so files are input_0 to input_{len(specs) - 1}"
            )
        feeds[specs[int(number)].name] = _read(path, specs[int(number)])
    return feeds


def _read(path: Path, spec: TensorSpec) -> Any:
    kind = onnx.ValueInfoProto.FromString(spec.proto).type.WhichOneof("value")
    if kind not in _KINDS:
        raise SampleError(f"'{path}': input '{spec.name}' of type {kind} cannot be read from a file")
    try:
        return _decode(_KINDS[kind].FromString(path.read_bytes()))
    except (DecodeError, OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise SampleError(f"'{path}' cannot be read as input '{spec.name}' ({kind}): {reason}") from error


def _decode(proto: Any) -> Any:
    if isinstance(proto, onnx.SequenceProto):
        return numpy_helper.to_list(proto)
    if isinstance(proto, onnx.MapProto):
        return numpy_helper.to_dict(proto)
    if isinstance(proto, onnx.OptionalProto):
        held = [value for field, value in proto.ListFields() if field.name.endswith("_value")]
        return _decode(held[0]) if held else None
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        raise ValueError("its values lie in another file")
    return numpy_helper.to_array(proto)
