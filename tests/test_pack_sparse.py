"""Size mode after pruning: zeros stay zero, the others get codes, and the file holds a bitmap and these codes."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.compensate.grid import PaletteGrid, nearest
from graphopt.compensate.palette import best_levels, fit_palette, masked
from graphopt.context import Context
from graphopt.evaluate import Evaluator
from graphopt.ir.clean import clean
from graphopt.model import Model
from graphopt.passes.pack.shrink import shrink
from graphopt.passes.pack.unpack import unpack
from graphopt.runtime.session import op_counts, open_session, optimized_model
from graphopt.samples import open_samples
from graphopt.spec import parse_pass
from graphopt.targets import get_target

ROWS, INPUTS = 160, 96


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def sparse_matrix(part: float = 0.6) -> np.ndarray:
    random = rng()
    return random.normal(size=(1, ROWS, INPUTS)) * (random.random((1, ROWS, INPUTS)) >= part)


def moment() -> np.ndarray:
    inputs = rng().normal(size=(600, 8)) @ rng().normal(size=(8, INPUTS)) + 0.3 * rng().normal(size=(600, INPUTS))
    return np.asarray((inputs.T @ inputs / 600)[None])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("known", [True, False])
def test_zeros_stay_and_the_others_are_fitted(bits: int, known: bool) -> None:
    matrix = sparse_matrix()
    coded = shrink(matrix, moment() if known else None, bits, sparse=True)
    decoded = coded.decoded()
    assert not decoded[matrix == 0].any()
    assert len(coded.levels) <= 2**bits
    assert 0 in coded.levels
    rest = float(np.square(decoded - matrix).sum() / np.square(matrix).sum())
    assert rest < {2: 0.8, 3: 0.2, 4: 0.05, 8: 0.002}[bits]


def test_without_sparse_zeros_are_weights_like_others() -> None:
    matrix = sparse_matrix()
    assert shrink(matrix, moment(), 4).decoded()[matrix == 0].any()


def model_of(weight: np.ndarray) -> Model:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, weight.shape[1]])],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def packed(weight: np.ndarray, text: str) -> tuple[Model, Model, list[str]]:
    """Return a model, the same packed, and the forms of its weights."""
    model, target = model_of(weight), get_target("cpu-avx2")
    feeds = [{"x": item.astype(np.float32)} for item in rng().normal(size=(8, 1, INPUTS))]
    samples = open_samples(feeds, model.interface)
    result = model.copy()
    context = Context(target, Evaluator(model, target, samples=samples), samples, max_drop=0.05)
    report = parse_pass(text).run(result, context)
    clean(result.graph)
    onnx.checker.check_model(result.to_proto(), full_check=True)
    return model, result, list(report.metrics)


@pytest.mark.parametrize("text", ["pack:bits=4", "pack:bits=auto"])
def test_pruned_weights_are_smaller_and_run_the_same(text: str) -> None:
    weight = np.tile(sparse_matrix(0.7)[0].T, (1, 4))  # large enough for the tables that decoders share
    model, result, kinds = packed(weight, text)
    assert len(kinds) == 1
    assert "sparse" in kinds[0]
    assert op_counts(optimized_model(result)) == op_counts(optimized_model(model))
    dense = packed(rng().normal(size=weight.shape), text)[1]
    assert result.to_proto().ByteSize() < 0.95 * dense.to_proto().ByteSize()
    plain = result.copy()
    assert unpack(plain) == 1
    feeds = {"x": np.eye(INPUTS, dtype=np.float32)[:1]}
    with open_session(result) as coded, open_session(plain) as unpacked:
        np.testing.assert_array_equal(coded.run(feeds)["y"], unpacked.run(feeds)["y"])
    (constant,) = (tensor for tensor in plain.graph.nodes[0].inputs if tensor.name == "w")
    assert not constant.values[weight == 0].any()


def test_a_masked_grid_projects_to_zero() -> None:
    keep = np.array([[[True, False], [False, True]]])
    grid = masked(PaletteGrid(np.ones((1, 2, 1)), np.array([-1.0, 1.0]), 2), keep)
    np.testing.assert_array_equal(grid.project(np.array([[0.9, 0.9]]), 0), [[1, 0]])
    np.testing.assert_array_equal(grid.project(np.array([[0.9, 0.9]]), 1), [[0, 1]])


# Palettes


@pytest.mark.parametrize("count", [1, 2, 4])
def test_levels_in_one_dimension_are_the_best(count: int) -> None:
    values, weights = np.sort(rng().normal(size=9)), rng().uniform(0.1, 1, 9)

    def loss(levels: np.ndarray) -> float:
        return float((weights * (values - levels[nearest(levels, values)]) ** 2).sum())

    best = loss(best_levels(values, weights, count))
    for inner in product(range(10), repeat=count - 1):
        edges = [0, *sorted(inner), 9]
        parts = [slice(a, b) for a, b in pairwise(edges) if b > a]
        assert best <= loss(np.array([np.average(values[part], weights=weights[part]) for part in parts])) + 1e-12


def test_few_values_are_their_own_levels() -> None:
    values = rng().choice([-2.0, 0.5, 3.0], 100)
    np.testing.assert_allclose(best_levels(values, np.ones(100), 16), [-2, 0.5, 3])
    assert best_levels(np.full(5, 2.0), np.ones(5), 4).tolist() == [2.0]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_palette_beats_rounding(groups: int, whole: bool) -> None:
    matrix = np.rint(rng().normal(size=(groups, 24, 32)) * 40)
    inputs = rng().normal(size=(400, 6)) @ rng().normal(size=(6, 32)) + 0.3 * rng().normal(size=(400, 32))
    second = np.repeat((inputs.T @ inputs / 400)[None], groups, axis=0)
    scale = np.ones((groups, 24, 1))

    def loss(known: np.ndarray | None) -> float:
        palette = fit_palette(matrix, known, 3, scale, whole=whole)
        assert len(palette.levels) <= 8
        assert not whole or np.array_equal(palette.levels, np.rint(palette.levels))
        difference = matrix - palette.levels[palette.codes]
        return float(np.einsum("grk,gkl,grl->", difference, second, difference))

    assert loss(second) < 0.8 * loss(None)
