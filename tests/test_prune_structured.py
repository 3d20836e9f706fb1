"""The pass with pattern=channels as a whole: what goes, what is fitted, and what the report says."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.base import PassReport
from graphopt.context import Context
from graphopt.cost import figures
from graphopt.evaluate import Evaluator
from graphopt.gradients.tuning import tune
from graphopt.ir.clean import clean
from graphopt.model import Model
from graphopt.passes.prune import Prune
from graphopt.passes.prune.channels import plan
from graphopt.passes.prune.channels.plan import Plan, make_plan
from graphopt.passes.prune.channels.reconstruction import reconstruct
from graphopt.progress import SilentProgress
from graphopt.samples import random_samples
from graphopt.shapes import infer_shapes, shapes_for
from graphopt.targets import get_target
from tests.channel_models import WIDE, Text
from tests.helpers import outputs_of, parse, random_feeds


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


@pytest.mark.parametrize(("ratio", "rounds"), [(0.2, 1), (0.3, 2), (0.7, 6)])
def test_ratios_are_reached_in_rounds_that_rank_afresh(
    monkeypatch: pytest.MonkeyPatch, ratio: float, rounds: int
) -> None:
    plans, teachers = [], []

    def counted(model: Model, *rest: Any) -> Plan:
        plans.append(model)
        return make_plan(model, *rest)

    def watched(original: Model, *rest: Any, **options: Any) -> tuple[int, str]:
        teachers.append(original)
        return tune(original, *rest, **options)

    monkeypatch.setattr("graphopt.passes.prune.channels.structured.make_plan", counted)
    monkeypatch.setattr("graphopt.passes.prune.channels.structured.tune", watched)
    model, smaller, report = pruned(WIDE.text, of="macs", ratio=ratio)
    assert 1 < len(plans) <= rounds or len(plans) == rounds == 1, "what goes too much at once saves a round"
    assert len(teachers) == (2 if ratio == 0.3 else 1), "up to a half, one round alone is tried as well"
    assert all(error_of(model, teacher) == 0 for teacher in teachers), "tuning is towards the model of before"
    feeds = random_feeds(model.to_proto(), 0)
    macs = [figures(item, shapes_for(item, feeds)).macs for item in (smaller, model)]
    assert macs[0] is not None
    assert macs[1] is not None
    assert report.metrics["macs_left"] == pytest.approx(macs[0] / macs[1])
    assert macs[0] / macs[1] <= 1 - ratio


@pytest.mark.parametrize("nearer", ["at once", "rounds"])
def test_of_two_ways_the_nearer_is_kept(monkeypatch: pytest.MonkeyPatch, nearer: str) -> None:
    structured = "graphopt.passes.prune.channels.structured"
    distances = iter([0.0, 1.0] if nearer == "at once" else [1.0, 0.0])
    with monkeypatch.context() as patch:
        patch.setattr(f"{structured}.distance", lambda *_: next(distances))
        _, found, _ = pruned(WIDE.text, of="macs", ratio=0.3)
    monkeypatch.setattr(f"{structured}._ROUND", 0.5 if nearer == "at once" else 0.2)
    monkeypatch.setattr(f"{structured}._AT_ONCE", 0.0)
    _, expected, _ = pruned(WIDE.text, of="macs", ratio=0.3)
    assert found.to_proto().graph.initializer == expected.to_proto().graph.initializer


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


POOLED = Text(
    "float[1, 3, 8, 8] x",
    "float[1, 4, 8, 8] y",
    "h = Conv(x, e, eb) r = Relu(h) p = GlobalAveragePool(r) q = Conv(p, w, wb) s = Mul(r, q) y = Conv(s, f, fb)",
    e=(40, 3, 1, 1),
    eb=(40,),
    w=(40, 40, 1, 1),
    wb=(40,),
    f=(4, 40, 1, 1),
    fb=(4,),
)


def test_a_layer_of_which_too_little_is_seen_is_not_fitted() -> None:
    """What reads pooled values sees one of them a sample: fewer than it has inputs."""
    _, _, report = pruned(POOLED.text, of="macs", ratio=0.2)
    reasons = [item.reason for item in report.skipped if "not fitted, only scaled" in item.reason]
    assert len(reasons) == 1
    assert reasons[0].startswith("the samples have 16 observations of its ")
    assert report.metrics["fitted"] == 2


def test_what_is_not_fitted_is_scaled_to_vary_as_before() -> None:
    model = POOLED.model()
    infer_shapes(model)
    weaker = model.copy()
    weights = {tensor.name: tensor for node in weaker.graph.nodes for tensor in node.inputs}
    before = weights["w"].values
    weights["w"].values, weights["wb"].values = before * np.float32(0.6), weights["wb"].values + 1
    reconstruct(model, weaker, {}, random_samples(model.interface, count=16), SilentProgress())
    layer = next(node for node in weaker.graph.nodes if node.outputs[0].name == "q")
    np.testing.assert_allclose(layer.inputs[1].values, before, rtol=1e-3)
    assert error_of(model, weaker) < 1e-4


def test_groups_whose_readers_are_too_large_are_left_unless_weights_rank_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_HELD", 64)
    _, _, report = pruned(WIDE.text, of="macs", ratio=0.3)
    assert report.changed == 0
    assert any("GB of second moments" in skip.reason for skip in report.skipped)
    _, _, by_weight = pruned(WIDE.text, of="macs", ratio=0.3, criterion="l2")
    assert by_weight.metrics["channels"] > 0
