"""Walking through two versions of a model: the same moments as by running both up to each layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from graphopt.cut import Side
from graphopt.ir.graph import constants
from graphopt.layers import linear_layers
from graphopt.model import Model
from graphopt.moments import Pair, paired_moments
from graphopt.samples import random_samples
from graphopt.shapes import infer_shapes
from graphopt.walk import Shelf, Walk, loaded
from tests.test_prune import model_of, random

RESIDUAL = """m (float[N,8] x, bool flag) => (float[N,8] y) {
    a = MatMul(x, w)  s = Relu(a)  t = Add(s, x)  b = MatMul(t, v)  c = MatMul(t, u)  d = Mul(b, c)
    e = If(flag) <
        then_branch = p () => (float[N,8] q) { q = Sub(d, s) },
        else_branch = r () => (float[N,8] z) { z = Identity(d) }
    >
    f = Add(e, x)  y = MatMul(f, w2)
}"""
DEFAULT = "m (float[N,8] x, float[8] o) => (float[N,8] y) { a = MatMul(x, w)  s = Add(a, o)  y = MatMul(s, v) }"
TEXT = """m (float[N,8] x) => (float[N,8] y) {
    a = MatMul(x, w)  n = Cast<to=8>(a)  m = Cast<to=1>(n)  y = MatMul(m, v)
}"""


def residual() -> Model:
    weights = {name: random(8, 8, seed=seed) for seed, name in enumerate(("w", "v", "u", "w2"))}
    return model_of(RESIDUAL, **weights)


def halved(model: Model) -> Model:
    """Return a version with other weights."""
    copy = model.copy()
    for constant in constants(copy.graph):
        if len(constant.shape) == 2:
            constant.values = np.where(np.abs(constant.values) > 0.5, constant.values, 0)
    return copy


def check(original: Model, compressed: Model) -> None:
    """Compare a walk layer by layer with runs of the whole models."""
    samples = random_samples(original.interface, count=5, optional=frozenset(original.graph.defaults))
    layers = linear_layers(compressed)
    with Walk(original, compressed, samples) as walk:
        for layer in layers:
            (found,) = walk.moments([layer])
            (wanted,) = paired_moments(original, compressed, [Pair.same(layer)], samples)
            assert found.layer is layer
            assert found.count == wanted.count
            for name in ("second", "mean", "cross", "target_mean", "energy"):
                assert np.allclose(getattr(found, name), getattr(wanted, name), rtol=1e-4, atol=1e-5), name


def test_moments_are_those_of_the_whole_models() -> None:
    check(residual(), halved(residual()))


def test_inputs_with_defaults_take_them() -> None:
    model = model_of(DEFAULT, w=random(8, 8), v=random(8, 8, seed=1), o=random(8, seed=2))
    assert model.graph.defaults
    check(model, halved(model))


def test_values_lie_in_files_where_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """An input is one file for both models, which goes when the second of them has read it."""
    monkeypatch.setattr("graphopt.walk.Shelf", partial(Shelf, limit=0))
    model = model_of(DEFAULT, w=random(8, 8), v=random(8, 8, seed=1), o=random(8, seed=2))
    check(model, halved(model))
    check(residual(), halved(residual()))


def test_values_that_cannot_be_held_are_made_again() -> None:
    model = model_of(TEXT, w=random(8, 8).round(), v=random(8, 8, seed=1))
    infer_shapes(model)
    side = Side(model)
    assert [side.can_hold(cut) for cut in range(5)] == [True, True, False, True, True]
    check(model, halved(model))


def test_a_layer_runs_with_the_weights_it_has_by_then() -> None:
    original, compressed = residual(), residual()
    infer_shapes(compressed)
    samples = random_samples(original.interface, count=3)
    first, second, *_ = linear_layers(compressed)
    with Walk(original, compressed, samples) as walk:
        list(walk.moments([first]))
        first.weight.values = np.zeros((8, 8), np.float32)
        (found,) = walk.moments([second])
    (wanted,) = paired_moments(original, compressed, [Pair.same(second)], samples)
    assert np.allclose(found.second, wanted.second, rtol=1e-4)


def test_copies_are_cut_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy has no types of inner tensors, without which each layer would be run up to from the very beginning."""
    parts: list[int] = []
    between = Side.between

    def recorded(self: Side, start: int, stop: int, outputs: Sequence[str]) -> Model:
        parts.append(stop - start)
        return between(self, start, stop, outputs)

    monkeypatch.setattr(Side, "between", recorded)
    original, compressed = residual().copy(), residual().copy()
    with Walk(original, compressed, random_samples(original.interface, count=2)) as walk:
        for layer in linear_layers(compressed):
            list(walk.moments([layer]))
    assert max(parts) < len(original.graph.nodes) - 1


def test_what_crosses_a_cut() -> None:
    side = Side(residual())
    assert side.crossing(0) == ["x", "flag"]
    assert set(side.crossing(3)) == {"x", "flag", "s", "t"}  # s is read in a branch


def test_a_part_is_a_model_of_its_own() -> None:
    model = residual()
    infer_shapes(model)
    part = Side(model, "before/").between(2, 5, ["c"])
    assert [spec.name for spec in part.interface.inputs] == ["before/x", "before/s"]
    assert [node.op for node in part.graph.nodes] == ["Add", "MatMul"]
    assert [tensor.name for tensor in model.graph.inputs] == ["x", "flag"]


@pytest.mark.parametrize("limit", [0, 100, 10**6])
def test_a_shelf_holds_so_much_in_memory(tmp_path: Path, limit: int) -> None:
    shelf = Shelf(tmp_path, limit)
    values = [random(3, 3, seed=seed) for seed in range(4)]
    held = [shelf.put(value) for value in (*values, np.array("text", object), ["a"])]
    assert len(list(tmp_path.iterdir())) == {0: 4, 100: 2, 10**6: 0}[limit]
    for value, found in zip(values, held, strict=False):
        assert np.array_equal(loaded(found), value)
    assert loaded(held[-1]) == ["a"]
    for found in held:
        shelf.drop(found)
    assert not list(tmp_path.iterdir())
    assert isinstance(shelf.put(values[0]), np.ndarray) == (limit > 0)
