"""Models older than the operators that a pass needs: raised to an opset that has them, by ONNX's own converter."""

from __future__ import annotations

import re

import onnx
from onnx import version_converter

from graphopt.errors import ModelError
from graphopt.ir.clean import clean
from graphopt.model import PROTOBUF_LIMIT, Model
from graphopt.runtime.session import open_session
from graphopt.shapes import infer_shapes

PER_CHANNEL, PER_TENSOR = 13, 10  # first opset whose DequantizeLinear has an axis, and that has one at all
AT_RUN_TIME = 11  # first opset with DynamicQuantizeLinear
DECODERS = 11  # first opset that has all that decoders of weights in few bits consist of; Clip has inputs since
WANTED = 17
_REFUSALS = (
    version_converter.ConvertError,
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    RuntimeError,
    ValueError,
)
_PLACE = re.compile(r"\S+:\d+: \w+: Assertion `.*?` failed: (?:Warning: )?")  # in the converter's source
_UNKNOWN = re.compile(rf"Op '%s' has no registered schema; .*%lld\.(.+?)\d{{1,2}}{WANTED}")  # values follow the text


def raised(model: Model, least: int, purpose: str) -> tuple[Model, str]:
    """Return the model in a recent opset, if its own is too old, and a line for the user.

    A model that is new enough comes back as it is, with no line. One that cannot be converted, or that ONNX Runtime
    does not open afterwards, comes back as it is with the reason.

    Args:
        model: Stays as it is.
        least: The opset that is needed.
        purpose: What it is needed for, in words.
    """
    before = model.opset
    if before >= least:
        return model, ""
    if model.weight_bytes > PROTOBUF_LIMIT:
        return model, f"opset {before} was kept: the converter takes no model of more than 2 GiB"
    try:
        before_proto = model.to_proto()
        proto = version_converter.convert_version(before_proto, WANTED)
    except _REFUSALS as error:
        return model, f"opset {before} was kept: the converter failed ({operative_part(error)})"
    _restate(proto, before_proto)
    converted = Model.from_proto(proto, model.path)
    converted.residue = model.residue
    converted.graph.ir_version = max(model.graph.ir_version or 0, 8)
    if converted.interface != model.interface:
        return model, f"opset {before} was kept: the converter changed inputs or outputs"
    try:
        open_session(converted).close()
    except ModelError as error:
        return model, f"opset {before} was kept: the converted model does not open ({error})"
    clean(converted.graph)
    infer_shapes(converted)
    return converted, f"the model was converted from opset {before} to {WANTED} for {purpose}"


def _restate(proto: onnx.ModelProto, before: onnx.ModelProto) -> None:
    """Give inputs and outputs the types that the file stated: the converter writes down what it infers."""
    for infos, stated in ((proto.graph.input, before.graph.input), (proto.graph.output, before.graph.output)):
        if [info.name for info in infos] == [info.name for info in stated]:
            del infos[:]
            infos.extend(stated)


def operative_part(error: Exception) -> str:
    """Return what the converter's error says, in one line without places in its source."""
    text = _PLACE.sub("", " ".join(str(error).split()))
    unknown = _UNKNOWN.fullmatch(text)
    if unknown:
        return f"it knows no operator {unknown[1]}"
    return text[:120] or type(error).__name__
