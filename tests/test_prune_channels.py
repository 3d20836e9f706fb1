"""Structured pruning: what goes together, what may go at all, and what is left of the model."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings

from graphopt.cost import figures
from graphopt.ir.clean import clean
from graphopt.model import Model
from graphopt.passes.prune.channels.allocation import allocate, curve, pinned
from graphopt.passes.prune.channels.branches import end_branches, fill_means
from graphopt.passes.prune.channels.costs import Costs, mac_costs, time_costs, weight_costs
from graphopt.passes.prune.channels.dependencies import Dependencies, find_dependencies
from graphopt.passes.prune.channels.removal import remove_classes, rows_left
from graphopt.passes.prune.channels.rotation import turn, turnings
from graphopt.progress import SilentProgress
from graphopt.samples import open_samples, random_samples
from graphopt.shapes import shapes_for
from tests.channel_models import CASES, STREAM, WIDE, Text, followed
from tests.graphs import models
from tests.helpers import assert_same_outputs, outputs_of, parse, random_feeds


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


def test_a_single_group_gives_up_no_more_than_was_asked_for() -> None:
    costs = Costs(0.0, np.array([1.0]), np.ones((1, 1, 1)))
    only = curve(64, 8, np.linspace(0.1, 1.0, 63))
    assert allocate([only], costs, 0.15) == [10], "54 of 64 are left, 56 would be too many"
    assert allocate([only], costs, 0.25) == [16], "whole multiples where they fit"
    assert allocate([pinned(only, 0.25)], costs, 0.15) == [16], "what the user states stays"


def test_multiples_that_barely_overshoot_stay() -> None:
    costs = Costs(0.0, np.array([1.0, 0.01]), np.eye(2)[:, None, :])
    large, small = curve(64, 8, np.linspace(0.1, 1.0, 63)), curve(64, 8, np.linspace(9.0, 10.0, 63))
    assert allocate([large, small], costs, 0.246) == [16, 0]


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
