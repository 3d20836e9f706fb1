"""Made-up inputs: of sizes that the model runs on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

from graphopt.api import compress
from graphopt.errors import UsageError
from graphopt.evaluate import Evaluator, drawn
from graphopt.evaluate.drawn import drawn_samples
from graphopt.model import Model
from graphopt.targets import get_target


def windows(length: int, dims: str = "n, time") -> Model:
    """A model of sounds: it cuts windows of so many elements, and does not run on less."""
    text = f"""<ir_version: 10, opset_import: ["": 21]>
        g (float[{dims}] x) => (float[n, 1, frames] y)
        {{ one = Constant<value = int64[1] {{1}}>()
           channel = Unsqueeze(x, one)
           y = Conv<strides = [50]>(channel, w) }}"""
    proto = parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1, length), np.float32), "w"))
    return Model.from_proto(proto)


def length_of(samples: Any) -> int:
    return int(next(iter(samples))["x"].shape[1])


@pytest.mark.parametrize(("length", "size"), [(10, 16), (50, 64), (200, 256), (400, 1024), (5000, 16)])
def test_the_smallest_sizes_that_the_model_runs_on(length: int, size: int) -> None:
    assert length_of(drawn_samples(windows(length))) == size


def test_a_graph_has_more_than_one_atom() -> None:
    proto = parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[atoms, 3] x, int64[bonds] ends) => (float[bonds, 3] y) { y = Gather(x, ends) }"""
    )
    found = [feeds["x"].shape for feeds in drawn_samples(Model.from_proto(proto))]
    assert set(found) == {(16, 3)}


def test_nothing_is_run_where_no_size_is_open() -> None:
    model = windows(10, "2, 300")
    found = drawn_samples(model, lambda feeds: pytest.fail("there is no choice"))
    assert length_of(found) == 300


def test_inputs_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "_ELEMENTS", 100)
    assert length_of(drawn_samples(windows(200))) == 16


def test_a_model_that_does_not_open_gets_small_inputs() -> None:
    proto = windows(10).to_proto()
    proto.graph.node[-1].op_type = "Foo"
    assert length_of(drawn_samples(Model.from_proto(proto))) == 16


def test_the_evaluator_has_an_example() -> None:
    target = get_target("cpu-avx2")
    example = Evaluator(windows(400), target, samples=None).inputs.example()
    assert example is not None
    assert example["x"].shape == (1, 1024)
    sequence = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (seq(float[2]) s) => (float[n, 2] y)'
        " { y = ConcatFromSequence<axis = 0, new_axis = 1>(s) }"
    )
    assert Evaluator(Model.from_proto(sequence), target, samples=None).inputs.example() is None


@pytest.mark.parametrize("data", [None, "random"])
def test_a_run_on_made_up_inputs_of_given_sizes(data: str | None) -> None:
    result = compress(windows(400), "fold,half:min-bytes=0", data=data, shapes=["time=4000"])
    assert result.report.before.macs == 400 * 73
    assert {tuple(timing.chosen.items()) for timing in result.report.timings} == {(("x", (1, 4000)),)}


def test_sizes_that_the_model_states_are_not_told() -> None:
    (timing, _) = compress(windows(10, "1, 300"), "fold", benchmark=False).report.timings
    assert timing.chosen == {}


def test_samples_have_sizes_of_their_own() -> None:
    with pytest.raises(UsageError, match="--shape and --data exclude each other: samples have their own shapes"):
        compress(windows(10), "fold", data=np.ones((3, 400), np.float32), shapes=["time=4000"])


@pytest.mark.parametrize("data", [None, "random"])
def test_a_run_on_made_up_inputs(data: str | None) -> None:
    result = compress(windows(400), "fold,half:min-bytes=0", data=data, benchmark=False)
    assert result.report.before.macs == 400 * 13
    assert result.report.steps[0].outcome in ("accepted", "unchanged")
