"""Quantization for runtimes that read the pattern themselves: where the conversions stand, checked in the graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from graphopt.api import compress
from graphopt.model import Model
from graphopt.passes.quant.numbers.ranges import affine, choose_range, squared_errors
from graphopt.runtime.session import open_session

RNG = np.random.default_rng(5)
RESIDUAL = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 16, 12, 12] x) => (float[1, 16, 12, 12] y)
<float[16, 16, 3, 3] a, float[16] p, float[16, 16, 3, 3] b, float[16, 16, 1, 1] c>
{
  h = Conv <pads = [1, 1, 1, 1]> (x, a, p)
  r = Relu(h)
  s = Conv <pads = [1, 1, 1, 1]> (r, b)
  t = Add(s, r)
  y = Conv(t, c)
}
"""
NARROW = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 3, 12, 12] x) => (float[1, 16, 12, 12] y)
<float[16, 3, 3, 3] a, float[16, 16, 3, 3] b>
{
  h = Conv <pads = [1, 1, 1, 1]> (x, a)
  y = Conv <pads = [1, 1, 1, 1]> (h, b)
}
"""


def build(text: str) -> Model:
    """Return the model with random values for the weights that the text only declares."""
    proto = onnx.parser.parse_model(text)
    for info in proto.graph.value_info:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        values = RNG.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), info.name))
    del proto.graph.value_info[:]
    return Model.from_proto(proto)


def feeds(channels: int) -> list[Mapping[str, np.ndarray]]:
    return [{"x": RNG.normal(size=(1, channels, 12, 12)).astype(np.float32)} for _ in range(4)]


def quantized(text: str, target: str, channels: int = 16) -> tuple[Model, gs.Graph, object]:
    data = feeds(channels)
    result = compress(build(text), "quant", data=data, target=target, max_drop=0.1, benchmark=False)
    step = result.report.steps[-1]
    assert step.outcome == "accepted", step.reason
    return result.model, result.model.graph, step


def is_quantized(tensor: gs.Tensor, *, signed: bool = True) -> bool:
    """Whether a tensor is read back from integers: int8 with zero for zero, or else uint8."""
    if not tensor.inputs or tensor.inputs[0].op != "DequantizeLinear":
        return False
    zero = tensor.inputs[0].inputs[2]
    assert np.dtype(zero.dtype) == (np.int8 if signed else np.uint8)
    assert not (signed and zero.values.any())
    return True


def named(graph: gs.Graph, op: str) -> list[gs.Node]:
    return [node for node in graph.nodes if node.op == op]


@pytest.mark.parametrize("target", ["tensorrt", "openvino"])
def test_only_inputs_are_quantized_and_biases_stay_float(target: str) -> None:
    _, graph, _ = quantized(RESIDUAL, target)
    convolutions = named(graph, "Conv")
    assert len(convolutions) == 3
    for node in convolutions:
        assert is_quantized(node.inputs[0], signed=target == "tensorrt"), "OpenVINO errs with int8 behind a Concat"
        assert is_quantized(node.inputs[1])
        assert node.inputs[1].inputs[0].attrs["axis"] == 0
        if len(node.inputs) > 2:
            assert np.dtype(node.inputs[2].dtype) == np.float32
        if target == "tensorrt":
            assert all(reader.op != "QuantizeLinear" for reader in node.outputs[0].outputs)
    assert len(named(graph, "Relu")) == 1, "what is behind an operator stays as it is"


def test_tensorrt_quantizes_the_skip_connection_of_an_add_only() -> None:
    _, graph, _ = quantized(RESIDUAL, "tensorrt")
    (add,) = named(graph, "Add")
    assert [is_quantized(tensor) for tensor in add.inputs] == [False, True]
    _, graph, _ = quantized(RESIDUAL, "openvino")
    (add,) = named(graph, "Add")
    assert [is_quantized(tensor, signed=False) for tensor in add.inputs] == [True, True]


def test_tensorrt_leaves_narrow_convolutions_float() -> None:
    _, graph, step = quantized(NARROW, "tensorrt", 3)
    assert [is_quantized(node.inputs[1]) for node in named(graph, "Conv")] == [False, True]
    assert ["fewer than 16 channels" in skip.reason for skip in step.report.skipped] == [True]  # type: ignore[attr-defined]


@pytest.mark.parametrize("target", ["tensorrt", "openvino"])
def test_the_model_runs_and_a_second_run_changes_nothing(target: str) -> None:
    model, _, _ = quantized(RESIDUAL, target)
    with open_session(model) as session:
        assert np.isfinite(session.run(feeds(16)[0])["y"]).all()
    again = compress(model, "quant", data=feeds(16), target=target, max_drop=0.1, benchmark=False)
    assert again.report.steps[-1].outcome == "unchanged"


def test_without_samples_there_is_nothing_to_write() -> None:
    step = compress(build(RESIDUAL), "quant", target="tensorrt", benchmark=False).report.steps[-1]
    assert step.outcome == "unchanged"
    assert step.report is not None
    assert "needs samples (--data)" in " ".join(step.report.notes)


def test_signed_ranges_reach_as_far_on_both_sides() -> None:
    found = affine(-1.0, 3.0, signed=True)
    assert found.zero_point == 0
    assert found.dtype == np.dtype(np.int8)
    assert found.high == pytest.approx(3.0)
    assert found.codes(np.array([-9.0, 0.0, 3.0], np.float32)).tolist() == [-128, 0, 127]
    values = RNG.standard_cauchy(size=20_000)
    counts, edges = np.histogram(values, 2048)
    low, high = choose_range("mse", float(values.min()), float(values.max()), counts, edges, symmetric=True)
    assert low == -high
    whole = float(np.abs(values).max())
    ours, theirs = squared_errors(np.array([low, -whole]), np.array([high, whole]), counts, edges)
    assert ours <= theirs
