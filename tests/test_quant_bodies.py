"""What bodies of If read: tensors that ONNX Runtime's optimizer would crash on if they came from a DequantizeLinear."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt.api import compress
from graphopt.model import Model
from graphopt.runtime.hazards import hazard
from graphopt.runtime.session import open_session

READ = """y = If (c) <then_branch = t () => (float[?] p) { p = Relu(m) },
                    else_branch = e () => (float[?] q) { q = Neg(m) }>"""
MOVES = {
    "MaxPool": "m = MaxPool <kernel_shape = [2, 2]> (r)",
    "Reshape": "m = Reshape(r, shape)",
    "Slice": "m = Slice(r, zero, six, axes)",
    "Transpose, then Unsqueeze": "u = Transpose <perm = [0, 2, 3, 1]> (r) m = Unsqueeze(u, zero)",
    "Squeeze": "u = Unsqueeze(r, zero) m = Squeeze(u, zero)",
}


def build(inputs: str, nodes: str, outputs: str, **weights: tuple[int, ...]) -> Model:
    """Return a model with random weights whose outputs have no stated shapes."""
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g ({inputs}, bool c) => ({outputs})
        <int64[1] zero = {{0}}, int64[1] six = {{6}}, int64[1] axes = {{2}}, int64[2] shape = {{1, -1}}>
        {{ {nodes} {READ.replace("float[?]", "float")} }}"""
    )
    scopes = [proto.graph, *(attribute.g for node in proto.graph.node for attribute in node.attribute)]
    for output in (output for scope in scopes for output in scope.output):
        output.type.tensor_type.ClearField("shape")
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        values = (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return Model.from_proto(proto)


@pytest.mark.parametrize("move", MOVES)
def test_a_convolution_whose_moved_output_a_body_reads_is_quantized(move: str) -> None:
    nodes = f"a = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu(a) {MOVES[move]} z = Conv(r, v)"
    before = build("float[1, 16, 8, 8] x", nodes, "float y, float z", w=(32, 16, 3, 3), v=(32, 32, 3, 3))
    rng = np.random.default_rng(1)
    data = [{"x": rng.normal(size=(1, 16, 8, 8)).astype(np.float32), "c": np.array(bool(n % 2))} for n in range(2)]
    _check(before, "quant:mode=static", data, 2)


def test_rows_of_a_table_that_a_body_reads_are_quantized() -> None:
    before = build("int64[1, 8] x", "r = Gather(w, x) m = Unsqueeze(r, zero)", "float y", w=(2000, 64))
    rng = np.random.default_rng(1)
    data = [{"x": rng.integers(0, 2000, (1, 8)), "c": np.array(bool(number % 2))} for number in range(2)]
    _check(before, "quant:mode=dynamic", data, 1)


def _check(before: Model, spec: str, data: list[dict[str, np.ndarray]], changed: int) -> None:
    result = compress(before, spec, data=data, max_drop=1.0, benchmark=False)
    step = result.report.steps[-1]
    assert (step.outcome, step.reason) == ("accepted", "")
    assert step.report is not None
    assert step.report.changed == changed
    assert hazard(result.model.graph) == ""
    with open_session(before) as first, open_session(result.model) as second:
        for feeds in data:
            wanted, found = first.run(feeds), second.run(feeds)
            for name, value in wanted.items():
                np.testing.assert_allclose(found[name], value, atol=0.03 * float(np.abs(value).max()))
