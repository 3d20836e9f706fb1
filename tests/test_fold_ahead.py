"""Scaling and shifting before linear operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.foldcase import Folded, model, weight


def ahead(
    before: str, values: np.ndarray, op: str, weights: onnx.TensorProto, shape: list[Any], **attrs: Any
) -> Folded:
    """Fold an elementwise node before a linear operator with a bias."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node(before, ["r", "c"], ["a"]),
        helper.make_node(op, ["a", "w"] if op == "MatMul" else ["a", "w", "b"], ["y"], **attrs),
    ]
    outs = 6
    constant = numpy_helper.from_array(values.astype(np.float32), "c")
    return Folded(model(nodes, {"x": shape}, ["y"], [constant, weights, weight("b", outs, seed=3)]), tolerance=1e-4)


PER_CHANNEL = np.array([1.5, -2.0, 0.5, 3.0])
IMAGE = PER_CHANNEL.reshape(1, 4, 1, 1)


@pytest.mark.parametrize("before", ["Mul", "Div", "Add", "Sub"])
@pytest.mark.parametrize(
    ("values", "op", "weights", "shape", "attrs"),
    [
        (IMAGE, "Conv", weight("w", 6, 4, 3, 3), ["N", 4, 5, 5], {}),
        (IMAGE, "Conv", weight("w", 6, 2, 3, 3), ["N", 4, 5, 5], {"group": 2, "auto_pad": "VALID"}),
        (np.array(2.0), "Conv", weight("w", 6, 4, 3, 3), ["N", 4, 5, 5], {}),
        (PER_CHANNEL, "Gemm", weight("w", 4, 6), ["N", 4], {"alpha": 0.5}),
        (PER_CHANNEL, "Gemm", weight("w", 6, 4), ["N", 4], {"transB": 1}),
    ],
)
def test_arithmetic_moves_ahead(
    before: str, values: np.ndarray, op: str, weights: onnx.TensorProto, shape: list[Any], attrs: dict[str, Any]
) -> None:
    assert ahead(before, values, op, weights, shape, **attrs).ops == {"Relu": 1, op: 1}


@pytest.mark.parametrize(
    ("values", "op", "weights", "shape", "attrs"),
    [
        (IMAGE, "Conv", weight("w", 6, 4, 3, 3), ["N", 4, 5, 5], {"pads": [1, 1, 1, 1]}),
        (IMAGE, "ConvTranspose", weight("w", 4, 3, 3, 3), ["N", 4, 5, 5], {"group": 2}),
        (PER_CHANNEL, "MatMul", weight("w", 4, 6), ["N", 3, 4], {}),
    ],
)
def test_factors_move_ahead_and_shifts_do_not(
    values: np.ndarray, op: str, weights: onnx.TensorProto, shape: list[Any], attrs: dict[str, Any]
) -> None:
    assert ahead("Mul", values, op, weights, shape, **attrs).ops == {"Relu": 1, op: 1}
    shifted = ahead("Add", values, op, weights, shape, **attrs)
    assert shifted.ops == {"Relu": 1, "Add": 1, op: 1}
    assert shifted.declined("has no bias, or pads")


@pytest.mark.parametrize("values", [np.ones((1, 4, 5, 5)) * 2, np.ones((1, 1, 5, 1)) * 2, np.ones((2, 4, 1, 1)) * 2])
def test_what_varies_within_a_channel_stays(values: np.ndarray) -> None:
    done = ahead("Mul", values, "Conv", weight("w", 6, 4, 3, 3), [2, 4, 5, 5])
    assert done.ops["Mul"] == 1


def test_transposed_inputs_stay() -> None:
    done = ahead("Mul", np.full((3, 4), 2.0), "Gemm", weight("w", 3, 6), [3, 4], transA=1)
    assert done.ops["Mul"] == 1


def test_a_normalization_moves_ahead() -> None:
    stats = [weight(name, 4, seed=seed, low=0.5) for seed, name in enumerate("smtv")]
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("BatchNormalization", ["r", "s", "m", "t", "v"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["y"]),
    ]
    done = Folded(model(nodes, {"x": ["N", 4, 6, 6]}, ["y"], [*stats, weight("w", 6, 4, 3, 3)]), tolerance=1e-4)
    assert done.ops == {"Relu": 1, "Conv": 1}


def test_a_shared_weight_or_a_second_reader_stays() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Mul", ["r", "c"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["p"]),
        helper.make_node("Conv", ["r", "w"], ["q"]),
        helper.make_node("Add", ["p", "q"], ["y"]),
    ]
    constant = numpy_helper.from_array(IMAGE.astype(np.float32), "c")
    done = Folded(model(nodes, {"x": ["N", 4, 6, 6]}, ["y"], [constant, weight("w", 6, 4, 3, 3)]))
    assert done.ops["Mul"] == 1
    assert done.declined("used elsewhere too")
    nodes[3] = helper.make_node("Conv", ["a", "v"], ["q"])
    both = Folded(
        model(nodes, {"x": ["N", 4, 6, 6]}, ["y"], [constant, weight("w", 6, 4, 3, 3), weight("v", 6, 4, 3, 3, seed=9)])
    )
    assert both.ops["Mul"] == 1
