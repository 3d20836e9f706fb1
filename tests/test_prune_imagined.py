"""Imagined pictures: their gradients, towards what they are changed, and which models get none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from graphopt.context import Context
from graphopt.evaluate import Evaluator
from graphopt.gradients.slope import slope
from graphopt.model import Model
from graphopt.passes.prune import Prune
from graphopt.passes.prune.imagined import Extended, at_all_scales, imagining
from graphopt.runtime.session import open_session
from graphopt.samples import open_samples, random_samples
from graphopt.shapes import infer_shapes
from graphopt.targets import get_target
from tests.channel_models import Text
from tests.helpers import outputs_of

BODY = "h = Conv(x, a, ab) r = Relu(h) p = GlobalAveragePool(r) f = Flatten(p) z = Gemm(f, w) y = Softmax(z)"
WEIGHTS: dict[str, tuple[int, ...]] = {"a": (24, 1, 3, 3), "ab": (24,), "w": (24, 5)}
SIZE = 24


def classifier(inputs: str = f"float[N, 1, {SIZE}, {SIZE}] x", body: str = BODY, opset: int = 17) -> Model:
    model = Text(inputs, "float[N, 5] y", body, opset, **WEIGHTS).model()
    infer_shapes(model)
    return model


def pictures(count: int = 6, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(count, 1, size, size)).astype(np.float32)


def context(model: Model, values: np.ndarray) -> Context:
    samples = open_samples({"x": values}, model.interface)
    target = get_target("cpu")
    return Context(target, Evaluator(model, target, samples=samples), samples)


def imagined(model: Model, values: np.ndarray) -> list[np.ndarray]:
    found = imagining(model, context(model, values)).samples
    assert found is not None
    return [feeds["x"] for feeds in found]


def test_the_slope_is_that_of_finite_differences() -> None:
    model, picture = classifier(body=BODY.replace("Relu", "Sigmoid")), pictures(1)
    worth = np.random.default_rng(1).normal(size=(1, 5)).astype(np.float32)
    found = slope(model, "z", "x", {"x": picture})
    assert found is not None
    with open_session(found.model) as session:
        (gradient,) = session.run({"x": picture, found.worth: worth}).values()
    model.graph.outputs.append(next(item for node in model.graph.nodes for item in node.outputs if item.name == "z"))
    model.graph.outputs[-1].dtype = np.float32
    way = np.random.default_rng(2).normal(size=picture.shape).astype(np.float32)
    sums = [np.vdot(outputs_of(model, {"x": picture + sign * 1e-2 * way})["z"], worth) for sign in (1, -1)]
    assert (sums[0] - sums[1]) / 2e-2 == pytest.approx(np.vdot(gradient, way), rel=2e-2)


@pytest.mark.parametrize(("opset", "relu"), [(12, "Relu"), (17, "Cos")])
def test_no_slope_without_gradients_all_the_way(opset: int, relu: str) -> None:
    model = classifier(body=BODY.replace("Relu", relu).replace("Gemm(f, w)", "MatMul(f, w)"), opset=opset)
    assert slope(model, "z", "x", {"x": pictures(1)}) is None


def test_pictures_are_changed_towards_classes_within_their_range() -> None:
    model = classifier(body=BODY.replace("z = Gemm(f, w) y = Softmax(z)", "y = Gemm(f, w)"))
    found = imagined(model, pictures())
    assert len(found) == 12
    for first, last in zip(found[:4], found[4:8], strict=True):
        assert last.shape == first.shape
        assert last.dtype == first.dtype
        assert first.min() <= last.min() < last.max() <= first.max()
    drawn = context(model, pictures()).rng("prune/imagined").integers(5, size=1)[0]
    scores = [outputs_of(model, {"x": item})["y"][0, drawn] for item in (found[0], found[4])]
    assert scores[1] > scores[0] + 0.01


def test_the_same_twice() -> None:
    first, again = (np.concatenate(imagined(classifier(), pictures())) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_what_is_made_of_a_sample_comes_into_its_share() -> None:
    values = pictures(6)
    samples = open_samples({"x": values}, classifier().interface)
    made = [{"x": feeds["x"] + 10 * (1 + index)} for index, feeds in enumerate(samples)]
    order = [int(feeds["x"].min() / 10) for feeds in Extended(samples, made)]
    assert order == [0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 5, 6]
    assert len(Extended(samples, made)) == 12


@pytest.mark.parametrize(
    ("inputs", "body", "size"),
    [
        ("float[N, 1, 8, 8] x", BODY, 8),
        (
            f"float[N, 1, {SIZE}, {SIZE}] x",
            "h = Conv(x, a, ab) r = Relu(h) p = ReduceMean<axes=[3]>(r) y = Identity(p)",
            SIZE,
        ),
    ],
)
def test_small_inputs_and_maps_have_none(inputs: str, body: str, size: int) -> None:
    assert len(imagined(classifier(inputs, body), pictures(size=size))) == 6


def test_made_up_samples_have_none() -> None:
    model = classifier()
    given = replace(context(model, pictures()), samples=random_samples(model.interface, count=4))
    assert imagining(model, given) is given


def test_channels_are_pruned_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def counted(model: Model, given: Context) -> Context:
        found = imagining(model, given)
        seen.append(len(found.samples or ()))
        return found

    monkeypatch.setattr("graphopt.passes.prune.channels.structured.imagining", counted)
    model = classifier()
    report = Prune(pattern="channels", of="macs", ratio=0.3).run(model, context(classifier(), pictures(8)))
    assert seen == [16]
    assert report.metrics["macs_left"] <= 0.7 + 1e-9


def test_all_octaves_count_alike() -> None:
    noise = np.random.default_rng(0).normal(size=(1, 1, 64, 64))
    found = at_all_scales(noise)
    assert found.std() == pytest.approx(1)
    power = np.square(np.abs(np.fft.fft2(found[0, 0])))
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64))
    octaves = [power[(frequency >= low) & (frequency < 2 * low)].sum() for low in (1 / 16, 1 / 8, 1 / 4)]
    assert max(octaves) < 2 * min(octaves)
