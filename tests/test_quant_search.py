"""How quant decides: the minimum cut, where errors come from, the switchboard, and the record of nodes' times."""

from __future__ import annotations

from itertools import chain, combinations
from unittest.mock import Mock

import numpy as np
import onnx
import pytest

from graphopt.evaluate import Drop, Evaluator
from graphopt.ir.graph import constants
from graphopt.model import Model
from graphopt.observe import Observer
from graphopt.passes.quant.accounting.accounting import Audit
from graphopt.passes.quant.nodes.placement import joinable, place
from graphopt.passes.quant.nodes.sites import find_sites
from graphopt.passes.quant.nodes.units import Unit, find_units
from graphopt.passes.quant.numbers.calibrate import calibrate
from graphopt.passes.quant.numbers.ranges import affine
from graphopt.passes.quant.search.candidates import Candidate, Judged, Lineup
from graphopt.passes.quant.search.costs import measured_costs
from graphopt.passes.quant.search.cut import IMPLIES, cheapest
from graphopt.passes.quant.search.errors import OutputError, attribute, hardest, is_distribution, squared_errors
from graphopt.passes.quant.search.judging import Judge
from graphopt.passes.quant.search.plans import IntegerOptions, Plan, make_plans
from graphopt.passes.quant.search.search import Search
from graphopt.passes.quant.search.switchboard import Rounding, Switchboard, Twin
from graphopt.passes.quant.search.thinning import thinned
from graphopt.passes.quant.search.workshop import Workshop
from graphopt.runtime.profile import NodeTime, node_times
from graphopt.runtime.timing import Ratio
from graphopt.samples import open_samples
from graphopt.shapes import infer_shapes
from graphopt.targets import get_target

CHAIN = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 16] x) => (float[N, 8] y)
<float[16, 16] w, float[16, 8] v>
{
  [first] h = MatMul(x, w)
  r = Relu(h)
  [second] y = MatMul(r, v)
}
"""


def build(text: str = CHAIN) -> Model:
    rng = np.random.default_rng(3)
    proto = onnx.parser.parse_model(text)
    for info in proto.graph.value_info:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), info.name)
        )
    del proto.graph.value_info[:]
    model = Model.from_proto(proto)
    infer_shapes(model)
    return model


def feeds(count: int = 3) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(4)
    return [{"x": rng.normal(size=(5, 16)).astype(np.float32)} for _ in range(count)]


def test_the_cut_is_the_cheapest_of_all_choices() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        names = list(range(6))
        alone = {name: float(rng.normal()) for name in names}
        pairs = [(int(a), int(b), float(rng.exponential())) for a, b in rng.integers(0, 6, (8, 2)) if a != b]

        def cost(chosen: frozenset[int]) -> float:
            split = sum(price for a, b, price in pairs if a in chosen and b not in chosen)  # noqa: B023
            return sum(alone[name] for name in chosen) + split  # noqa: B023

        subsets = chain.from_iterable(combinations(names, size) for size in range(7))
        best = min(cost(frozenset(subset)) for subset in subsets)
        assert cost(cheapest(alone, pairs)) == pytest.approx(best, abs=1e-9)


def test_the_cut_keeps_what_must_come_together() -> None:
    assert cheapest({"node": -2.0, "tensor": 1.0}, [("node", "tensor", IMPLIES)]) == {"node", "tensor"}
    assert cheapest({"node": -1.0, "tensor": 2.0}, [("node", "tensor", IMPLIES)]) == frozenset()
    assert cheapest({"node": 0.0}, []) == frozenset()


def test_the_error_is_found_in_few_measurements() -> None:
    harm = np.full(256, 1e-6)
    harm[[17, 200]] = 1.0, 0.25
    asked: list[int] = []

    def error(part: object) -> float:
        asked.append(1)
        return float(harm[list(part)].sum())  # type: ignore[call-overload]

    found = attribute(range(256), error, 64)
    assert found[17] == pytest.approx(1.0, rel=1e-3)
    assert found[200] == pytest.approx(0.25, rel=1e-3)
    assert sum(found.values()) == pytest.approx(harm.sum(), rel=1e-6)
    assert len(asked) <= 66
    assert attribute([], error, 64) == {}


def test_switches_round_what_they_say_and_nothing_else() -> None:
    model, samples = build(), feeds()
    error = OutputError(model, samples)
    copy = model.copy()
    node = next(node for node in copy.graph.nodes if node.name == "first")
    weight, tensor = Rounding(0), Rounding(0, "h")
    twins = {weight: Twin(node, copy.graph, {1: node.inputs[1].values + np.float32(0.5)})}
    with Switchboard(copy, twins, {tensor: affine(-20.0, 20.0)}, error) as board:
        assert board.roundings == [weight, tensor]
        assert board.error([]) == 0
        assert 0 < board.error([tensor]) < 0.05
        assert board.error([weight]) > 0.1
        fine = board.error([tensor])
        board.parameters[tensor] = affine(-2000.0, 2000.0)
        assert board.error([tensor]) > 10 * fine, "ranges can be changed while it is open"


def test_errors_of_other_shapes_and_values_are_infinite_or_seen() -> None:
    wanted = {"y": np.ones((2, 2), np.float32)}
    assert squared_errors(wanted, {"y": np.zeros((2, 3), np.float32)})["y"] == (np.inf, 4.0)
    assert squared_errors(wanted, {"y": np.zeros((2, 2), np.float32)})["y"] == (4.0, 4.0)
    assert squared_errors({"y": np.ones(2, np.int64)}, {"y": np.zeros(2, np.int64)}) == {}


def test_probabilities_are_compared_by_their_logarithms() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(50, 20)) * 8
    noise = 0.1 * rng.normal(size=(3, 50, 20))
    sure, *others = (np.exp(logits + shift) for shift in (0, noise[0], noise[1], noise[0] + noise[1]))
    sure, *others = ((item / item.sum(axis=1, keepdims=True)).astype(np.float32) for item in (sure, *others))
    first, second, both = (squared_errors({"y": sure}, {"y": item})["y"][0] for item in others)
    assert both == pytest.approx(first + second, rel=0.1), "errors of single roundings add up"
    assert not is_distribution(logits)
    assert not is_distribution(np.ones((3, 1), np.float32))
    assert not is_distribution(np.zeros((0, 5), np.float32))


def test_the_hardest_samples_are_among_those_looked_at() -> None:
    model, worse = build(), build()
    second = next(node for node in worse.graph.nodes if node.name == "second")
    second.inputs[1].values = second.inputs[1].values * np.float32(1.5)
    samples = feeds(8)
    samples[5] = {"x": samples[5]["x"] * 0 + 1}
    first = next(node for node in worse.graph.nodes if node.name == "first")
    first.inputs[1].values = first.inputs[1].values + np.float32(1)  # hurts the constant sample most
    chosen = hardest(model, worse, open_samples(samples, model.interface), 2)
    assert len(chosen) == 2
    assert any(np.array_equal(item["x"], samples[5]["x"]) for item in chosen)


def test_candidates_come_from_the_fastest_on_and_what_cannot_be_fast_is_never_made() -> None:
    speeds = {"a": 0.52, "b": 0.5, "c": 0.4, "d": 0.51, "e": 0.9, "f": 0.6}
    least = {**dict.fromkeys("abcd", 0.2), "e": 0.8, "f": 0.45}
    made: list[str] = []

    def timed(plan: Plan) -> Judged:
        made.append(plan.label)
        speed = speeds[plan.label]
        return Judged(Candidate(plan, build(), 1, Audit({}, {}, 0, 0)), None, Ratio(speed, speed, speed, 5))

    plans = [Plan(label, frozenset(), frozenset(), "mse") for label in speeds]
    lineup = Lineup(plans, lambda plan: least[plan.label], timed)
    order = [item for _ in range(4) if (item := lineup.after(None)) is not None]
    assert [item.candidate.plan.label for item in order] == ["c", "a", "b", "d"], "equals in the order of the plans"
    assert lineup.after(order[3]) is None
    assert "".join(made) == "abcdf", "0.8 is far behind 0.51"


def timed_workshop(*, others: float) -> tuple[Workshop, list[Unit], list[NodeTime]]:
    """Return a workshop, its weighted units, and times: a second each of these, and some of another node."""
    model, target = build(), get_target("cpu-avx2")
    units, _ = find_units(model.graph, target, model.opset)
    weighted = [unit for unit in units if unit.weight is not None]
    times = [*(NodeTime(unit.name, unit.node.op, 1.0) for unit in weighted), NodeTime("unknown", "Softmax", others)]
    return Workshop(model, target, units, [], None), weighted, times


def test_nodes_take_a_share_of_the_time_of_all() -> None:
    workshop, weighted, times = timed_workshop(others=2.0)
    assert workshop.share([], times) == 0.0
    positions = [unit.position for unit in weighted]
    assert workshop.share(positions[1:], times) == pytest.approx((len(weighted) - 1) / (len(weighted) + 2.0))


@pytest.mark.parametrize(("others", "kept"), [(2.0, "abd"), (100.0, "ad")])
def test_of_plans_that_differ_in_what_takes_no_time_one_is_tried(others: float, kept: str) -> None:
    workshop, weighted, times = timed_workshop(others=others)
    first, rest = weighted[0].position, frozenset(unit.position for unit in weighted[1:])
    plans = [
        Plan("a", rest | {first}, frozenset(), "mse"),
        Plan("b", rest, frozenset({first}), "mse"),
        Plan("c", rest | {first}, frozenset(), "mse"),
        Plan("d", rest, frozenset(), "mse"),
    ]
    search = Search(Judge(workshop, workshop.model, Mock(), Mock(), lambda _: times, Mock(), 0.01))
    assert "".join(plan.label for plan in search._distinct(plans)) == kept


@pytest.mark.parametrize(("slow", "kept"), [(3.0, {"second"}), (0.5, {"first", "second"})])
def test_what_integers_slow_down_stays_float(slow: float, kept: set[str]) -> None:
    model, target = build(), get_target("cpu")
    units, _ = find_units(model.graph, target, model.opset)
    observed = calibrate(model, units, Observer(open_samples(feeds(), model.interface)))
    workshop = Workshop(model, target, units, [], observed)
    plan = Plan("all", frozenset(unit.position for unit in units), frozenset(), "minmax")
    names = {unit.position: unit.name for unit in units}

    def times(of: Model) -> list[NodeTime]:
        first, second = (1.0, 1.0) if of is model else (slow, 0.1)
        return [NodeTime("first", "MatMul", first), NodeTime("second", "MatMul", second)]

    def latency(_: Model, after: Model) -> Ratio:
        (first,) = (node for node in after.graph.nodes if node.name == "first")
        share = 0.9 if first.inputs[1].inputs else 0.5  # its weight becomes floats again, if it is stored in integers
        return Ratio(share, share, share, 10)

    judge = Judge(workshop, model, Mock(), latency, times, Mock(), 0.01)
    item = judge.slimmed(judge.made(plan))
    assert {names[position] for position in item.candidate.plan.nodes} == kept


JOINED = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 16] x, float[1, 16] u) => (float[N, 8] y, float[N, 16] alone)
<float[16, 16] w, float[16, 8] v>
{
  [first] h = MatMul(x, w)
  [beside] a = Add(h, u)
  [curve] s = Sigmoid(a)
  [second] y = MatMul(s, v)
  [far] f = Sigmoid(x)
  [lonely] alone = Mul(f, f)
}
"""


def test_only_what_may_be_in_company_is_observed() -> None:
    model = build(JOINED)
    units, _ = find_units(model.graph, get_target("cpu"), model.opset)
    able = {unit.name for unit in joinable(units)}
    assert able == {"first", "beside", "curve", "second"}
    for sizes in ({}, {"h": 160, "u": 16}, {"h": 16, "u": 160}):
        for count in range(len(units) + 1):
            for chosen in combinations([unit.position for unit in units], count):
                assert {unit.name for unit in place(units, sizes, chosen).units} <= able


def test_every_node_that_runs_has_a_time() -> None:
    times = node_times(build(), feeds(2))
    assert "MatMul" in {item.op for item in times}
    assert all(item.seconds > 0 for item in times)
    assert {"first", "second"} <= {item.name for item in times}


def test_times_are_those_of_the_node_that_was_written() -> None:
    model = build()
    units, _ = find_units(model.graph, get_target("cpu-avx2"), 17)
    weighted = [unit for unit in units if unit.weight is not None]
    before = [NodeTime("first", "MatMul", 2.0), NodeTime("second", "MatMul", 1.0), NodeTime("other", "Add", 9.0)]
    after = [
        NodeTime("first_quant", "QLinearMatMul", 0.5),
        NodeTime("second_token_3", "MatMulIntegerToFloat", 0.25),
        NodeTime("x_quantized/QuantizeLinear", "QuantizeLinear", 0.08),
    ]
    costs = measured_costs(weighted, [], {"x": 80}, before, after)
    assert dict(costs.real) == {weighted[0].position: 2.0, weighted[1].position: 1.0}
    assert dict(costs.integer) == {weighted[0].position: 0.5, weighted[1].position: 0.25}
    assert costs.quantize == pytest.approx(0.001)


SCALED = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 64] x, float[N, 64] u) => (float[N, 64] y, float[N, 64] z)
<float[64, 64] w, float[64, 64] v>
{
  [varying] h = MatMul(x, w)
  n = ReduceL2<axes = [1], keepdims = 1>(h)
  y = Div(h, n)
  [steady] z = MatMul(u, v)
}
"""


@pytest.mark.parametrize("asked_for", [False, True])
def test_what_loses_with_fixed_ranges_takes_another_form(asked_for: bool) -> None:
    """Samples of very different size, which the model itself scales to one: no fixed range suits them all."""
    model, rng, target = build(SCALED), np.random.default_rng(5), get_target("cpu-avx2")
    data = [
        {name: (scale * rng.normal(size=(8, 64))).astype(np.float32) for name, scale in (("x", 4.0**size), ("u", 1.0))}
        for size in range(4)
    ]
    samples = open_samples(data, model.interface)
    units, _ = find_units(model.graph, target, model.opset)
    sites, _ = find_sites(model.graph, target, model.opset)
    observed = calibrate(model, units, Observer(samples))
    plan = make_plans(IntegerOptions("auto", "minmax", ()), units, sites)[0]
    judge = Judge(
        Workshop(model, target, units, sites, observed, samples),
        model,
        Evaluator(model, target, samples=samples).drop,
        lambda before, after: Ratio(0.5, 0.5, 0.5, 10),
        None,
        lambda candidate: OutputError(model, data),
        limit=0.01,
        asked_for=asked_for,
    )
    best, _ = Search(judge).best([plan])
    assert best is not None
    named = {node.name: position for position, node in enumerate(model.graph.nodes)}
    found = best.candidate.plan
    assert found.static == {named["steady"]}
    assert found.dynamic == (set() if asked_for else {named["varying"]})
    assert (named["varying"] in best.left) == asked_for
    assert best.loss <= 0.01


BRANCHED = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 8, 16, 16] x) => (float[1, 8, 16, 16] y)
<float[8, 8, 3, 3] u, float[8, 8, 3, 3] v, float[8, 16, 3, 3] w>
{
  p = MaxPool<kernel_shape = [1, 1]>(x)
  [first] f = Conv<pads = [1, 1, 1, 1]>(x, u)
  [last] l = Conv<pads = [1, 1, 1, 1]>(f, v)
  j = Concat<axis = 1>(p, l)
  [behind] y = Conv<pads = [1, 1, 1, 1]>(j, w)
}
"""


@pytest.mark.parametrize("slower", [False, True])
def test_nodes_beside_conversions_that_the_runtime_puts_inside_are_taken_back(slower: bool) -> None:
    model, rng, target = build(BRANCHED), np.random.default_rng(5), get_target("cpu")
    samples = open_samples([{"x": rng.normal(size=(1, 8, 16, 16)).astype(np.float32)}], model.interface)
    units, _ = find_units(model.graph, target, model.opset)
    named = {node.name: position for position, node in enumerate(model.graph.nodes)}
    chosen = frozenset(named[name] for name in ("first", "last", "behind"))
    timed = Mock(side_effect=[Ratio(median, median, median, 10) for median in (0.5, *[0.6 if slower else 0.5] * 3)])
    workshop = Workshop(model, target, units, (), calibrate(model, units, Observer(samples)), samples)
    judge = Judge(workshop, model, lambda _: None, timed, None, lambda _: None, limit=0.01)
    best, _ = Search(judge).best([Plan("static int8", chosen, frozenset(), "minmax")])
    assert best is not None
    if slower:
        assert best.candidate.plan.static == chosen
        assert best.candidate.audit.inside
    else:
        assert named["behind"] in best.candidate.plan.static
        assert "Transpose" in best.candidate.unfused[named["last"]]
        assert not best.candidate.audit.inside


@pytest.mark.parametrize(
    ("ratio", "asked_for", "pays"), [(0.97, False, False), (0.94, False, True), (0.97, True, True)]
)
def test_integers_must_save_time_unless_they_are_asked_for(ratio: float, asked_for: bool, pays: bool) -> None:
    """Bytes alone are no reason: weights that stay float are stored in 8 bits as well."""
    workshop, _, _ = timed_workshop(others=1.0)
    smaller = build()
    for node in smaller.graph.nodes:
        if node.op == "MatMul":
            node.inputs[1].values = node.inputs[1].values.astype(np.float16)  # only its bytes matter
    judge = Judge(workshop, workshop.model, Mock(), Mock(), None, Mock(), 0.01, asked_for=asked_for)
    item = Judged(Candidate(Mock(), smaller, 2, Audit({}, {}, 0, 0)), None, Ratio(ratio, ratio, ratio + 0.01, 10))
    assert judge.pays(item) == pays


def test_weights_lie_in_the_branches_that_read_them_where_they_are_packed() -> None:
    model, error = build(), OutputError(build(), feeds())
    node = next(node for node in model.graph.nodes if node.name == "first")
    twin = Twin(node, model.graph, {1: node.inputs[1].values + np.float32(0.5)})
    with Switchboard(model, {Rounding(0): twin}, {}, error) as board:
        assert board.error([]) == 0
    (switch,) = (node for node in model.graph.nodes if node.op == "If")
    for branch in switch.attrs.values():
        (product,) = branch.nodes
        assert product.inputs[1].name not in {"w", "v"}
    assert "w" not in {constant.name for constant in constants(model.graph)}


def observed_workshop(model: Model) -> tuple[Workshop, list[Unit]]:
    target = get_target("cpu-avx2")
    units, _ = find_units(model.graph, target, model.opset)
    observed = calibrate(model, units, Observer(open_samples(feeds(), model.interface)))
    return Workshop(model, target, units, [], observed), units


def searched(losses: list[float]) -> tuple[Judge, Judged, dict[Rounding, float]]:
    """Return a judge that finds these losses one after the other, a plan that failed, and harms of its weights."""
    model = build(CHAIN.replace("Relu", "Sigmoid"))
    workshop, units = observed_workshop(model)
    left = iter(losses)

    def drop(_: Model) -> Drop:
        value = next(left)
        return Drop(value, value, value, "agreement", {}, 4, random=False)

    judge = Judge(workshop, model, drop, lambda *_: Ratio(0.5, 0.5, 0.5, 10), None, Mock(), 0.01, asked_for=True)
    plan = Plan("all", frozenset(unit.position for unit in units), frozenset(), "minmax")
    item = judge.made(plan)
    harms = {Rounding(unit.position): 1.0 for unit in units if unit.weight is not None}
    return judge, Judged(item.candidate, drop(model), item.latency), harms


def test_little_error_is_taken_away_first() -> None:
    judge, failed, harms = searched([0.02, 0.009])
    first, second = sorted(harms)
    held = thinned(judge, failed, {first: 0.1, second: 0.9})
    assert held.loss == 0.009
    assert held.candidate.plan.static == {first.position}
    assert held.left[second.position] == pytest.approx(0.9)


def test_a_plan_whose_error_nobody_sees_is_given_up() -> None:
    judge, failed, harms = searched([0.02])
    assert thinned(judge, failed, dict.fromkeys(harms, 0.0)) is failed


@pytest.mark.parametrize(
    ("replaced", "why"),
    [
        (("Relu(h)", "Relu(h)"), "its output is looked for behind the Relu, which has one reader"),
        (("Relu(h)", "Clip(h, zero)"), "its output is looked for behind the Clip, which has one reader"),
        (("Relu(h)", "Sigmoid(h)"), ""),
        (("float[N, 8] y)", "float[N, 8] y, float[N, 16] r)"), ""),
    ],
)
def test_a_float_output_is_looked_for_behind_a_clamp(replaced: tuple[str, str], why: str) -> None:
    text = CHAIN.replace("v>", "v, float zero = {0.0}>").replace(*replaced)
    workshop, units = observed_workshop(build(text))
    first = next(unit.position for unit in units if unit.name == "first")
    found = workshop.make(Plan("first", frozenset({first}), frozenset(), "minmax"))
    assert found.changed == (0 if why else 1)
    assert found.unfused.get(first, "").startswith(why)
