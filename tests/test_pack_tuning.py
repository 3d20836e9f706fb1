"""Levels and scales tuned by gradients of the outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from graphopt.errors import ModelError
from graphopt.gradients.objective import Objective
from graphopt.ir.graph import constants
from graphopt.model import Model
from graphopt.passes.pack.rounding import Rounding
from graphopt.passes.pack.sizemode import SizeMode
from graphopt.passes.pack.tuning import Tuning, parted, tune
from graphopt.passes.pack.units import find_units
from graphopt.pipeline import Pipeline
from graphopt.progress import SilentProgress
from graphopt.runtime.session import open_session
from graphopt.samples import Samples, open_samples
from tests.test_pack import context_for, graph_model

WIDTH = 48


def network(*, opset: int = 17, sparse: bool = False) -> Model:
    """Three products with biases and a curve between them."""
    random = np.random.default_rng(3)
    nodes, weights, source = [], {}, "x"
    for layer in range(3):
        weight = random.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH) * random.lognormal(size=WIDTH)
        weights[f"w{layer}"] = np.where(random.random(weight.shape) < 0.5, weight, 0) if sparse else weight
        weights[f"b{layer}"] = 0.1 * random.normal(size=WIDTH)
        output = "y" if layer == 2 else f"r{layer}"
        nodes.append(helper.make_node("Gemm", [source, f"w{layer}", f"b{layer}"], [f"h{layer}"], transB=1))
        nodes.append(helper.make_node("Tanh", [f"h{layer}"], [output]))
        source = output
    stored = {name: values.astype(np.float32) for name, values in weights.items()}
    return graph_model(nodes, stored, {"y": [1, WIDTH]}, inputs=(("x", TensorProto.FLOAT, [1, WIDTH]),), opset=opset)


def samples_for(model: Model, count: int, seed: int = 5) -> Samples:
    random, mix = np.random.default_rng(seed), np.random.default_rng(4).normal(size=(8, WIDTH))
    images = (random.normal(size=(count, 1, 8)) @ mix / 3).astype(np.float32)
    return open_samples([{"x": image} for image in images], model.interface)


def rounded(model: Model, samples: Samples, bits: int = 3) -> tuple[Model, list[Rounding]]:
    copy = model.copy()
    units = find_units(copy, constants(copy.graph))
    return copy, SizeMode(samples, SilentProgress(), np.random.default_rng(0)).round(copy, units, [bits] * len(units))


def loss(model: Model, original: Model, samples: Samples) -> float:
    with open_session(original) as before, open_session(model) as after:
        pairs = [(before.run(item)["y"], after.run(item)["y"]) for item in samples]
    return float(sum(np.square(a - b).sum() for a, b in pairs) / sum(np.square(a).sum() for a, _ in pairs))


def test_other_inputs_come_closer_too_and_codes_stay() -> None:
    model = network()
    samples, others = samples_for(model, 96), samples_for(model, 64, seed=6)
    copy, roundings = rounded(model, samples)
    before, codes = loss(copy, model, others), [item.coded.codes for item in roundings]
    tuning = tune(model.copy(), copy, roundings, samples, SilentProgress())
    assert tuning.left < 0.98
    assert "tuned by gradients" in tuning.describe()
    assert loss(copy, model, others) < 0.97 * before
    for item, unchanged in zip(roundings, codes, strict=True):
        np.testing.assert_array_equal(item.coded.codes, unchanged)
        np.testing.assert_array_equal(item.unit.constant.values, item.unit.stored(item.coded.decoded()))
        assert item.coded.scale.dtype == np.float16, "it takes no more bytes than before"


def test_zeros_of_sparse_weights_stay() -> None:
    model = network(sparse=True)
    samples = samples_for(model, 64)
    copy, roundings = rounded(model, samples)
    zeros = [item.unit.constant.values == 0 for item in roundings]
    assert tune(model.copy(), copy, roundings, samples, SilentProgress()).left < 1
    for item, before in zip(roundings, zeros, strict=True):
        np.testing.assert_array_equal(item.unit.constant.values == 0, before)


@pytest.mark.parametrize(("count", "opset", "reason"), [(31, 17, "31 samples"), (64, 12, "opset 13")])
def test_nothing_is_tuned_without_enough_samples_or_operators(count: int, opset: int, reason: str) -> None:
    model = network(opset=opset)
    samples = samples_for(model, count)
    copy, roundings = rounded(model, samples)
    before = [item.unit.constant.values for item in roundings]
    tuning = tune(model.copy(), copy, roundings, samples, SilentProgress())
    assert tuning.left == 1
    assert reason in tuning.describe()
    for item, values in zip(roundings, before, strict=True):
        np.testing.assert_array_equal(item.unit.constant.values, values)


def test_near_copies_are_on_one_side() -> None:
    random = np.random.default_rng(2)
    kinds = random.normal(size=(4, 20))
    aims = [{"y": (kinds[place % 4] + 0.1 * random.normal(size=20))[None]} for place in range(32)]
    used, kept = parted([({"x": np.array(place)}, aim) for place, aim in enumerate(aims)], "y")
    assert sorted(int(feeds["x"]) for feeds, _ in kept) == list(range(0, 32, 4))
    assert len(used) == 24


def test_automatic_bits_use_what_tuning_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    context = context_for(model, samples_for(model, 64), 0.01)
    tuned, (*_, step) = Pipeline.parse("pack:bits=auto:min-bytes=512").run(model, context)
    assert step.outcome == "accepted"
    assert step.drop is not None
    assert step.drop.value <= 0.01
    monkeypatch.setattr(SizeMode, "tune", lambda *_: Tuning(1.0))
    plain, _ = Pipeline.parse("pack:bits=auto:min-bytes=512").run(model, context)
    assert tuned.to_proto().ByteSize() <= plain.to_proto().ByteSize()


def test_what_fails_leaves_the_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    samples = samples_for(model, 64)
    copy, roundings = rounded(model, samples)
    before = [item.unit.constant.values for item in roundings]
    gradients, calls = Objective.gradients, list[int]()

    def failing(objective: Objective, pairs: Any) -> list[np.ndarray]:
        calls.append(0)
        if len(calls) > 2:
            raise ModelError("a sample has another shape")
        return gradients(objective, pairs)

    monkeypatch.setattr(Objective, "gradients", failing)
    tuning = tune(model.copy(), copy, roundings, samples, SilentProgress())
    assert (tuning.left, tuning.reason) == (1.0, "a sample has another shape")
    for item, values in zip(roundings, before, strict=True):
        np.testing.assert_array_equal(item.unit.constant.values, values)
