"""Tuning by gradients: closer to the original, zeros stay, and what is left alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt.gradients.adam import Adam
from graphopt.gradients.tuning import Pace, _descend, tune
from graphopt.ir.graph import constants
from graphopt.model import Model
from graphopt.progress import SilentProgress
from graphopt.samples import open_samples, random_samples
from tests.helpers import outputs_of, random_feeds
from tests.test_prune import model_of, random, values

TEXT = """m (float[N,8] x) => (float[N,6] y) {
    a = Gemm(x, w, b)  s = Relu(a)  c = MatMul(s, v)  y = Softmax(c)
}"""


def original(text: str = TEXT) -> Model:
    return model_of(text, w=random(8, 12), b=random(12, seed=1), v=random(12, 6, seed=2))


def without_small(model: Model) -> Model:
    """Return a version whose smaller half of weights is zero."""
    copy = model.copy()
    for constant in constants(copy.graph):
        if len(constant.shape) == 2:
            small = np.abs(constant.values) < np.median(np.abs(constant.values))
            constant.values = np.where(small, 0, constant.values)
    return copy


def tuned(model: Model, compressed: Model) -> tuple[int, str]:
    samples = random_samples(model.interface, count=64)
    return tune(model, compressed, samples, SilentProgress(), np.random.default_rng(0))


def error(model: Model, other: Model) -> float:
    pairs = [
        [outputs_of(item, random_feeds(model.to_proto(), seed))["y"] for item in (model, other)] for seed in range(9)
    ]
    return float(np.mean([np.square(first - second).mean() for first, second in pairs]))


@pytest.mark.parametrize("pace", [Pace(6e-2, 8, falls=True), Pace(3e-2, 16, falls=False)])
def test_it_comes_closer_on_other_samples_and_zeros_stay_zero(pace: Pace) -> None:
    model, compressed = original(), without_small(original())
    before = compressed.copy()
    samples = random_samples(model.interface, count=64)
    assert tune(model, compressed, samples, SilentProgress(), np.random.default_rng(0), pace=pace) == (3, "")
    assert error(model, compressed) < 0.95 * error(model, before)
    for name in ("w", "v"):
        assert np.array_equal(values(compressed, name) == 0, values(before, name) == 0)
        assert not np.array_equal(values(compressed, name), values(before, name))


def test_the_same_twice() -> None:
    found = [without_small(original()) for _ in range(2)]
    for compressed in found:
        tuned(original(), compressed)
    assert all(np.array_equal(values(found[0], name), values(found[1], name)) for name in ("w", "b", "v"))


def test_what_is_the_original_already_stays() -> None:
    model, same = original(), original().copy()
    assert tuned(model, same) == (0, "it comes no closer to the original")
    assert np.array_equal(values(model, "w"), values(same, "w"))


def test_what_gradients_do_not_reach() -> None:
    text = "m (float[N,8] x) => (float[N,12] y) { a = Gemm(x, w, b)  y = Ceil(a) }"
    model = model_of(text, w=random(8, 12), b=random(12))
    count, reason = tuned(model, without_small(model))
    assert count == 0
    assert "no gradients lead through" in reason


def test_opsets_before_the_rules() -> None:
    text = '<ir_version: 7, opset_import: ["": 12]> ' + TEXT
    count, reason = tuned(original(text), without_small(original(text)))
    assert count == 0
    assert "opset 13" in reason


def test_shared_and_shown_weights_stay() -> None:
    text = """m (float[N,8] x) => (float[N,8] y, float[8,8] v) {
        a = MatMul(x, w)  s = Tanh(a)  c = MatMul(s, w)  d = MatMul(c, v)  y = MatMul(d, u)
    }"""
    model = model_of(text, **{name: random(8, 8, seed=seed) for seed, name in enumerate("wvu")})
    compressed = without_small(model)
    before = compressed.copy()
    assert tuned(model, compressed) == (1, "")
    assert all(np.array_equal(values(compressed, name), values(before, name)) for name in "wv")


def test_steps_are_a_part_of_the_size_of_the_weight() -> None:
    weights = [np.full(3, 100, np.float32), np.full(3, 1e-3, np.float32)]
    found = Adam(weights).step(weights, [np.ones(3, np.float32), np.full(3, -1e6, np.float32)], 0.01)
    assert found[0] == pytest.approx(np.full(3, 99.0), rel=1e-5)
    assert found[1] == pytest.approx(np.full(3, 1.01e-3), rel=1e-5)


def test_samples_kept_apart_say_after_which_round_it_was_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Descent that finds the original after the first of three rounds and then goes on is taken back there."""
    model, compressed = original(), original()
    for constant in constants(compressed.graph):
        constant.values = 2 * constant.values
    aims, steps = dict[tuple[int, ...], np.ndarray](), list[int]()

    def ever_further(adam: Adam, weights: Sequence[np.ndarray], *_: Any) -> list[np.ndarray]:
        if not steps:
            aims.update({item.shape: item for item in (values(model, name) for name in ("w", "b", "v"))})
        steps.append(len(weights))
        return [aims[item.shape] + len(steps) // 7 for item in weights]  # 48 samples are 6 steps a round

    monkeypatch.setattr(Adam, "step", ever_further)
    monkeypatch.setattr("graphopt.gradients.tuning._STEPS", 0)
    samples = random_samples(model.interface, count=64)
    assert tune(model, compressed, samples, SilentProgress(), np.random.default_rng(0), apart=4) == (3, "")
    assert len(steps) == 18
    for name in ("w", "b", "v"):
        assert np.array_equal(values(compressed, name), values(model, name))


@pytest.mark.parametrize(("count", "steps"), [(64, 24), (160, 60), (256, 72)])
def test_at_least_so_many_steps_and_rounds(monkeypatch: pytest.MonkeyPatch, count: int, steps: int) -> None:
    model, made = original(), []
    step = Adam.step

    def counted(*args: Any) -> list[np.ndarray]:
        made.append(1)
        return step(*args)

    monkeypatch.setattr(Adam, "step", counted)
    samples = random_samples(model.interface, count=count)
    tune(model, without_small(model), samples, SilentProgress(), np.random.default_rng(0))
    assert len(made) == steps


@pytest.mark.parametrize("which", [slice(3, None, 4), slice(0, None, 4)])
def test_only_samples_kept_apart_judge(monkeypatch: pytest.MonkeyPatch, which: slice) -> None:
    """What makes these alone better is kept, and what makes others alone better is not."""
    text = "m (float[1,2] x) => (float[1,2] y) { y = MatMul(x, w) }"
    model, compressed = (model_of(text, w=np.eye(2, dtype=np.float32) * size) for size in (1, 2))
    feeds = np.tile(np.array([[1, 0]], np.float32), (64, 1, 1))
    feeds[which] = [[0, 1]]
    samples = open_samples([{"x": item} for item in feeds], model.interface)

    monkeypatch.setattr(Adam, "step", lambda *_: [np.diag(np.array([3, 1], np.float32))])
    count, _ = tune(model, compressed, samples, SilentProgress(), np.random.default_rng(0), apart=4)
    assert count == (which.start == 3)


def test_inputs_that_have_values_of_their_own() -> None:
    """What a caller may override is an input of the parts that are tuned, and samples need not give it."""
    text = """m (float[N,8] x, float[1] s) => (float[N,6] y) {
        a = Gemm(x, w, b)  r = Relu(a)  c = MatMul(r, v)  y = Mul(c, s)
    }"""
    scale = np.array([2], np.float32)
    model = model_of(text, w=random(8, 12), b=random(12, seed=1), v=random(12, 6, seed=2), s=scale)
    samples = open_samples({"x": random(64, 8)}, model.interface, optional=frozenset({"s"}))
    compressed = without_small(model)
    assert tune(model, compressed, samples, SilentProgress(), np.random.default_rng(0)) == (3, "")


def test_steps_that_go_too_far_are_gone_in_part() -> None:
    class Valley:
        """One weight, whose slope always says the same, and which is best at an eighth of the way."""

        def __init__(self) -> None:
            self.weights, self.targets = [gs.Constant("w", np.ones(1))], 1

        def gradients(self, pairs: Any) -> list[np.ndarray]:
            return [np.full(1, -float(len(list(pairs))))]

        def error(self, pairs: Any) -> float:
            return float(abs(self.weights[0].values[0] - 1.05))

    valley, pair = Valley(), ({"x": np.zeros(1)}, {"y": np.zeros(1)})
    rng = np.random.default_rng(0)
    assert _descend(valley, [pair] * 192, [pair], Pace(0.01, 8, falls=False), SilentProgress(), rng)  # type: ignore[arg-type]
    assert 1 < valley.weights[0].values[0] < 1.1
