"""States that a model hands on: errors add up over steps, and automatic bits are chosen by what they add up to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.context import Context
from graphopt.evaluate import Evaluator
from graphopt.evaluate.states import states
from graphopt.model import Model
from graphopt.passes.pack.sensitivity import OutputLoss
from graphopt.samples import open_samples
from graphopt.spec import parse_pass
from graphopt.targets import get_target

WIDTH = 64


def array(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ({"x": (1, 4), "state": (2, 8)}, {"y": (1, 4), "stateN": (2, 8)}, {"state": "stateN"}),
        ({"x": (3,), "h": (1, 8), "c": (1, 8)}, {"cn": (1, 8), "hn": (1, 8)}, {"h": "hn", "c": "cn"}),
        ({"past_key": (1, 8), "past_value": (1, 8)}, {"present_value": (1, 8)}, {"past_value": "present_value"}),
        ({"image": (1, 8)}, {"y": (1, 8)}, {}),
        ({"input": (1, 8)}, {"output": (1, 8)}, {}),
        ({"cache": (1, 8)}, {"cache_out": (1, 9)}, {}),
        ({"scale": ()}, {"scale_out": ()}, {}),
        ({}, {"y": (1,)}, {}),
    ],
)
def test_states_are_known_by_shape_and_name(inputs: Any, outputs: Any, expected: dict[str, str]) -> None:
    feeds = {name: array(*shape) for name, shape in inputs.items()}
    assert states(feeds, {name: array(*shape) for name, shape in outputs.items()}) == expected


def test_only_floats_are_states() -> None:
    assert states({"step": np.ones(3, np.int64)}, {"step_out": np.ones(3, np.int64)}) == {}
    assert states({"state": array(3)}, {"state_out": array(3).astype(np.float64)}) == {}


def recurrent(*, handed_on: bool) -> tuple[Model, Any]:
    """A cell whose state keeps nearly all of its energy, with the next state under a name that says so, or not."""
    random = np.random.default_rng(5)
    keep = np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))[0] * 0.995
    weights = {"w": keep, "u": random.normal(size=(WIDTH, WIDTH)) / 80}
    output = "state_out" if handed_on else "y"
    nodes = [
        helper.make_node("MatMul", ["state", "w"], ["kept"]),
        helper.make_node("MatMul", ["x", "u"], ["fresh"]),
        helper.make_node("Add", ["kept", "fresh"], [output]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, WIDTH]) for name in ("x", "state")],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, WIDTH])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    feeds = [
        {name: random.normal(size=(1, 1, WIDTH)).astype(np.float32)[0] for name in ("x", "state")} for _ in "x" * 120
    ]
    return model, open_samples(feeds, model.interface)


def bits_note(model: Model, samples: Any) -> tuple[float, str]:
    target = get_target("cpu-avx2")
    context = Context(target, Evaluator(model, target, samples=samples), samples, max_drop=0.01)
    report = parse_pass("pack:bits=auto:min-bytes=512").run(model.copy(), context)
    return float(report.notes[0].split()[0]), report.notes[0]


def test_a_state_costs_bits() -> None:
    (single, without), (several, with_state) = (bits_note(*recurrent(handed_on=known)) for known in (False, True))
    assert "state_out handed on as state" in with_state
    assert "handed on" not in without
    assert several >= single + 0.5, "over 8 steps the error of one adds up"


def test_error_of_several_steps() -> None:
    model, samples = recurrent(handed_on=True)
    loss = OutputLoss(model, samples)
    assert loss.states == {"state": "state_out"}
    assert loss.of(model) == loss.worst(model) == 0
    changed = model.copy()
    weight = changed.graph.nodes[0].inputs[1]
    weight.values = weight.values * np.float32(0.99)
    unknown, others = recurrent(handed_on=False)
    once = unknown.copy()
    first = once.graph.nodes[0].inputs[1]
    first.values = first.values * np.float32(0.99)
    assert loss.worst(changed) > 5 * OutputLoss(unknown, others).worst(once) > 0
