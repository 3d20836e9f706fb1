"""What weights are fitted to in size mode."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.layers import LinearLayer, linear_layers
from graphopt.model import Model
from graphopt.moments import LayerMoments, PairedMoments
from graphopt.passes.pack.objective import Objective

ROWS, INPUTS, COUNT = 6, 12, 4000


def layer(bias: np.ndarray | None) -> LinearLayer:
    """Return a Gemm with such a bias."""
    weights = {"w": np.ones((INPUTS, ROWS), np.float32)} | ({} if bias is None else {"b": bias.astype(np.float32)})
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", *weights], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, ROWS])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    (found,) = linear_layers(model)
    return found


def matrix() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, ROWS, INPUTS))


def moments(reads: np.ndarray, gives: np.ndarray, bias: np.ndarray | None) -> PairedMoments:
    """Return the moments of what a layer reads, [count, inputs], and what it should give, [count, rows]."""
    count = max(len(reads), 1)
    return PairedMoments(
        layer(bias),
        (reads.T @ reads / count)[None],
        (reads.sum(0) / count)[None],
        (gives.T @ reads / count)[None],
        (gives.sum(0) / count)[None],
        (np.square(gives).sum(0) / count)[None],
        len(reads),
    )


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("bias", [None, np.arange(ROWS) - 2.5])
def test_weights_make_up_for_what_the_layers_before_have_lost(centred: bool, bias: np.ndarray | None) -> None:
    inputs = np.random.default_rng(1).normal(size=(COUNT, INPUTS)) + 0.1
    gives = inputs @ matrix()[0].T + (0 if bias is None else bias)
    found = Objective.inherited(matrix(), moments(inputs / 2, gives, bias), centred=centred)
    np.testing.assert_allclose(found.weights, 2 * matrix(), rtol=0.1, atol=0.1)
    np.testing.assert_allclose(found.output, (inputs @ matrix()[0].T).mean(0)[None], atol=1e-6)


@pytest.mark.parametrize("centred", [True, False])
def test_nothing_lost_leaves_the_weights(centred: bool) -> None:
    inputs, bias = np.random.default_rng(2).normal(size=(COUNT, INPUTS)) + 1, np.ones(ROWS)
    inputs[:, 3] = 0  # an input that no sample shows
    found = Objective.inherited(matrix(), moments(inputs, inputs @ matrix()[0].T + bias, bias), centred=centred)
    np.testing.assert_allclose(found.weights, matrix(), atol=1e-9)
    seen = LayerMoments(layer(bias), (inputs.T @ inputs / COUNT)[None], inputs.mean(0)[None], COUNT)
    alone = Objective.alone(matrix(), seen, centred=centred)
    np.testing.assert_allclose(found.moment, alone.moment)
    np.testing.assert_allclose(found.output, alone.output)


def test_a_layer_that_no_sample_reaches_keeps_its_weights_and_bias() -> None:
    bias = np.arange(ROWS) + 1.0
    found = Objective.inherited(matrix(), moments(np.empty((0, INPUTS)), np.empty((0, ROWS)), bias), centred=True)
    np.testing.assert_array_equal(found.weights, matrix())
    np.testing.assert_array_equal(found.output, 0)
