"""Smoothing: factors from their purpose, and models that it changes, or does not, and that compute the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import numpy_helper

from graphopt.evaluate import Evaluator
from graphopt.ir.clean import clean
from graphopt.model import Model
from graphopt.observe import Observer
from graphopt.passes.quant.nodes.units import Unit, find_units
from graphopt.passes.quant.numbers.calibrate import calibrate, extended
from graphopt.passes.quant.numbers.smooth import Smoothing, smooth, smoothing_factors, undo
from graphopt.passes.quant.search.errors import OutputError
from graphopt.passes.quant.search.judging import Judge
from graphopt.passes.quant.search.plans import IntegerOptions, Plan, make_plans
from graphopt.passes.quant.search.search import Search
from graphopt.passes.quant.search.workshop import Workshop
from graphopt.runtime.session import open_session
from graphopt.runtime.timing import Ratio
from graphopt.samples import open_samples
from graphopt.shapes import infer_shapes
from graphopt.targets import get_target
from tests.helpers import parse

TARGET = get_target("cpu-avx2")
FAR = 5  # the channel that reaches far
RESIDUAL = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 64] x) => (float[N, 64] y, float[N, 32] z)
{
  n = LayerNormalization(x, gamma, beta)
  h = MatMul(n, w)
  y = Add(h, n)
  z = Gemm<transB = 1>(n, v)
}
"""


def build(text: str = RESIDUAL) -> Model:
    rng = np.random.default_rng(2)
    gamma = np.ones(64, np.float32)
    gamma[FAR] = 40
    weights: dict[str, np.ndarray] = {
        "w": rng.normal(size=(64, 64)).astype(np.float32) / 8,
        "v": rng.normal(size=(32, 64)).astype(np.float32) / 8,
        "gamma": gamma,
        "beta": np.zeros(64, np.float32),
    }
    weights["w"][FAR] /= 40
    weights["v"][:, FAR] /= 40
    proto = parse(text)
    proto.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in weights.items())
    model = Model.from_proto(proto)
    infer_shapes(model)
    return model


def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [{"x": rng.normal(size=(16, 64)).astype(np.float32)} for _ in range(4)]


def smoothed(model: Model) -> tuple[list[Unit], list[Smoothing]]:
    units, _ = find_units(model.graph, TARGET, model.opset)
    return units, smooth(model, units, calibrate(model, units, Observer(open_samples(feeds(), model.interface))))


def answers(model: Model) -> list[dict[str, np.ndarray]]:
    copy = model.copy()
    clean(copy.graph)
    with open_session(copy, optimize=False) as session:
        return [session.run(item) for item in feeds()]


def test_factors_cut_what_reaches_far_down_to_the_others() -> None:
    reach, weight = np.full(64, 2.0), np.full((64, 16), 0.1)
    reach[FAR], weight[FAR] = 60.0, 0.001
    factors = smoothing_factors(-reach, reach, weight, 1.0)
    np.testing.assert_array_equal(np.flatnonzero(factors > 1), [FAR])
    assert reach[FAR] / factors[FAR] <= 2.0
    assert np.log2(factors[FAR]).is_integer()


def test_like_channels_are_left_alone() -> None:
    reach = np.linspace(1.8, 2.2, 64)
    assert (smoothing_factors(-reach, reach, np.ones((64, 16)), 1.0) == 1).all()
    assert (smoothing_factors(np.zeros(8), np.zeros(8), np.ones((8, 4)), 0.0) == 1).all()


def test_weights_that_would_lose_more_are_left_alone() -> None:
    reach, weight = np.full(64, 2.0), np.full((64, 16), 1e-3)
    reach[FAR], weight[FAR] = 60.0, 10.0  # its row sets the scale of every output already
    assert (smoothing_factors(-reach, reach, weight, 1.0) == 1).all()


def test_the_float_model_stays_the_same_and_smoothing_can_be_taken_back() -> None:
    model = build()
    before = answers(model)
    _, (found,) = smoothed(model)
    assert found.tensor == "n"
    assert [model.graph.nodes[position].op for position in found.readers] == ["MatMul", "Gemm"]
    kept, without = model.copy(), model.copy()
    undo(kept, [found], frozenset(found.readers[:1]))
    undo(without, [found], frozenset())
    assert [node.op for node in kept.graph.nodes].count("Mul") == 1
    clean(without.graph)
    assert "Mul" not in {node.op for node in without.graph.nodes}
    for changed in (model, kept, without):
        for wanted, seen in zip(before, answers(changed), strict=True):
            for name, value in wanted.items():
                np.testing.assert_allclose(seen[name], value, rtol=1e-5, atol=1e-5)


def test_a_weight_that_something_else_reads_is_left_alone() -> None:
    model = build(
        RESIDUAL.replace("y = Add(h, n)", "y = Add(h, n)\n  u = ReduceSum(w)").replace(
            "(float[N, 64] y", "(float u, float[N, 64] y"
        )
    )
    _, (found,) = smoothed(model)
    assert [model.graph.nodes[position].op for position in found.readers] == ["Gemm"]


def test_what_was_smoothed_is_known_as_well() -> None:
    model = build()
    units, _ = find_units(model.graph, TARGET, model.opset)
    before = calibrate(model, units, Observer(open_samples(feeds(), model.interface)))
    (found,) = smooth(model, units, before)
    after = extended(before, model, [found.smooth])
    wide, narrow = (np.ptp(after.range(name, "minmax", None)) for name in ("n", found.smooth))
    assert wide > 8 * narrow
    assert after.observed == before.observed | {found.smooth}


def search_for(limit: float, speeds: list[float]) -> tuple[Search, list[Plan]]:
    """Return a search that is told speeds in turn, the last one for good, and the static plan."""
    model, data = build(), feeds()
    samples = open_samples(data, model.interface)
    units, _ = find_units(model.graph, TARGET, model.opset)
    units = [unit for unit in units if unit.weight is not None]
    workshop = Workshop(model, TARGET, units, [], calibrate(model, units, Observer(samples)), samples)
    original = model.copy()

    def told(before: Model, after: Model) -> Ratio:
        speed = speeds.pop(0) if len(speeds) > 1 else speeds[0]
        return Ratio(speed, speed, speed, 10)

    drop, error = Evaluator(original, TARGET, samples=samples).drop, OutputError(original, data)
    search = Search(Judge(workshop, original, drop, told, None, lambda candidate: error, limit=limit))
    return search, make_plans(IntegerOptions("static", "minmax", ()), units, [])


@pytest.mark.parametrize("limit", [0.001, 0.5])
def test_the_search_smooths_where_the_limit_does_not_hold(limit: float) -> None:
    search, plans = search_for(limit, [0.5])
    best, _ = search.best(plans)
    assert best is not None
    assert best.left == {}
    assert best.candidate.changed == 2
    assert [node.op for node in best.candidate.model.graph.nodes].count("Mul") == (limit < 0.01)
    assert best.loss <= limit


def test_what_was_smoothed_for_one_plan_serves_the_next() -> None:
    """The second plan was made before; the first gets slower by smoothing."""
    search, (plan,) = search_for(0.001, [0.5, 0.55, 0.9, 0.5])
    best, _ = search.best([plan, replace(plan, label="second")])
    assert best is not None
    assert (best.candidate.plan.label, best.left) == ("second", {})
    assert best.loss <= 0.001
