"""Second moments of layer inputs, and layers as matrices, against plain numpy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.compensate import damped
from graphopt.ir.graph import Constant
from graphopt.layers import linear_layers
from graphopt.model import Model
from graphopt.moments import Pair, layer_moments, paired_moments
from graphopt.runtime.session import open_session
from graphopt.samples import open_samples

RNG = np.random.default_rng(0)


def conv_model(shape: tuple[int, ...], weight: tuple[int, ...], **attrs: Any) -> Model:
    values = RNG.normal(size=weight).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv", **attrs)
    return one_node(node, {"w": values}, [None, *shape[1:]])


def one_node(node: onnx.NodeProto, weights: dict[str, np.ndarray], shape: list[int | None]) -> Model:
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def im2col(
    image: np.ndarray, kernel: tuple[int, int], group: int, strides: list[int], pads: list[int], dilations: list[int]
) -> np.ndarray:
    """Return patches [groups, inputs, positions] of an image [batch, channels, height, width]."""
    image = np.pad(image, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    out = [(image.shape[2 + d] - dilations[d] * (kernel[d] - 1) - 1) // strides[d] + 1 for d in (0, 1)]
    columns = []
    for n, i, j in itertools.product(range(len(image)), range(out[0]), range(out[1])):
        rows = [i * strides[0] + dilations[0] * k for k in range(kernel[0])]
        cols = [j * strides[1] + dilations[1] * k for k in range(kernel[1])]
        columns.append(image[n][:, rows][:, :, cols].reshape(group, -1))
    return np.stack(columns, axis=2)


@pytest.mark.parametrize(
    ("weight", "attrs"),
    [
        ((6, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
        ((6, 4, 3, 2), {"strides": [2, 1], "pads": [0, 1, 2, 0]}),
        ((4, 1, 3, 3), {"group": 4, "dilations": [2, 2], "pads": [2, 2, 2, 2]}),
        ((8, 2, 3, 3), {"group": 2, "strides": [2, 2]}),
        ((5, 4, 1, 1), {}),
        ((5, 4, 1, 1), {"strides": [2, 2]}),
    ],
)
def test_convolution(weight: tuple[int, ...], attrs: dict[str, Any]) -> None:
    model = conv_model((1, 4, 9, 7), weight, **attrs)
    feeds = [{"x": RNG.normal(size=(2, 4, 9, 7)).astype(np.float32)}, {"x": np.ones((2, 4, 9, 7), np.float32)}]
    (found_moments,) = layer_moments(model, linear_layers(model), open_samples(feeds, model.interface))
    layer, moment = found_moments.layer, found_moments.second
    full: dict[str, Any] = {"group": 1, "strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1]} | attrs
    columns = np.concatenate([im2col(f["x"], (weight[2], weight[3]), **full) for f in feeds], axis=2).astype(np.float64)
    np.testing.assert_allclose(moment, columns @ columns.transpose(0, 2, 1) / columns.shape[2], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found_moments.mean, columns.mean(axis=2), rtol=1e-5, atol=1e-5)
    direct = np.stack([layer.matrix()[g] @ columns[g] for g in range(layer.groups)])
    with open_session(model) as session:
        found = np.concatenate([session.run(f)["y"] for f in feeds])
    found = found.transpose(1, 0, 2, 3).reshape(layer.groups, layer.rows, -1)
    np.testing.assert_allclose(direct, found, rtol=1e-4, atol=1e-4, err_msg="matrix and patches disagree")


@pytest.mark.parametrize(("op", "attrs"), [("MatMul", {}), ("Gemm", {}), ("Gemm", {"transB": 1})])
def test_matrices(op: str, attrs: dict[str, Any]) -> None:
    weight = RNG.normal(size=(3, 5) if attrs else (5, 3)).astype(np.float32)
    model = one_node(helper.make_node(op, ["x", "w"], ["y"], **attrs), {"w": weight}, [None, 5])
    inputs = RNG.normal(size=(11, 5)).astype(np.float32)
    samples = open_samples([{"x": inputs[:4]}, {"x": inputs[4:]}], model.interface)
    (found,) = layer_moments(model, linear_layers(model), samples)
    np.testing.assert_allclose(found.second[0], inputs.T @ inputs / 11, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.mean[0], inputs.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.covariance[0], np.cov(inputs.T, bias=True), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.layer.matrix()[0], weight if attrs else weight.T)


def test_matrix_and_stored_are_inverse() -> None:
    for model in (conv_model((1, 4, 9, 7), (8, 2, 3, 3), group=2), conv_model((1, 4, 9, 7), (5, 4, 1, 1))):
        (layer,) = linear_layers(model)
        np.testing.assert_array_equal(layer.stored(layer.matrix()), layer.weight.values)


def test_small_budgets_give_the_same_moments() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3] x) => (float[N, 2] y)
    <float[3, 4] a = {1,2,3,4,5,6,7,8,9,10,11,12}, float[4, 2] b = {1,2,3,4,5,6,7,8}>
    { h = MatMul(x, a)
      y = MatMul(h, b) }
    """
    model = Model.from_proto(onnx.parser.parse_model(text))
    samples = open_samples([{"x": RNG.normal(size=(5, 3)).astype(np.float32)}], model.interface)
    whole = [item.second for item in layer_moments(model, linear_layers(model), samples)]
    pieces = [item.second for item in layer_moments(model, linear_layers(model), samples, budget=1)]
    assert len(whole) == len(pieces) == 2
    for one, other in zip(whole, pieces, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(model.graph.outputs) == 1, "the model itself was extended"


def test_what_is_no_linear_layer() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[2, 3, 3] x, float[3, 2] v) => (float[2, 3, 2] y, float[2, 3, 3] z)
    <float[2, 3, 3] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9}>
    { y = MatMul(x, v)
      z = MatMul(x, w) }
    """
    assert linear_layers(Model.from_proto(onnx.parser.parse_model(text))) == ()


@pytest.mark.parametrize(
    ("weight", "attrs"),
    [
        ((6, 4, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ((8, 2, 3, 3), {"group": 2}),
        ((4, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
        ((5, 4, 1, 1), {}),
    ],
)
def test_pairs_of_one_model_give_its_own_layer_back(weight: tuple[int, ...], attrs: dict[str, Any]) -> None:
    model = conv_model((1, 4, 9, 7), weight, **attrs)
    feeds = [{"x": RNG.normal(size=(2, 4, 9, 7)).astype(np.float32)} for _ in range(6)]
    (layer,) = linear_layers(model)
    samples = open_samples(feeds, model.interface)
    (found,) = paired_moments(model, model, [Pair.same(layer)], samples)
    (alone,) = layer_moments(model, [layer], samples)
    np.testing.assert_allclose(found.second, alone.second)
    solved = np.linalg.solve(found.second, found.cross.transpose(0, 2, 1)).transpose(0, 2, 1)
    np.testing.assert_allclose(solved, layer.matrix(), rtol=1e-3, atol=1e-4, err_msg="positions of the two disagree")
    explained = np.einsum("grk,grk->gr", layer.matrix() @ found.second, layer.matrix())
    np.testing.assert_allclose(found.energy, explained, rtol=1e-4)


def test_targets_come_from_the_original_and_inputs_from_the_compressed_model() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3] x) => (float[N, 2] y)
    <float[3, 4] a = {1,2,3,4,5,6,7,8,9,10,11,12}, float[4, 2] b = {1,2,3,4,5,6,7,8}>
    { h = MatMul(x, a)
      y = MatMul(h, b) }
    """
    original = Model.from_proto(onnx.parser.parse_model(text))
    compressed = original.copy()
    first, second = linear_layers(compressed)
    first.weight.values = first.weight.values * 0.5
    inputs = RNG.normal(size=(40, 3)).astype(np.float32)
    samples = open_samples([{"x": inputs[:10]}, {"x": inputs[10:25]}, {"x": inputs[25:]}], original.interface)
    rows = np.array([1])
    narrow = narrowed(compressed.copy())
    (found,) = paired_moments(original, narrow, [Pair(linear_layers(narrow)[1], "y", rows)], samples)
    assert found.cross.shape == (1, 1, 4), "only the kept row counts"
    (found,) = paired_moments(original, compressed, [Pair.same(second)], samples, apart=3)
    hidden = inputs @ first.weight.values
    target = inputs @ linear_layers(original)[0].weight.values @ second.weight.values
    np.testing.assert_allclose(found.second[0], hidden.T @ hidden / 40, rtol=1e-5)
    np.testing.assert_allclose(found.cross[0], target.T @ hidden / 40, rtol=1e-5)
    np.testing.assert_allclose(found.target_mean[0], target.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.centred.energy[0], target.var(axis=0), rtol=1e-5)
    assert [share.count for share in found.split] == [25, 15]
    np.testing.assert_allclose(found.split[0].second[0], hidden[:25].T @ hidden[:25] / 25, rtol=1e-5)
    assert len(original.graph.outputs) == len(compressed.graph.outputs) == 1, "a model was extended"


def narrowed(model: Model) -> Model:
    """Drop the first column of the last layer's weight, in place."""
    layer = linear_layers(model)[-1]
    layer.node.inputs[1] = Constant("narrow", layer.weight.values[:, 1:])
    return model


def test_a_missing_target_is_named() -> None:
    model = conv_model((1, 4, 9, 7), (5, 4, 1, 1))
    samples = open_samples([{"x": np.ones((1, 4, 9, 7), np.float32)}], model.interface)
    with pytest.raises(KeyError, match="nowhere"):
        list(paired_moments(model, model, [Pair(linear_layers(model)[0], "nowhere", np.arange(5))], samples))


@pytest.mark.parametrize("op", ["Conv", "MatMul"])
def test_what_is_besides_a_layer_is_left_out_of_its_target(op: str) -> None:
    """``z = y + s`` less s is y, so that both pairs have the same moments; a wrong s gives others."""
    shape = "N, 4, 5, 5" if op == "Conv" else "N, 5, 4"
    kernel = (4, 4, 1, 1) if op == "Conv" else (4, 4)
    values = ",".join(f"{value:.4f}" for value in np.random.default_rng(1).normal(size=16))
    model = Model.from_proto(
        onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["" : 17]> g (float[{shape}] x) => (float[{shape}] z) '
            f"<float[{','.join(map(str, kernel))}] w = {{{values}}}> "
            f"{{ s = Relu(x) h = Tanh(x) y = {op}(h, w) z = Add(y, s) }}"
        )
    )
    (layer,) = linear_layers(model)
    size = (6, 4, 5, 5) if op == "Conv" else (6, 5, 4)
    samples = open_samples({"x": RNG.normal(size=size).astype(np.float32)}, model.interface)
    pairs = Pair.same(layer), Pair(layer, "z", np.arange(4), "s"), Pair(layer, "z", np.arange(4), "h")
    plain, joined, wrong = paired_moments(model, model, pairs, samples)
    np.testing.assert_allclose(joined.cross, plain.cross, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(joined.target_mean, plain.target_mean, rtol=1e-4, atol=1e-5)
    assert not np.allclose(wrong.cross, plain.cross, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("level", [3.0, 1e-38])
def test_inputs_that_do_not_vary_have_no_covariance(level: float) -> None:
    """What rounding leaves may be negative, and no matrix to divide by."""
    model = conv_model((1, 4, 5, 5), (4, 1, 3, 3), group=4)
    images = RNG.normal(size=(6, 1, 4, 5, 5)).astype(np.float32)
    images[:, :, 1] = level * (1 + 1e-7 * RNG.normal(size=(6, 1, 5, 5)))
    samples = open_samples([{"x": image} for image in images], model.interface)
    (paired,) = paired_moments(model, model, [Pair.same(linear_layers(model)[0])], samples)
    assert not paired.centred.second[1].any()
    assert not paired.centred.cross[1].any(), "nothing is to be fitted to what rounding left"
    assert paired.centred.cross[0].any()
    (moments,) = layer_moments(model, linear_layers(model), samples)
    assert not moments.covariance[1].any()
    for group, covariance in enumerate(moments.covariance):
        assert np.linalg.eigvalsh(damped(covariance)).min() > 0, group
    assert moments.covariance[0].any()
