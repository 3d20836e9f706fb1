"""Building models from text, comparing protos, and comparing what models compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import Message
from onnx import parser

from graphopt.model import Model
from graphopt.reader import load

Feeds = Mapping[str, np.ndarray]

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'


def parse(text: str) -> onnx.ModelProto:
    """Return the model of a text in ONNX's own syntax; the header may be left out."""
    return parser.parse_model(text if text.lstrip().startswith("<") else HEADER + text)


def write(proto: onnx.ModelProto, path: Path) -> Path:
    """Write a proto as it is and return the path."""
    path.write_bytes(proto.SerializeToString())
    return path


def round_trip(proto: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Return what comes back after load and save without passes."""
    saved = load(write(proto, folder / "before.onnx")).save(folder / "after.onnx")
    return onnx.load(saved.path, load_external_data=False)


def sorted_infos(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with every list of value infos in order of their names: their order carries no meaning."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    stack: list[Message] = [result.graph, *result.functions]
    while stack:
        scope = stack.pop()
        infos = sorted(scope.value_info, key=lambda info: info.name)
        scope.ClearField("value_info")
        scope.value_info.extend(infos)
        for node in scope.node:
            stack.extend(attribute.g for attribute in node.attribute if attribute.HasField("g"))
    return result


def assert_same_model(found: onnx.ModelProto, wanted: onnx.ModelProto) -> None:
    """Fail unless two protos are equal but for the order of value infos; shows the first lines that differ."""
    found, wanted = sorted_infos(found), sorted_infos(wanted)
    if found == wanted:
        return
    found_lines, wanted_lines = str(found).splitlines(), str(wanted).splitlines()
    for number, (left, right) in enumerate(zip(found_lines, wanted_lines, strict=False)):
        if left != right:
            around = slice(max(0, number - 5), number + 10)
            raise AssertionError("\n".join(["found:", *found_lines[around], "wanted:", *wanted_lines[around]]))
    raise AssertionError(f"found {len(found_lines)} lines, wanted {len(wanted_lines)}: presence of a field differs")


def outputs_of(model: Model | onnx.ModelProto, feeds: Feeds, folder: Path | None = None) -> dict[str, np.ndarray]:
    """Run a model in ONNX Runtime with its optimizations off.

    Args:
        model: The model.
        feeds: Its inputs by name.
        folder: Where external data lies or may be written; by default the model is handed over in memory.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if folder is not None and isinstance(model, Model):
        source: str | bytes = str(model.save(folder / "run.onnx").path)
    else:
        source = (model.to_proto() if isinstance(model, Model) else model).SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    known = {item.name for item in (*session.get_inputs(), *session.get_overridable_initializers())}
    fed = {name: value for name, value in feeds.items() if name in known}
    return dict(zip(names, session.run(names, fed), strict=True))


def random_feeds(
    proto: onnx.ModelProto, seed: int = 0, sizes: Mapping[str, int] | None = None
) -> dict[str, np.ndarray]:
    """Return random inputs of the stated types and shapes.

    Args:
        proto: The model.
        seed: Root of the randomness.
        sizes: Sizes of symbolic dimensions; 2 where not given.
    """
    rng = np.random.default_rng(seed)
    stored = {tensor.name for tensor in proto.graph.initializer}
    feeds = {}
    for info in proto.graph.input:
        if info.name in stored:
            continue
        tensor = info.type.tensor_type
        shape = [dim.dim_value or (sizes or {}).get(dim.dim_param, 2) for dim in tensor.shape.dim]
        feeds[info.name] = random_array(rng, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type), shape)
    return feeds


def random_array(rng: np.random.Generator, dtype: np.dtype, shape: Sequence[int]) -> np.ndarray:
    """Return values that hide little: of both signs, no two alike where the type allows."""
    if dtype == np.bool_:
        return np.asarray(rng.random(shape) < 0.5)
    if dtype.kind in "iu":
        return np.asarray(rng.integers(0, 5, shape), dtype)
    return np.asarray(rng.standard_normal(shape), dtype)


def assert_same_outputs(
    found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], *, rtol: float, atol: float
) -> None:
    """Fail unless names, types, shapes and values agree; NaN equals NaN."""
    assert list(found) == list(wanted)
    for name, expected in wanted.items():
        value = found[name]
        if not isinstance(expected, np.ndarray):
            assert_same_items(value, expected, rtol=rtol, atol=atol)
            continue
        assert value.dtype == expected.dtype, f"{name}: {value.dtype} is not {expected.dtype}"
        assert value.shape == expected.shape, f"{name}: {value.shape} is not {expected.shape}"
        if expected.dtype.kind in "fc":
            np.testing.assert_allclose(value, expected, rtol=rtol, atol=atol, equal_nan=True, err_msg=name)
        else:
            np.testing.assert_array_equal(value, expected, err_msg=name)


def assert_same_items(found: object, wanted: object, *, rtol: float, atol: float) -> None:
    """Compare outputs that are sequences, maps or absent optionals."""
    assert type(found) is type(wanted)
    if isinstance(wanted, list) and isinstance(found, list):
        assert len(found) == len(wanted)
        pairs = list(zip(found, wanted, strict=True))
    elif isinstance(wanted, dict) and isinstance(found, dict):
        assert found.keys() == wanted.keys()
        pairs = [(found[key], wanted[key]) for key in wanted]
    else:
        assert found == wanted
        return
    for left, right in pairs:
        if isinstance(right, np.ndarray):
            assert_same_outputs({"item": left}, {"item": right}, rtol=rtol, atol=atol)
        else:
            assert_same_items(left, right, rtol=rtol, atol=atol)
