"""share:palette: few distinct values, fitted to what layers read; pack turns them into codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.base import PassReport
from graphopt.context import Context
from graphopt.errors import UsageError
from graphopt.evaluate import Evaluator
from graphopt.ir.graph import constants
from graphopt.model import Model
from graphopt.pipeline import Pipeline
from graphopt.runtime.session import open_session
from graphopt.samples import open_samples
from graphopt.spec import parse_pass
from graphopt.targets import get_target

INPUTS, HIDDEN, ROWS = 48, 64, 40


def network() -> tuple[Model, Any]:
    """Gemm with a bias, MatMul whose weight is used twice, and samples with correlated features."""
    random = np.random.default_rng(2)
    weights = {
        "a": random.normal(size=(HIDDEN, INPUTS)) / 7,
        "ab": random.normal(size=HIDDEN),
        "b": random.normal(size=(HIDDEN, ROWS)) / 8,
        "few": random.choice([-1.0, 0.5], (ROWS, ROWS)),
        "small": random.normal(size=(ROWS, 2)),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "a", "ab"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["p"]),
        helper.make_node("MatMul", ["h", "b"], ["q"]),
        helper.make_node("Add", ["p", "q"], ["s"]),
        helper.make_node("MatMul", ["s", "few"], ["t"]),
        helper.make_node("MatMul", ["t", "small"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, INPUTS])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "s")],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    for output, width in zip(graph.output, (2, ROWS), strict=True):
        output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, [1, width]))
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    mixed = random.normal(size=(64, 6)) @ random.normal(size=(6, INPUTS)) + 0.2 * random.normal(size=(64, INPUTS))
    return model, open_samples([{"x": row[None].astype(np.float32)} for row in mixed], model.interface)


def shared(model: Model, text: str, samples: Any = None) -> tuple[Model, PassReport]:
    target = get_target("cpu-avx2")
    result = model.copy()
    return result, parse_pass(text).run(result, Context(target, Evaluator(model, target, samples=samples), samples))


def distinct(model: Model) -> dict[str, int]:
    return {constant.name: len(np.unique(constant.values)) for constant in constants(model.graph)}


def error(model: Model, original: Model, samples: Any) -> float:
    with open_session(original) as before, open_session(model) as after:
        pairs = [(before.run(item)["s"], after.run(item)["s"]) for item in samples]
    return float(sum(np.square(a - b).sum() for a, b in pairs) / sum(np.square(a).sum() for a, _ in pairs))


@pytest.mark.parametrize("bits", [1, 4, 6])
def test_large_weights_have_few_values(bits: int) -> None:
    model, samples = network()
    before = distinct(model)
    result, report = shared(model, f"share:palette={bits}", samples)
    after = distinct(result)
    assert report.metrics["fitted"] == 2
    assert all(after[name] <= 2**bits < before[name] for name in ("a", "b"))
    assert after["few"] == before["few"]
    assert after["small"] == before["small"]
    assert any(skip.where == "few" and "distinct" in skip.reason for skip in report.skipped)
    assert distinct(model) == before
    assert shared(result, f"share:palette={bits}", samples)[1].changed == 0, "a second run"


def test_samples_tell_which_errors_matter() -> None:
    model, samples = network()
    fitted, blind = (shared(model, "share:palette=3", given)[0] for given in (samples, None))
    assert error(fitted, model, samples) < 0.6 * error(blind, model, samples)


@pytest.mark.parametrize("unit", [2.0**-90, 2.0**90])
def test_units_do_not_matter(unit: float) -> None:
    model, _ = network()
    scaled = model.copy()
    (weight,) = (constant for constant in constants(scaled.graph) if constant.name == "b")
    (plain,) = (constant for constant in constants(shared(model, "share:palette=4")[0].graph) if constant.name == "b")
    weight.values = weight.values * np.float32(unit)
    found, _ = shared(scaled, "share:palette=4")
    (other,) = (constant for constant in constants(found.graph) if constant.name == "b")
    np.testing.assert_array_equal(other.values, plain.values * np.float32(unit))


def test_pack_stores_the_codes() -> None:
    model, samples = network()
    target = get_target("cpu-avx2")
    context = Context(target, Evaluator(model, target, samples=samples), samples, max_drop=0.05)
    result, steps = Pipeline.parse("share:palette=4,pack").run(model, context)
    assert [step.outcome for step in steps] == ["accepted", "accepted"]
    assert steps[1].report is not None
    assert steps[1].report.metrics["stored as 4-bit palette"] == 2
    assert steps[1].after.nbytes < 0.4 * steps[0].before.nbytes
    assert error(result, model, samples) < 0.05


def test_options() -> None:
    assert parse_pass("share").lossless
    assert not parse_pass("share:palette=2").lossless
    with pytest.raises(UsageError, match="1 to 8"):
        parse_pass("share:palette=9")
