"""Models that hand on a state: judged over chains of steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

from graphopt.api import compress
from graphopt.errors import SampleError
from graphopt.evaluate import Evaluator
from graphopt.evaluate.chains import STEPS, as_one, chain_count, chains, handed_on, run_chain
from graphopt.model import Model
from graphopt.report.terminal import quality_line
from graphopt.samples import Samples, open_samples
from graphopt.targets import get_target

WIDTH = 8


def cell(*, scale: float = 1.0, output: str = "state_out") -> Model:
    """A cell that forgets nothing: y = x + scale * state, so an error of the scale adds up."""
    text = f"""<ir_version: 10, opset_import: ["": 21]>
        g (float[n, {WIDTH}] x, float[n, {WIDTH}] state) => (float[n, {WIDTH}] {output})
        {{ kept = Mul(state, scale)
           {output} = Add(x, kept) }}"""
    proto = parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([scale], np.float32), "scale"))
    return Model.from_proto(proto)


def feeds(count: int, rows: int = 1) -> list[dict[str, Any]]:
    rng = np.random.default_rng(3)
    # all of one sign: what was handed on does not cancel out
    return [
        {name: rng.uniform(1, 2, (rows, WIDTH)).astype(np.float32) for name in ("x", "state")} for _ in range(count)
    ]


def samples(model: Model, given: list[dict[str, Any]]) -> Samples:
    return open_samples(given, model.interface)


def judge(model: Model, given: list[dict[str, Any]]) -> Evaluator:
    return Evaluator(model, get_target("cpu-avx2"), samples=samples(model, given))


@pytest.mark.parametrize("count", [1, 3, 8, 16, 17, 100, 200])
def test_every_sample_is_in_a_chain_of_full_length(count: int) -> None:
    numbered = [{"x": np.full((1, WIDTH), index, np.float32), "state": feeds(1)[0]["state"]} for index in range(count)]
    found = list(chains(samples(cell(), numbered)))
    assert len(found) == chain_count(count) <= count
    for first, chain in found:
        assert [int(step["x"][0, 0]) for step in chain] == [(first + step) % count for step in range(STEPS)]
    assert {int(step["x"][0, 0]) for _, chain in found for step in chain} == set(range(count))


def test_a_chain_is_run_on_the_states_of_the_model_itself() -> None:
    given = feeds(3)
    found = run_chain(lambda step: {"state_out": step["x"] + step["state"]}, given, {"state": "state_out"})
    total = given[0]["state"] + sum(step["x"] for step in given)
    np.testing.assert_allclose(found[-1]["state_out"], total, rtol=1e-6)
    assert set(as_one(found)) == {"state_out"}
    assert len(as_one(found)["state_out"]) == 3
    assert as_one(found[:1]) is found[0]


def test_samples_of_other_sizes_end_a_chain() -> None:
    small, large = feeds(1)[0], feeds(1, rows=2)[0]
    assert handed_on(large, {"state_out": small["state"]}, {"state": "state_out"}) is None
    assert len(run_chain(lambda step: {"state_out": step["state"]}, [small, large], {"state": "state_out"})) == 1
    chained, single = (
        judge(cell(output=output), [small, large]).drop(cell(scale=0.9, output=output)) for output in ("state_out", "y")
    )
    assert chained is not None
    assert single is not None
    assert chained.value == pytest.approx(single.value)


def test_errors_that_add_up_are_seen() -> None:
    given = feeds(20)
    chained, single = (
        judge(cell(output=output), given).drop(cell(scale=0.97, output=output)) for output in ("state_out", "y")
    )
    assert chained is not None
    assert single is not None
    assert chained.value > 5 * single.value > 0
    assert (chained.samples, chained.steps, chained.states) == (20, STEPS, {"state": "state_out"})
    assert (single.steps, single.states) == (1, {})
    assert chained.describe() == "agreement on 20 samples in chains of 8 steps, 'state_out' handed on as 'state'"


def test_the_first_judgement_and_later_ones_are_the_same() -> None:
    evaluator = judge(cell(), feeds(5))
    first = evaluator.drop(cell(scale=0.9))
    assert evaluator.drop(cell(scale=0.9)) == first
    evaluator.close()
    assert evaluator.drop(cell(scale=0.9)) == first
    same = evaluator.drop(cell())
    assert same is not None
    assert same.value == 0


LOOKUP = """<ir_version: 10, opset_import: ["": 21]>
    g (int64[1] x, float[1] state, int64[1] limit) => (float[1] y, float[1] state_out)
    { y = Gather(w, x)
      whole = Cast<to = 7>(state)
      allowed = Add(whole, limit)
      checked = Gather(w, allowed)
      state_out = Add(state, checked) }"""


def lookup() -> Model:
    proto = parser.parse_model(LOOKUP)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "w"))
    return Model.from_proto(proto)


def test_a_sample_that_does_not_run_on_the_state_of_another_ends_the_chain() -> None:
    given = {"x": np.array([0]), "state": np.array([2.0], np.float32), "limit": np.array([0])}
    drop = judge(lookup(), [given] * 2).drop(lookup())  # the state grows by 1 a step: 2, 3, and 4 is out of range
    assert drop is not None
    assert drop.value == 0


@pytest.mark.parametrize("place", [0, 1])
def test_a_sample_that_does_not_run_at_all_is_named(place: int) -> None:
    good = {"x": np.array([0]), "state": np.zeros(1, np.float32), "limit": np.array([0])}
    given = [good] * 2
    given[place] = {**good, "x": np.array([9])}
    with pytest.raises(SampleError, match=f"^sample {place} of "):
        judge(lookup(), given).drop(lookup())


def test_the_report_says_that_steps_were_chained() -> None:
    given = feeds(4)
    result = compress(cell(), "half:min-bytes=0", data=given, max_drop=1, benchmark=False)
    assert "4 samples in chains of 8 steps, 'state_out' handed on as 'state'" in quality_line(result.report)
    written = result.report.to_json()["drop"]
    assert (written["steps"], written["states"]) == (STEPS, {"state": "state_out"})


def test_a_metric_brings_its_own_steps() -> None:
    result = compress(cell(), "half:min-bytes=0", data=feeds(4), metric=lambda run: 1.0, max_drop=1, benchmark=False)
    assert result.report.drop is not None
    assert result.report.drop.states == {}
