"""Integer weights of quantized models: fewer distinct values at the same scales, and the same integer kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.context import Context
from graphopt.evaluate import Evaluator
from graphopt.ir.clean import clean
from graphopt.ir.graph import constants
from graphopt.model import Model
from graphopt.passes.pack.floats import Floats
from graphopt.passes.pack.unpack import unpack
from graphopt.runtime.session import op_counts, open_session, optimized_model
from graphopt.samples import open_samples
from graphopt.spec import parse_pass
from graphopt.targets import get_target

CHANNELS, SIDE, ROWS = 16, 6, 32
STEP = np.float32(0.05)  # of all activations


def quantized(*, per_tensor: bool = False, zero: int = 0) -> tuple[Model, Any]:
    """Two convolutions in QDQ form with an int32 bias, as ONNX Runtime fuses them, and samples."""
    random = np.random.default_rng(3)
    weights: dict[str, np.ndarray] = {"s": np.array(STEP), "z": np.array(0, np.int8)}
    nodes: list[onnx.NodeProto] = []

    def pair(name: str, output: str) -> None:
        nodes.append(helper.make_node("QuantizeLinear", [name, "s", "z"], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "s", "z"], [output]))

    pair("x", "x_d")
    last, inputs = "x_d", CHANNELS
    for index in range(2):
        values = random.normal(size=(ROWS, inputs, 3, 3)) * random.uniform(0.3, 1, (ROWS, 1, 1, 1)) / 20
        scale = np.abs(values).max(axis=(1, 2, 3)) / 127
        scale = np.full_like(scale, scale.max()) if per_tensor else scale
        whole = np.rint(values / scale.reshape(-1, 1, 1, 1)).astype(np.int8)
        stored = scale[0] if per_tensor else scale
        weights |= {
            f"w{index}": whole,
            f"ws{index}": np.asarray(stored, np.float32),
            f"wz{index}": np.full(np.shape(stored), zero, np.int8),
            f"b{index}": np.rint(random.normal(size=ROWS) / (scale * STEP) / 5).astype(np.int32),
            f"bs{index}": np.asarray(stored * STEP, np.float32),
        }
        axis: dict[str, Any] = {} if per_tensor else {"axis": 0}
        nodes += [
            helper.make_node("DequantizeLinear", [f"w{index}", f"ws{index}", f"wz{index}"], [f"w{index}_d"], **axis),
            helper.make_node("DequantizeLinear", [f"b{index}", f"bs{index}"], [f"b{index}_d"], **axis),
            helper.make_node("Conv", [last, f"w{index}_d", f"b{index}_d"], [f"h{index}"], pads=[1, 1, 1, 1]),
        ]
        pair(f"h{index}", f"h{index}_d")
        last, inputs = f"h{index}_d", ROWS
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, ROWS, SIDE, SIDE])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    images = [
        random.normal(size=(1, 1, SIDE, SIDE)) + 0.3 * random.normal(size=(1, CHANNELS, SIDE, SIDE)) for _ in "x" * 12
    ]
    return model, open_samples([{"x": image.astype(np.float32)} for image in images], model.interface)


def packed(model: Model, text: str, samples: Any = None, max_drop: float = 0.02) -> tuple[Model, Any]:
    target = get_target("cpu-avx2")
    context = Context(target, Evaluator(model, target, samples=samples), samples, max_drop=max_drop)
    result = model.copy()
    report = parse_pass(text).run(result, context)
    clean(result.graph)
    onnx.checker.check_model(result.to_proto(), full_check=True)
    return result, report


def error(model: Model, original: Model, samples: Any) -> float:
    with open_session(original) as before, open_session(model) as after:
        pairs = [(before.run(item)["y"], after.run(item)["y"]) for item in samples]
    return float(sum(np.square(a - b).sum() for a, b in pairs) / sum(np.square(a).sum() for a, _ in pairs))


def scales(model: Model) -> dict[str, np.ndarray]:
    return {constant.name: constant.values for constant in constants(model.graph) if constant.name[:2] in ("ws", "bs")}


@pytest.mark.parametrize("per_tensor", [False, True])
def test_four_bits_keep_scales_and_integer_kernels(per_tensor: bool) -> None:
    model, samples = quantized(per_tensor=per_tensor)
    result, report = packed(model, "pack:bits=4", samples)
    assert sum(report.metrics.values()) == 2
    assert all("palette" in kind for kind in report.metrics)
    assert result.to_proto().ByteSize() < 0.9 * model.to_proto().ByteSize()
    assert op_counts(optimized_model(result)) == op_counts(optimized_model(model))
    assert sum(count for op, count in op_counts(optimized_model(result)).items() if op.endswith("QLinearConv")) == 2
    before = scales(model)
    assert all(np.array_equal(values, before[name]) for name, values in scales(result).items())
    assert error(result, model, samples) < 0.02
    assert error(result, model, samples) < 0.7 * error(packed(model, "pack:bits=4")[0], model, samples)


@pytest.mark.parametrize("per_tensor", [False, True])
def test_integers_on_a_trellis_lose_less(per_tensor: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = quantized(per_tensor=per_tensor)
    levels, _ = packed(model, "pack:bits=3", samples)
    monkeypatch.setattr("graphopt.passes.pack.chain._LEAST_ROWS", 16)
    result, report = packed(model, "pack:bits=3", samples)
    assert sum(count for kind, count in report.metrics.items() if kind.endswith("trellis codes")) == 1  # one is small
    assert op_counts(optimized_model(result)) == op_counts(optimized_model(model))
    before = scales(model)
    assert all(np.array_equal(values, before[name]) for name, values in scales(result).items())
    assert error(result, model, samples) < 0.95 * error(levels, model, samples)
    back = Model.from_proto(result.to_proto())
    assert unpack(back) == report.changed
    weights = {constant.name: constant.values for constant in constants(back.graph)}
    assert weights["w0"].dtype == weights["w1"].dtype == np.int8
    with open_session(back) as after, open_session(result) as session:
        assert all(np.array_equal(after.run(item)["y"], session.run(item)["y"]) for item in samples)


def test_biases_take_up_the_mean() -> None:
    model, samples = quantized()
    result, _ = packed(model, "pack:bits=3", samples)
    before, after = ({c.name: c.values for c in constants(m.graph)} for m in (model, result))
    assert after["b1"].dtype == np.int32
    assert (after["b1"] != before["b1"]).any()


def test_automatic_bits_of_integers_hold_the_limit() -> None:
    model, samples = quantized()
    result, report = packed(model, "pack:bits=auto", samples, max_drop=0.03)
    assert "hold the limit" in report.notes[0]
    assert error(result, model, samples) <= 0.03
    assert result.to_proto().ByteSize() < 0.9 * model.to_proto().ByteSize()


def test_without_bits_integers_stay_as_they_are() -> None:
    model, samples = quantized()
    result, report = packed(model, "pack", samples)
    assert report.changed == 0
    assert result.to_proto() == model.to_proto()


def test_what_is_not_symmetric_is_left_alone() -> None:
    model, samples = quantized(zero=3)
    floats = Floats(model, constants(model.graph))
    assert [unit.name for unit in floats.units] == []
    assert packed(model, "pack:bits=4", samples)[1].changed == 0


def test_the_way_back_is_exact() -> None:
    model, _ = quantized()
    before = {constant.name: constant.values for constant in constants(model.graph)}
    floats = Floats(model, constants(model.graph))
    assert {unit.name for unit in floats.units} == {"w0_d/float", "w1_d/float"}
    for unit in floats.units:
        unit.constant.values = unit.constant.values.copy()
    assert floats.write_back([]) == {}
    after = {constant.name: constant.values for constant in constants(model.graph)}
    assert all(np.array_equal(values, after[name]) for name, values in before.items())


def dynamic(*, cast: bool = True) -> tuple[Model, Any]:
    """A MatMul in the form of dynamic quantization, as ONNX Runtime fuses it, and samples with correlated features."""
    random = np.random.default_rng(6)
    weights: dict[str, np.ndarray] = {
        "w": np.clip(np.rint(random.normal(size=(96, 160)) * 40), -127, 127).astype(np.int8),
        "s": random.uniform(0.001, 0.01, 160).astype(np.float32),
    }
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        helper.make_node("MatMulInteger", ["q", "w", "qz"], ["i" if cast else "y"]),
    ]
    if cast:
        nodes += [
            helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["qs", "s"], ["scale"]),
            helper.make_node("Mul", ["f", "scale"], ["y"]),
        ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 96])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT if cast else TensorProto.INT32, [1, 160])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    rows = random.normal(size=(24, 5)) @ random.normal(size=(5, 96)) + 0.2 * random.normal(size=(24, 96))
    return model, open_samples([{"x": row[None].astype(np.float32)} for row in rows], model.interface)


def test_dynamic_quantization_is_fitted_too() -> None:
    model, samples = dynamic()
    (unit,) = Floats(model, constants(model.graph)).units
    assert unit.layer is not None, "its inputs are known"
    result, report = packed(model, "pack:bits=4", samples)
    assert report.changed == 1
    assert op_counts(optimized_model(result)) == op_counts(optimized_model(model))
    assert result.to_proto().ByteSize() < 0.9 * model.to_proto().ByteSize()
    assert error(result, model, samples) < 0.02
    assert error(result, model, samples) < 0.7 * error(packed(model, "pack:bits=4")[0], model, samples)


def test_integers_that_stay_integers_are_left_alone() -> None:
    model, _ = dynamic(cast=False)
    assert Floats(model, constants(model.graph)).units == []
