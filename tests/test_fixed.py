"""Models that draw random numbers: compared with these held fixed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

from graphopt.api import compress
from graphopt.evaluate import Evaluator
from graphopt.evaluate.fixed import with_fixed_numbers
from graphopt.model import Model
from graphopt.report.terminal import quality_line
from graphopt.runtime.session import open_session
from graphopt.samples import open_samples
from graphopt.targets import get_target

SIZE = 1000


def model(nodes: str, opset: int = 21, **weights: np.ndarray) -> Model:
    proto = parser.parse_model(
        f'<ir_version: 10, opset_import: ["": {opset}]> g (float[n, {SIZE}] x) => (float[n, {SIZE}] y) {{ {nodes} }}'
    )
    proto.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in weights.items())
    return Model.from_proto(proto)


def feeds(count: int = 3) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((2, SIZE)).astype(np.float32)} for _ in range(count)]


def drawn(nodes: str, times: int = 2, opset: int = 21) -> list[np.ndarray]:
    with open_session(with_fixed_numbers(model(nodes, opset)), optimize=False) as session:
        return [session.run({"x": np.zeros((2, SIZE), np.float32)})["y"] for _ in range(times)]


@pytest.mark.parametrize(
    ("nodes", "mean", "deviation"),
    [
        ("r = RandomNormalLike(x) y = Add(x, r)", 0, 1),
        ("r = RandomNormalLike<mean = 3.0, scale = 0.5>(x) y = Add(x, r)", 3, 0.5),
        ("r = RandomNormal<shape = [2, 1000]>() y = Add(x, r)", 0, 1),
        ("r = RandomUniformLike(x) y = Add(x, r)", 0.5, 12**-0.5),
        ("r = RandomUniform<shape = [2, 1000], low = -3.0, high = 3.0>() y = Add(x, r)", 0, 3**0.5),
        ("r = RandomNormalLike<dtype = 10>(x) w = Cast<to = 1>(r) y = Add(x, w)", 0, 1),
        ("h = Cast<to = 11>(x) r = RandomNormalLike(h) w = Cast<to = 1>(r) y = Add(x, w)", 0, 1),
    ],
)
@pytest.mark.parametrize("opset", [11, 21])
def test_numbers_are_fixed_and_look_random(nodes: str, mean: float, deviation: float, opset: int) -> None:
    first, second = drawn(nodes, opset=opset)
    np.testing.assert_array_equal(first, second)
    assert first.mean() == pytest.approx(mean, abs=0.1 * deviation)
    assert first.std() == pytest.approx(deviation, rel=0.05)
    values = first.ravel() - first.mean()
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.1
    power = np.abs(np.fft.rfft(values)) ** 2
    assert power.max() < 30 * power.mean(), "no tone"


def test_two_nodes_draw_other_numbers() -> None:
    (found,) = drawn("r = RandomNormalLike(x) s = RandomNormalLike(x) y = Sub(r, s)", times=1)
    assert found.std() == pytest.approx(2**0.5, rel=0.1)


def test_numbers_in_a_body_are_fixed() -> None:
    nodes = """more = Constant<value = bool {1}>()
        y = If(more) <then_branch = yes () => (float[n, 1000] a) { a = RandomNormalLike(x) },
                      else_branch = no () => (float[n, 1000] b) { b = Identity(x) }>"""
    first, second = drawn(nodes)
    np.testing.assert_array_equal(first, second)
    assert first.std() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("nodes", ["y = Relu(x)", "p = Sigmoid(x) y = Bernoulli(p)"])
def test_other_models_stay_as_they_are(nodes: str) -> None:
    plain = model(nodes)
    assert with_fixed_numbers(plain) is plain
    old = model("r = RandomNormalLike(x) y = Add(x, r)", opset=10)
    assert with_fixed_numbers(old) is old, "it has no Range"


def test_the_model_itself_goes_on_drawing() -> None:
    noisy = model("r = RandomNormalLike(x) y = Add(x, r)")
    before = noisy.to_proto()
    assert with_fixed_numbers(noisy) is not noisy
    assert noisy.to_proto() == before


NOISY = "a = Identity(x) r = RandomNormalLike(a) s = Mul(r, w) y = Add(a, s)"
WEIGHT = np.linspace(0.5, 1.5, SIZE).astype(np.float32)


def test_a_pass_over_a_model_that_draws_is_verified_and_judged() -> None:
    noisy = model(NOISY, w=WEIGHT)
    result = compress(noisy, "fold,half", data=feeds(), benchmark=False)
    fold, half = result.report.steps
    assert fold.verified == "outputs equal on 3 samples; random numbers held fixed"
    assert half.drop is not None
    assert half.drop.value < 1e-6
    assert quality_line(result.report).startswith("agreement lost <0.01 %")
    assert "on 3 samples, random numbers held fixed;" in quality_line(result.report)
    assert result.report.to_json()["drop"]["fixed"] is True
    assert {node.op for node in result.model.graph.nodes} >= {"RandomNormalLike"}, "the result draws"


@pytest.mark.parametrize("nodes", [NOISY.replace("Add", "Sub"), NOISY.replace("Mul(r, w)", "Mul(w, w)")])
def test_a_model_that_draws_and_differs_is_found_out(nodes: str) -> None:
    noisy, wrong = model(NOISY, w=WEIGHT), model(nodes, w=WEIGHT)
    judge = Evaluator(noisy, get_target("cpu-avx2"), samples=open_samples(feeds(), noisy.interface))
    assert judge.mismatch(noisy, wrong).equal is False
    assert judge.mismatch(noisy, model(NOISY, w=WEIGHT)).equal is True
    drop = judge.drop(wrong)
    assert drop is not None
    assert drop.value > 0.1
