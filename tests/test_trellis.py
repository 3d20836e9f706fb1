"""Codes on a trellis: paths are the best, decoders give what codes say, and weights lose less at the same bits."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from graphopt.compensate import damped
from graphopt.compensate.grid import nearest
from graphopt.compensate.palette import best_levels
from graphopt.compensate.trellis import MEMORY, Trellis, TrellisGrid, best_windows, fit_trellis, lanes
from graphopt.ir.graph import Variable, constants
from graphopt.model import Model
from graphopt.passes.pack.chain import can_chain, chain, fit_levels
from graphopt.passes.pack.decoders import DecoderBuilder
from graphopt.passes.pack.shrink import shrink
from graphopt.passes.pack.units import Unit, find_units
from graphopt.passes.pack.unpack import unpack
from graphopt.runtime.session import op_counts, open_session, optimized_model
from graphopt.samples import open_samples
from tests.test_pack import graph_model, packed


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def some_trellis(bits: int) -> Trellis:
    levels = rng().normal(size=2 ** (bits + MEMORY))
    return Trellis(bits, levels.astype(np.float16).astype(np.float32))


def along(trellis: Trellis, codes: tuple[int, ...]) -> np.ndarray:
    """Return the levels along one chain, step by step."""
    window, found = 0, []
    for code in codes:
        window = (window << trellis.bits | code) % len(trellis.levels)
        found.append(trellis.levels[window])
    return np.array(found)


@pytest.mark.parametrize(("bits", "steps"), [(1, 8), (2, 4), (3, 3)])
def test_no_path_is_better(bits: int, steps: int) -> None:
    trellis = some_trellis(bits)
    wanted = rng().normal(size=(steps, 3)).astype(np.float32)
    weight = rng().uniform(0.1, 2, (steps, 3)).astype(np.float32)
    found = trellis.levels[best_windows(wanted, weight, trellis)]
    paths = [along(trellis, codes) for codes in product(range(2**bits), repeat=steps)]
    for lane in range(3):
        errors = [float(weight[:, lane] @ (path - wanted[:, lane]) ** 2) for path in paths]
        assert float(weight[:, lane] @ (found[:, lane] - wanted[:, lane]) ** 2) == pytest.approx(min(errors), rel=1e-4)


def test_many_chains_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, trellis = rng().normal(size=(20, 30)).astype(np.float32), some_trellis(3)
    whole = best_windows(wanted, np.ones_like(wanted), trellis)
    monkeypatch.setattr("graphopt.compensate.trellis._STEPS", 20 * len(trellis.levels) * 7)
    assert np.array_equal(best_windows(wanted, np.ones_like(wanted), trellis), whole)


@pytest.mark.parametrize("rows", [1, 95, 96, 200, 301])
def test_a_grid_remembers_what_it_chose(rows: int) -> None:
    trellis, scale = some_trellis(3), rng().uniform(0.01, 10, rows)
    scale[rows // 2] = 0
    values = rng().normal(size=(rows, 4)) * scale[:, None]
    grid = TrellisGrid(scale, trellis, 4)
    projected = np.stack([grid.project(values[:, column], column) for column in (3, 0, 2, 1)], axis=1)
    np.testing.assert_allclose(projected[:, [1, 3, 2, 0]], trellis.decoded(grid.codes) * scale[:, None], rtol=1e-6)
    assert not projected[rows // 2].any()
    together = TrellisGrid(scale, trellis, 4)
    together.project_all(values)
    assert np.array_equal(together.codes, grid.codes)


@pytest.mark.parametrize(("rows", "across"), [(1, 1), (191, 1), (192, 2), (320, 2), (384, 4), (1000, 10), (1009, 1)])
def test_chains_are_of_one_length(rows: int, across: int) -> None:
    assert lanes(rows) == across


def test_chains_go_along_rows() -> None:
    trellis, codes = some_trellis(4), rng().integers(0, 16, (200, 3)).astype(np.uint8)
    step = lanes(200)
    assert step == 2
    decoded = trellis.decoded(codes)
    for lane, column in product(range(step), range(3)):
        assert np.array_equal(decoded[lane::step, column], along(trellis, tuple(map(int, codes[lane::step, column]))))


@pytest.mark.parametrize(("bits", "left"), [(2, 0.8), (3, 0.7), (4, 0.7)])
def test_normal_weights_lose_less_than_with_the_best_levels_of_their_own(bits: int, left: float) -> None:
    values = rng().normal(size=2**15)
    levels = best_levels(values, np.ones(1), 2**bits)
    alone = np.mean((levels[nearest(levels, values)] - values) ** 2)
    trellis = fit_trellis(values, bits, rng())
    fresh = np.random.default_rng(6).normal(size=(960, 16))
    grid = TrellisGrid(np.ones(960), trellis, 16)
    grid.project_all(fresh)
    assert np.mean((trellis.decoded(grid.codes) - fresh) ** 2) < left * alone


@pytest.mark.parametrize("bits", range(1, 7))
@pytest.mark.parametrize("shape", [(1, 200, 3), (1, 101, 7), (2, 50, 1), (1, 97, 1), (5, 288, 2)])
def test_decoders_give_what_codes_say(bits: int, shape: tuple[int, int, int]) -> None:
    trellis = some_trellis(bits)
    codes = rng().integers(0, 2**bits, shape).astype(np.uint8)
    builder = DecoderBuilder(set())
    draft = builder.draft("w")
    decoded = draft.finish(draft.trellis(codes, trellis.levels, bits), "w")
    builder.keep(draft)
    model = graph_model([helper.make_node("Identity", ["x"], ["y"])], {}, {"y": [1, 48]})
    expected = trellis.decoded(codes).ravel()
    decoded.dtype, decoded.shape = np.dtype(np.float32), [1, 1, None, None]
    model.graph.nodes[:0] = builder.nodes
    model.graph.outputs.append(decoded)
    feeds = {"x": np.zeros((1, 48), np.float32)}
    for optimize in (False, True):
        with open_session(model, optimize=optimize) as session:
            assert np.array_equal(np.asarray(session.run(feeds)["w"]).ravel(), expected)
    assert isinstance(decoded, Variable)
    (reference,) = ReferenceEvaluator(model.to_proto()).run(["w"], feeds)
    assert np.array_equal(np.asarray(reference).ravel(), expected)


def layered() -> Model:
    """Return a model with every kind of weight that goes on a trellis, and one that is too small."""
    random = rng()
    weights = {
        "conv": random.normal(size=(128, 2, 6, 6)),
        "turned": random.normal(size=(128, 72, 1, 1)),
        "product": random.normal(size=(72, 120)) * 1e-3,
        "gemm": random.standard_t(4, size=(110, 120)),
        "table": random.normal(size=(500, 40)) * 3,
        "small": random.normal(size=(110, 8)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["a"]),
        helper.make_node("ConvTranspose", ["a", "turned"], ["b"]),
        helper.make_node("ReduceMean", ["b"], ["c"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["c", "product"], ["d"]),
        helper.make_node("Gemm", ["d", "gemm"], ["e"], transB=1),
        helper.make_node("MatMul", ["e", "small"], ["f"]),
        helper.make_node("Gather", ["table", "i"], ["g"]),
    ]
    inputs = (("x", onnx.TensorProto.FLOAT, [1, 2, 9, 9]), ("i", onnx.TensorProto.INT64, [3]))
    held = {name: values.astype(np.float32) for name, values in weights.items()}
    return graph_model(nodes, held, {"f": [1, 8], "g": [3, 40]}, inputs=inputs, opset=13)


def given() -> dict[str, np.ndarray]:
    return {"x": rng().normal(size=(1, 2, 9, 9)).astype(np.float32), "i": np.array([1, 499, 7])}


@pytest.mark.parametrize("bits", [2, 3])
def test_weights_of_every_kind_are_packed_and_come_back(bits: int) -> None:
    model = layered()
    result, report = packed(model, f"pack:bits={bits}")
    assert report.metrics[f"stored as {bits}-bit trellis codes"] == 5
    assert op_counts(optimized_model(result)) == op_counts(optimized_model(model))
    back = Model.from_proto(result.to_proto())
    assert unpack(back) == report.changed
    with open_session(result) as before, open_session(back) as after:
        found, again = before.run(given()), after.run(given())
    assert all(np.array_equal(np.asarray(found[name]), np.asarray(again[name])) for name in found)


def test_layers_on_a_trellis_are_fitted_to_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.compensate.trellis._LLOYD_ROUNDS", 2)
    model = layered()
    samples = open_samples([given() for _ in range(3)], model.interface)
    result, report = packed(model, "pack:bits=4", samples, max_drop=1.0)
    kinds = [name for name in report.metrics if name.endswith("trellis codes")]
    assert sum(report.metrics[name] for name in kinds) >= 4
    alone, _ = packed(model, "pack:bits=4")

    def error(candidate: Model) -> float:
        with open_session(model) as first, open_session(candidate) as second:
            return float(np.square(np.asarray(first.run(given())["f"]) - np.asarray(second.run(given())["f"])).sum())

    assert error(result) < 0.5 * error(alone)


def test_small_weights_keep_levels_of_their_own() -> None:
    model = layered()
    units = {unit.name: unit for unit in find_units(model, constants(model.graph))}
    assert {name for name, unit in units.items() if not can_chain(unit)} == {"small"}


@pytest.mark.parametrize(
    ("rows", "inputs", "chained"), [(4095, 2048, True), (4096, 2048, False), (4093, 3, True), (4099, 3, False)]
)
def test_weights_that_take_too_long_keep_levels_of_their_own(rows: int, inputs: int, chained: bool) -> None:
    constant = gs.Constant("table", np.broadcast_to(np.float32(1), (rows, inputs)))
    assert can_chain(Unit(constant, (0, 1), 1, rows)) is chained


@pytest.mark.parametrize("unit", [1.0, 2.0**-40, 2.0**40])
def test_fitted_to_inputs_less_is_lost_than_on_levels(unit: float) -> None:
    random = rng()
    matrix = (random.normal(size=(1, 192, 40)) * random.uniform(0.2, 3, (1, 192, 1))).astype(np.float32)
    reads = random.normal(size=(300, 40)) @ random.normal(size=(40, 40))
    moment = (reads.T @ reads / 300)[None]
    model = graph_model(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)],
        {"w": matrix[0]},
        {"y": [1, 192]},
        inputs=(("x", onnx.TensorProto.FLOAT, [1, 40]),),
    )
    trellis = fit_levels(find_units(model, constants(model.graph)), 3, rng())
    single = np.float32(unit)

    def lost(decoded: np.ndarray) -> float:
        error = (matrix - decoded / single)[0].astype(np.float64)
        return float(np.einsum("rk,kl,rl->", error, damped(moment)[0], error))

    chained = chain(matrix * single, moment, trellis)
    assert lost(chained.decoded()) < 0.8 * lost(shrink(matrix * single, moment, 3).decoded())
    assert chained.scale.dtype == (np.float16 if unit == 1 else np.float32)


def test_rare_large_weights_have_levels_too() -> None:
    values = rng().standard_t(4, size=2**14)
    levels = best_levels(values, np.ones(1), 8)
    alone = np.mean((levels[nearest(levels, values)] - values) ** 2)
    grid = TrellisGrid(np.ones(960), fit_trellis(values, 3, rng()), 16)
    fitted = values[: 960 * 16].reshape(960, 16)
    grid.project_all(fitted)
    assert np.mean((fit_trellis(values, 3, rng()).decoded(grid.codes) - fitted) ** 2) < 0.6 * alone


def test_no_large_weight_is_cut_off() -> None:
    matrix = rng().normal(size=(1, 100, 40)).astype(np.float32)
    trellis = fit_trellis(matrix, 3, rng())
    matrix[0, 7, 3] = 100
    assert chain(matrix, None, trellis).decoded()[0, 7, 3] == pytest.approx(100, rel=0.1)
