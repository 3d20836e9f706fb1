"""Structured pruning: what goes together, what may go at all, and what is left of the model."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings

from graphopt.base import PassReport
from graphopt.context import Context
from graphopt.cost import figures
from graphopt.evaluate import Evaluator
from graphopt.ir.clean import clean
from graphopt.model import Model
from graphopt.passes.prune import Prune
from graphopt.passes.prune.channels import structured
from graphopt.passes.prune.channels.allocation import allocate, curve
from graphopt.passes.prune.channels.branches import end_branches, fill_means
from graphopt.passes.prune.channels.costs import Costs, mac_costs, time_costs, weight_costs
from graphopt.passes.prune.channels.dependencies import Dependencies, find_dependencies
from graphopt.passes.prune.channels.removal import remove_classes, rows_left
from graphopt.passes.prune.channels.rotation import turn, turnings
from graphopt.progress import SilentProgress
from graphopt.samples import open_samples, random_samples
from graphopt.shapes import infer_shapes, shapes_for
from graphopt.targets import get_target
from tests.graphs import models
from tests.helpers import assert_same_outputs, outputs_of, parse, random_feeds


def floats(rng: np.random.Generator, *shape: int) -> str:
    """Return values for a text model, small so that nothing saturates."""
    values = rng.normal(size=int(np.prod(shape))) * 0.5
    return "{" + ",".join(f"{value:.4f}" for value in values) + "}"


class Text:
    """A model in ONNX's text syntax, with random weights by their shapes."""

    def __init__(self, inputs: str, outputs: str, body: str, opset: int = 17, **weights: tuple[int, ...]) -> None:
        rng = np.random.default_rng(5)
        declared = ", ".join(
            f"float[{','.join(map(str, shape))}] {name} = {floats(rng, *shape)}" for name, shape in weights.items()
        )
        self.text = (
            f'<ir_version: 8, opset_import: ["" : {opset}]>\ng ({inputs}) => ({outputs})\n<{declared}>\n{{ {body} }}'
        )

    def model(self) -> Model:
        return Model.from_proto(parse(self.text))


CASES: dict[str, tuple[Text, dict[str, int]]] = {
    "chain": (
        Text(
            "float[N, 3, 6, 6] x",
            "float[N, 2, 6, 6] y",
            "h = Conv(x, a, ab) r = Relu(h) y = Conv(r, b)",
            a=(4, 3, 1, 1),
            ab=(4,),
            b=(2, 4, 1, 1),
        ),
        {"h": 4},
    ),
    "depthwise": (
        Text(
            "float[N, 3, 6, 6] x",
            "float[N, 2, 6, 6] y",
            "h = Conv(x, a) d = Conv<group = 4, pads = [1,1,1,1]>(h, w, wb) c = HardSigmoid(d) y = Conv(c, b)",
            a=(4, 3, 1, 1),
            w=(4, 1, 3, 3),
            wb=(4,),
            b=(2, 4, 1, 1),
        ),
        {"h": 4},
    ),
    "groups of two": (
        Text(
            "float[N, 3, 6, 6] x",
            "float[N, 2, 6, 6] y",
            "h = Conv(x, a) g = Conv<group = 2>(h, w) y = Conv(g, b)",
            a=(8, 3, 1, 1),
            w=(6, 4, 1, 1),
            b=(2, 6, 1, 1),
        ),
        {"h": 4, "g": 3},
    ),
    "residual with squeeze and excitation": (
        Text(
            "float[N, 3, 6, 6] x",
            "float[N, 2, 6, 6] y",
            "h = Conv(x, a) p = GlobalAveragePool(h) q = Conv(p, s) r = Relu(q) t = Conv(r, e) u = Sigmoid(t) "
            "m = Mul(h, u) k = Conv(m, c) z = Add(k, h) y = Conv(z, b)",
            a=(4, 3, 1, 1),
            s=(3, 4, 1, 1),
            e=(4, 3, 1, 1),
            c=(4, 4, 1, 1),
            b=(2, 4, 1, 1),
        ),
        {"h": 4, "q": 3},
    ),
    "concat and split": (
        Text(
            "float[N, 3, 6, 6] x",
            "float[N, 2, 6, 6] y, float[N, 2, 6, 6] z",
            "h = Conv(x, a) k = Conv(x, c) j = Concat<axis = 1>(h, k) u, v = Split<axis = 1>(j) "
            "y = Conv(u, b) z = Conv(v, d)",
            a=(6, 3, 1, 1),
            c=(2, 3, 1, 1),
            b=(2, 4, 1, 1),
            d=(2, 4, 1, 1),
        ),
        {"h": 6, "k": 2},
    ),
    "flatten into a Gemm": (
        Text(
            "float[N, 3, 2, 2] x",
            "float[N, 2] y",
            "h = Conv(x, a) f = Flatten(h) y = Gemm<transB = 1>(f, b, c)",
            a=(4, 3, 1, 1),
            b=(2, 16),
            c=(2,),
        ),
        {"h": 4},
    ),
    "transposed convolution": (
        Text(
            "float[N, 3, 4, 4] x",
            "float[N, 2, 8, 8] y",
            "h = Conv(x, a) t = ConvTranspose<strides = [2,2]>(h, w, wb) y = Conv(t, b)",
            a=(4, 3, 1, 1),
            w=(4, 5, 2, 2),
            wb=(5,),
            b=(2, 5, 1, 1),
        ),
        {"h": 4, "t": 5},
    ),
    "normalized per channel": (
        Text(
            "float[N, 3, 6, 6] x",
            "float[N, 2, 6, 6] y",
            "h = Conv(x, a) n = InstanceNormalization(h, s, t) p = PRelu(n, q) y = Conv(p, b)",
            a=(4, 3, 1, 1),
            s=(4,),
            t=(4,),
            q=(4, 1, 1),
            b=(2, 4, 1, 1),
        ),
        {"h": 4},
    ),
    "channels of a feed-forward layer": (
        Text(
            "float[N, S, 4] x",
            "float[N, S, 4] y",
            "h = MatMul(x, a) c = Add(h, ab) e = Erf(c) g = Mul(e, c) o = MatMul(g, b) y = Add(o, x)",
            a=(4, 6),
            ab=(6,),
            b=(6, 4),
        ),
        {"h": 6},
    ),
}

STREAM = Text(
    "float[N, 3, 6, 6] x",
    "float[N, 2, 6, 6] y",
    "s = Conv(x, a, ab) h = Conv(s, e, eb) r = Relu(h) p = Conv<pads = [1,1,1,1]>(r, w, wb) z = Add(p, s) "
    "k = Conv<pads = [1,1,1,1]>(z, f) q = Relu(k) o = Conv(q, g) u = Add(o, z) y = Conv(u, b)",
    a=(4, 3, 1, 1),
    ab=(4,),
    e=(6, 4, 1, 1),
    eb=(6,),
    w=(4, 6, 3, 3),
    wb=(4,),
    f=(5, 4, 3, 3),
    g=(4, 5, 1, 1),
    b=(2, 4, 1, 1),
)
CASES["residual branches"] = (STREAM, {"s": 4, "h": 6, "k": 5})

HEADS = Text(
    "float[2, 3, 4] x, int64[4] heads, int64[3] whole",
    "float[2, 3, 4] y",
    "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) "
    "qs = Reshape(q, apart) ks = Reshape(k, apart) vs = Reshape(v, apart) "
    "qt = Transpose<perm = [0,2,1,3]>(qs) kt = Transpose<perm = [0,2,3,1]>(ks) vt = Transpose<perm = [0,2,1,3]>(vs) "
    "s = MatMul(qt, kt) p = Softmax<axis = -1>(s) o = MatMul(p, vt) ot = Transpose<perm = [0,2,1,3]>(o) "
    "om = Reshape(ot, merged) z = MatMul(om, wo) y = Add(z, x)",
    wq=(4, 6),
    wk=(4, 6),
    wv=(4, 6),
    wo=(6, 4),
)
HEADS.text = HEADS.text.replace(", int64[4] heads, int64[3] whole", "").replace(
    "<float", "<int64[4] apart = {0,0,3,2}, int64[3] merged = {0,0,6}, float", 1
)
CASES["attention"] = (HEADS, {"q": 3})


def followed(model: Model) -> tuple[Dependencies, dict[str, tuple[int, ...]]]:
    shapes = shapes_for(model, random_feeds(model.to_proto(), 0))
    return find_dependencies(model, shapes), shapes


def silenced(model: Model, found: Dependencies, gone: np.ndarray) -> None:
    """Zero the weights that sum over what goes, in place: nothing that reads it notices it any more."""
    for use in found.uses:
        if use.role == "takes":
            constant = use.node.inputs[use.index]
            values = np.moveaxis(np.array(constant.values), use.axis, 0)
            values[gone[use.atoms]] = 0
            constant.values = np.moveaxis(values, 0, use.axis)


def chosen(found: Dependencies, rng: np.random.Generator) -> np.ndarray:
    """Return some classes of every group, all only of those that can end."""
    gone = np.zeros(found.size, bool)
    for group in found.groups:
        count = int(rng.integers(1, len(group.classes) + group.ends))
        gone[rng.choice(group.classes, count, replace=False)] = True
    return gone


def check_law(model: Model, seed: int = 3) -> Model:
    """Silence and remove channels of every group, and compare outputs and costs; return the smaller model."""
    found, shapes = followed(model)
    gone = chosen(found, np.random.default_rng(seed))
    silenced(model, found, gone)
    smaller = model.copy()
    again = find_dependencies(smaller, shapes)
    rows = rows_left(found.uses, gone)
    ended = end_branches(smaller, again.uses, gone, rows)
    assert remove_classes(smaller, again, gone) > 0
    fill_means(ended, model, rows, random_samples(model.interface, count=1))
    clean(smaller.graph)
    feeds = random_feeds(model.to_proto(), 1)
    assert_same_outputs(outputs_of(smaller, feeds), outputs_of(model, feeds), rtol=1e-4, atol=1e-5)
    left = np.array([1 - gone[group.classes].mean() for group in found.groups])
    after = shapes_for(smaller, feeds)
    assert figures(smaller, after).macs == pytest.approx(mac_costs(model, found, shapes).total(left))
    every = np.ones(len(find_dependencies(smaller, after).groups))
    weights = weight_costs(smaller, find_dependencies(smaller, after), in_bytes=False).total(every)
    assert weight_costs(model, found, in_bytes=False).total(left) == pytest.approx(weights, abs=16)  # sizes of splits
    return smaller


@pytest.mark.parametrize("case", CASES)
def test_channels_that_nothing_reads_can_go(case: str) -> None:
    text, groups = CASES[case]
    model = text.model()
    found, _ = followed(model)
    assert sum((Counter({group.name: len(group.classes)}) for group in found.groups), Counter()) == groups
    check_law(model)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(models())
def test_channels_of_generated_models(proto: onnx.ModelProto) -> None:
    model = Model.from_proto(proto)
    infer = shapes_for(model, random_feeds(proto, 0))
    if find_dependencies(model, infer).groups:
        check_law(model)


@pytest.mark.parametrize("seed", range(3))
def test_whole_branches_can_go(seed: int) -> None:
    found, _ = followed(STREAM.model())
    assert {group.name for group in found.groups if group.ends} == {"h", "k"}
    model = STREAM.model()
    gone = np.zeros(found.size, bool)
    ending = [group for group in found.groups if group.ends]
    gone[ending[seed % 2].classes] = True
    gone[next(group for group in found.groups if group.name == "s").classes[:seed]] = True
    found, _ = followed(model)
    silenced(model, found, gone)
    smaller = model.copy()
    again, _ = followed(smaller)
    rows = rows_left(found.uses, gone)
    ended = end_branches(smaller, again.uses, gone, rows)
    remove_classes(smaller, again, gone)
    fill_means(ended, model, rows, random_samples(model.interface, count=2))
    clean(smaller.graph)
    assert len(smaller.graph.nodes) == len(model.graph.nodes) - 3
    feeds = random_feeds(model.to_proto(), 1)
    assert_same_outputs(outputs_of(smaller, feeds), outputs_of(model, feeds), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("z = Add(p, s)", "z = Mul(p, s)"),  # a branch that scales is no branch that is added
        ("z = Add(p, s)", "c = Relu(p) z = Add(c, s)"),
        (
            "p = Conv<pads = [1,1,1,1]>(r, w, wb) z = Add(p, s)",
            "t = ReduceMean(s) z = Conv<pads = [1,1,1,1]>(r, w, wb)",
        ),
    ],
)
def test_a_branch_that_is_not_just_added_keeps_channels(was: str, becomes: str) -> None:
    text = STREAM.text.replace(was, becomes)
    assert text != STREAM.text
    found, _ = followed(Model.from_proto(parse(text)))
    assert {group.name for group in found.groups if group.ends} == {"k"}


def turned(text: str) -> dict[str, np.ndarray]:
    """Turn all groups that can be, hold the outputs against those of before, and return the matrices by group."""
    model = Model.from_proto(parse(text))
    found, _ = followed(model)
    matrices = turnings(model, found, random_samples(model.interface, count=4), SilentProgress())
    other = model.copy()
    again, _ = followed(other)
    turn(other, again, matrices)
    feeds = random_feeds(model.to_proto(), 1)
    assert_same_outputs(outputs_of(other, feeds), outputs_of(model, feeds), rtol=1e-3, atol=1e-4)
    return {found.groups[index].name: matrix for index, matrix in matrices.items()}


def test_turned_channels_change_no_output() -> None:
    matrices = turned(STREAM.text)
    assert set(matrices) == {"s"}
    assert not np.allclose(matrices["s"], np.diag(np.diag(matrices["s"])))


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("z = Add(p, s)", "c = Relu(s) z = Add(p, c)"),
        ("z = Add(p, s)", "c = Constant<value_float = 0.5>() d = Add(s, c) z = Add(p, d)"),
        ("u = Add(o, z)", "m = ReduceMean<axes = [1], keepdims = 1>(z) n = Add(o, m) u = Add(n, z)"),
    ],
)
def test_channels_that_are_treated_one_by_one_or_alike_are_not_turned(was: str, becomes: str) -> None:
    text = STREAM.text.replace(was, becomes)
    assert text != STREAM.text
    assert turned(text) == {}


def pruned(text: str, **options: Any) -> tuple[Model, Model, PassReport]:
    """Return a model, the same after the pass, and the report."""
    model = Model.from_proto(parse(text))
    samples = random_samples(model.interface, count=16)
    smaller = model.copy()
    infer_shapes(smaller)
    target = get_target("cpu")
    context = Context(target, Evaluator(model, target, samples=samples), samples)
    report = Prune(pattern="channels", **options).run(smaller, context)
    clean(smaller.graph)
    return model, smaller, report


def error_of(model: Model, other: Model) -> float:
    """Return the error of the output on inputs that nothing was fitted to, over its variance."""
    before, after = (
        np.concatenate([outputs_of(item, random_feeds(model.to_proto(), seed))["y"].ravel() for seed in range(50, 58)])
        for item in (model, other)
    )
    return float(np.square(before - after).sum() / np.square(before - before.mean()).sum())


WIDE = Text(
    "float[N, 3, 8, 8] x",
    "float[N, 2, 8, 8] y",
    "s = Conv(x, a, ab) h = Conv(s, e, eb) r = Relu(h) p = Conv<pads = [1,1,1,1]>(r, w, wb) z = Add(p, s) "
    "k = Conv(z, f, fb) q = Relu(k) o = Conv(q, g, gb) u = Add(o, z) y = Conv(u, b, bb)",
    a=(16, 3, 3, 3),
    ab=(16,),
    e=(24, 16, 1, 1),
    eb=(24,),
    w=(16, 24, 3, 3),
    wb=(16,),
    f=(24, 16, 1, 1),
    fb=(24,),
    g=(16, 24, 1, 1),
    gb=(16,),
    b=(2, 16, 1, 1),
    bb=(2,),
)
WIDE.text = WIDE.text.replace("s = Conv(x", "s = Conv<pads = [1,1,1,1]>(x")


@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_fitting_makes_up_for_what_went(ratio: float) -> None:
    model, fitted, report = pruned(WIDE.text, of="macs", ratio=ratio)
    _, bare, _ = pruned(WIDE.text, of="macs", ratio=ratio, reconstruct=False)
    assert report.metrics["fitted"] > 0
    assert error_of(model, fitted) < 0.7 * error_of(model, bare)


def test_channels_that_others_repeat_go_without_loss() -> None:
    model = WIDE.model()
    weights = {tensor.name: tensor for node in model.graph.nodes for tensor in node.inputs}
    thrice = np.repeat(np.arange(8), 3)
    for name in ("e", "eb", "f", "fb"):
        weights[name].values = weights[name].values[thrice]
    _, smaller, report = pruned(onnx.printer.to_text(model.to_proto()), of="macs", ratio=0.5)
    assert report.metrics["macs_left"] <= 0.5
    assert error_of(model, smaller) < 1e-3


def test_layers_that_the_user_names_give_up_what_is_stated() -> None:
    _, smaller, report = pruned(WIDE.text, of="macs", ratio=0.3, layers="h=0+k=0.67+nobody=0.5")
    shapes = {node.outputs[0].name: node.inputs[1].shape for node in smaller.graph.nodes if node.op == "Conv"}
    assert shapes["h"][0] == 24
    assert shapes["k"][0] == 8
    assert any(skip.where == "nobody" for skip in report.skipped)


@pytest.mark.parametrize("layers", ["h", "h=much", "=0.5", "h=1.5"])
def test_layers_that_cannot_be_read_are_refused(layers: str) -> None:
    with pytest.raises(ValueError, match="layers"):
        Prune(pattern="channels", layers=layers)


def test_time_is_what_nodes_took_and_goes_with_their_channels() -> None:
    model = WIDE.model()
    found, _ = followed(model)
    costs = time_costs(model, found, random_feeds(model.to_proto(), 0))
    whole = float(costs.total(np.ones(len(found.groups))))
    halves = costs.total(1 - 0.5 * np.eye(len(found.groups)))
    assert whole > 0
    assert costs.fixed >= -1e-12
    assert (halves <= whole).all()
    assert halves.min() < whole


def test_a_branch_that_is_cheap_to_finish_goes_as_a_whole() -> None:
    costs = Costs(0.0, np.array([1.0, 1.0]), np.eye(2)[:, None, :])
    steep = curve(32, 8, np.linspace(0.5, 0.55, 32))  # dear to begin
    even = curve(32, 8, np.linspace(0.0, 1.2, 32))
    assert allocate([steep, even], costs, 0.5) == [32, 0]
    assert allocate([steep, even], costs, 0.125) == [0, 8]


def test_high_ratios_are_reached_in_rounds_that_rank_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Model] = []
    make_plan = structured.make_plan
    monkeypatch.setattr(structured, "make_plan", lambda model, *rest: plans.append(model) or make_plan(model, *rest))
    model, smaller, report = pruned(WIDE.text, of="macs", ratio=0.7)
    assert len(plans) == 2
    feeds = random_feeds(model.to_proto(), 0)
    macs = [figures(item, shapes_for(item, feeds)).macs for item in (smaller, model)]
    assert macs[0] is not None
    assert macs[1] is not None
    assert report.metrics["macs_left"] == pytest.approx(macs[0] / macs[1])
    assert macs[0] / macs[1] <= 0.3


def test_auto_stays_within_its_part_of_the_limit() -> None:
    model = WIDE.model()
    samples = random_samples(model.interface, count=16)
    target = get_target("cpu")
    evaluator = Evaluator(model, target, samples=samples)
    context = Context(target, evaluator, samples, max_drop=0.4)
    left = []
    for budget in (0.1, 1.0):
        smaller = model.copy()
        infer_shapes(smaller)
        report = Prune(pattern="channels", of="macs", budget=budget).run(smaller, context)
        clean(smaller.graph)
        drop = evaluator.drop(smaller)
        assert drop is not None
        assert drop.within(budget * context.max_drop)
        left.append(report.metrics.get("macs_left", 1.0))
    assert left[1] < left[0]


def test_channels_that_never_move_are_not_turned() -> None:
    text = Text(
        "float[N, 3, 6, 6] x",
        "float[N, 2, 6, 6] y",
        "s = Conv(x, a, ab) y = Conv(s, b)",
        a=(4, 3, 1, 1),
        ab=(4,),
        b=(2, 4, 1, 1),
    )
    model = text.model()
    found, _ = followed(model)
    for pixels, count in ((np.zeros((4, 3, 6, 6)), 0), (np.random.default_rng(0).normal(size=(4, 3, 6, 6)), 1)):
        samples = open_samples({"x": pixels.astype(np.float32)}, model.interface)
        assert len(turnings(model, found, samples, SilentProgress())) == count


def test_dead_channels_go_whatever_the_ratio() -> None:
    model = WIDE.model()
    weights = {tensor.name: tensor for node in model.graph.nodes for tensor in node.inputs}
    dead = np.array(weights["w"].values)
    dead[:, [1, 3, 5, 7, 9, 11, 13, 15, 17]] = 0
    weights["w"].values = dead
    _, smaller, report = pruned(onnx.printer.to_text(model.to_proto()), of="macs", ratio=0.0)
    shapes = {node.outputs[0].name: node.inputs[1].shape for node in smaller.graph.nodes if node.op == "Conv"}
    assert shapes["h"][0] == 16
    assert report.metrics["channels"] == 8
    assert error_of(model, smaller) < 1e-6
