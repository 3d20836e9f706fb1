"""Magnitude pruning: exact counts, the smallest first, and nothing that somebody else reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphopt.base import PassReport, Skip
from graphopt.context import Context
from graphopt.errors import SpecError
from graphopt.evaluate import Evaluator
from graphopt.ir.graph import constants, walk_nodes
from graphopt.model import Model
from graphopt.passes.prune import Prune
from graphopt.passes.prune.criteria import magnitude
from graphopt.passes.prune.selection import Cut, find_cut, score_keys
from graphopt.spec import format_pass, parse_pass
from graphopt.targets import get_target
from tests.helpers import outputs_of, parse


def run(model: Model, **options: Any) -> PassReport:
    target = get_target("cpu")
    asked: dict[str, Any] = {"ratio": 0.5, "scope": "layer"} | options
    return Prune(**asked).run(model, Context(target, Evaluator(model, target, samples=None)))


def model_of(text: str, **weights: np.ndarray) -> Model:
    """Return a model from text with these initializers added."""
    proto = parse(text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return Model.from_proto(proto)


def values(model: Model, name: str) -> np.ndarray:
    return next(constant.values for constant in constants(model.graph) if constant.name == name)


def random(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


MATMUL = "m (float[N,8] x) => (float[N,10] y) { y = MatMul(x, w) }"


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.29, 0.3, 0.5, 0.999])
def test_exactly_the_smallest_become_zero(ratio: float) -> None:
    weight = random(10, 10)
    model = model_of("m (float[N,10] x) => (float[N,10] y) { y = MatMul(x, w) }", w=weight)
    report = run(model, ratio=ratio)
    count = {0.0: 0, 0.01: 1, 0.29: 29, 0.3: 30, 0.5: 50, 0.999: 99}[ratio]
    pruned = values(model, "w")
    assert np.count_nonzero(pruned == 0) == count
    assert np.array_equal(pruned[pruned != 0], weight[pruned != 0])
    if count > 0:
        assert np.abs(weight[pruned == 0]).max() < np.abs(pruned[pruned != 0]).min()
    assert report.changed == (1 if count else 0)
    assert report.metrics["zeros"] == count
    assert report.metrics["sparsity"] == count / 100


def test_a_second_run_changes_nothing() -> None:
    for scope in ("layer", "global"):
        model = model_of(MATMUL, w=random(8, 10))
        assert run(model, scope=scope).changed == 1
        before = model.fingerprint()
        report = run(model, scope=scope)
        assert (report.changed, report.notes) == (0, ())
        assert model.fingerprint() == before
        assert report.metrics["zeros_before"] == report.metrics["zeros"] == 40


def test_zeros_that_are_there_count() -> None:
    weight = random(8, 10)
    weight[:3] = [[0.0], [-0.0], [0.0]]
    model = model_of(MATMUL, w=weight)
    report = run(model, ratio=0.5)
    assert (report.metrics["zeros_before"], report.metrics["zeros"]) == (30, 40)
    assert np.count_nonzero(values(model, "w")) == 40
    sparse = model_of(MATMUL, w=weight)
    assert run(sparse, ratio=0.25).changed == 0


def test_among_equals_the_first_go() -> None:
    model = model_of(MATMUL, w=np.where(np.arange(80).reshape(8, 10) % 2, -1, 1).astype(np.float32))
    run(model, ratio=0.3)
    assert np.flatnonzero(values(model, "w") == 0).tolist() == list(range(24))


def test_globally_weights_of_all_layers_compete() -> None:
    text = "m (float[N,8] x) => (float[N,8] y) { h = MatMul(x, small)  y = MatMul(h, large) }"
    small, large = random(8, 8) * 0.01, random(8, 8, seed=1)
    model = model_of(text, small=small, large=large)
    report = run(model, ratio=0.5, scope="global")
    everything = np.sort(np.abs(np.concatenate([small.ravel(), large.ravel()])))
    kept = [values(model, name) for name in ("small", "large")]
    assert sum(np.count_nonzero(array) for array in kept) == 64
    assert np.count_nonzero(kept[0]) < 10
    assert min(np.abs(array[array != 0]).min() for array in kept if array.any()) == everything[64]
    assert report.changed == 2
    layered = model_of(text, small=small, large=large)
    run(layered, ratio=0.5)
    assert [np.count_nonzero(values(layered, name)) for name in ("small", "large")] == [32, 32]


def test_globally_ties_are_shared_out_in_graph_order() -> None:
    text = "m (float[N,4] x) => (float[N,4] y) { h = MatMul(x, a)  y = MatMul(h, b) }"
    model = model_of(text, a=np.ones((4, 4), np.float32), b=-np.ones((4, 4), np.float32))
    run(model, ratio=0.625, scope="global")
    assert [int(np.count_nonzero(values(model, name))) for name in "ab"] == [0, 12]


def test_globally_types_may_be_mixed() -> None:
    text = """m (float[N,8] x) => (double[N,8] y) {
        h = MatMul(x, single)  d = Cast<to = 11>(h)  y = MatMul(d, double)
    }"""
    single, double = random(8, 8), random(8, 8, seed=1, dtype=np.float64)
    model = model_of(text, single=single, double=double)
    run(model, ratio=0.5, scope="global")
    limit = np.sort(np.abs(np.concatenate([single.ravel().astype(np.float64), double.ravel()])))[64]
    for name, before in (("single", single), ("double", double)):
        assert np.array_equal(values(model, name), np.where(np.abs(before) < limit, 0, before))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_every_float_type_keeps_its_type(dtype: Any) -> None:
    weight = np.arange(1, 81).reshape(8, 10).astype(dtype)
    proto = parse(MATMUL)
    proto.graph.input[0].type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    proto.graph.output[0].type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model = Model.from_proto(proto)
    run(model, ratio=0.25)
    pruned = values(model, "w")
    assert pruned.dtype == weight.dtype
    assert np.array_equal(pruned.ravel()[20:], weight.ravel()[20:])
    assert not pruned.ravel()[:20].any()


def test_what_is_no_number_is_kept() -> None:
    weight = random(8, 10)
    weight[0, :3] = [np.nan, np.inf, -np.inf]
    model = model_of(MATMUL, w=weight)
    run(model, ratio=0.9)
    assert np.array_equal(values(model, "w")[0, :3], weight[0, :3], equal_nan=True)


@pytest.mark.parametrize(
    ("text", "pruned"),
    [
        ("m (float[1,4,8,8] x) => (float[1,4,6,6] y) { y = Conv(x, w, b) }", {"w": (4, 4, 3, 3), "b": (4,)}),
        ("m (float[1,4,8,8] x) => (float[1,4,10,10] y) { y = ConvTranspose(x, w, b) }", {"w": (4, 4, 3, 3), "b": (4,)}),
        ("m (float[2,8] x) => (float[2,4] y) { y = Gemm(x, w, b) }", {"w": (8, 4), "b": (4,)}),
        ("m (float[8,2] x) => (float[4,2] y) { y = MatMul(w, x) }", {"w": (4, 8)}),
        (
            "m (float[3,1,8] x) => (float[3,1,1,6] y) { y = LSTM<hidden_size=6>(x, w, r, b) }",
            {"w": (1, 24, 8), "r": (1, 24, 6), "b": (1, 48)},
        ),
        (
            "m (float[3,1,8] x) => (float[3,1,1,6] y) { y = GRU<hidden_size=6>(x, w, r, b) }",
            {"w": (1, 18, 8), "r": (1, 18, 6), "b": (1, 36)},
        ),
    ],
)
def test_weights_are_pruned_and_biases_are_not(text: str, pruned: dict[str, tuple[int, ...]]) -> None:
    arrays = {name: random(*shape, seed=index) for index, (name, shape) in enumerate(pruned.items())}
    model = model_of(text, **arrays)
    report = run(model)
    assert report.skipped == ()
    assert report.changed == len(set(arrays) & {"w", "r"})
    for name, before in arrays.items():
        zeros = 0 if name == "b" else before.size // 2
        assert np.count_nonzero(values(model, name) == 0) == zeros


def test_a_shared_weight_is_pruned_once() -> None:
    text = "m (float[N,8] x) => (float[N,8] y) { h = MatMul(x, w)  y = MatMul(h, w) }"
    model = model_of(text, w=random(8, 8))
    report = run(model)
    assert (report.changed, report.metrics["weights"], report.metrics["zeros"]) == (1, 64, 32)


def test_weights_behind_moves_and_in_constant_nodes_are_found() -> None:
    text = """m (float[N,4] x) => (float[N,2] y) {
        c = Constant<value = double[2,4] {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}>()
        f = Cast<to = 1>(c)  t = Transpose<perm = [1, 0]>(f)  y = MatMul(x, t)
    }"""
    model = model_of(text)
    report = run(model)
    assert (report.changed, report.skipped) == (1, ())
    feeds = {"x": np.eye(4, dtype=np.float32)}
    assert outputs_of(model, feeds)["y"].T.tolist() == [[0, 0, 0, 0], [5, 6, 7, 8]]


def test_weights_in_bodies_are_found() -> None:
    text = """m (bool c, float[2,4] x) => (float[2,4] y) {
        y = If (c) <
            then_branch = t () => (float[2,4] a) { a = MatMul(x, w) },
            else_branch = e () => (float[2,4] b) { b = MatMul(x, w) }
        >
    }"""
    model = model_of(text, w=random(4, 4))
    assert run(model).changed == 1
    assert np.count_nonzero(values(model, "w")) == 8


@pytest.mark.parametrize(
    ("text", "where", "reason"),
    [
        (
            "m (float[N,8] x) => (float[N,8] y) { h = MatMul(x, w)  y = Add(h, w) }",
            "w",
            "Add 'y' reads it as well, for which a zero may mean something else",
        ),
        (
            "m (float[N,8] x) => (float[N,8] y, float[8,8] w) { y = MatMul(x, w) }",
            "w",
            "it is an output as well, which would change",
        ),
        (
            "m (float[N,8] x) => (float[N,8] y, float[8,8] t) { t = Transpose(w)  y = MatMul(x, t) }",
            "w",
            "it is an output as well, which would change",
        ),
        (
            "m (int64[N] i) => (float[N,8] y) { e = Gather(w, i)  t = Transpose(w)  y = MatMul(e, t) }",
            "w",
            "it is an embedding as well (Gather 'e'); say embeddings=true to prune it",
        ),
        (
            "m (float[N,8] x, float[8,8] w) => (float[N,8] y) { y = MatMul(x, w) }",
            "w",
            "a caller may override it: it is a model input as well; take it off the inputs to prune it",
        ),
    ],
)
def test_what_is_left_alone_comes_with_its_reason(text: str, where: str, reason: str) -> None:
    model = model_of(text, w=random(8, 8))
    before = model.fingerprint()
    report = run(model)
    assert report.skipped == (Skip(where, reason),)
    assert report.changed == 0
    assert model.fingerprint() == before


def test_integer_weights_are_left_alone() -> None:
    model = model_of("m (int32[N,8] x) => (int32[N,8] y) { y = MatMul(x, w) }", w=np.ones((8, 8), np.int32))
    assert run(model).skipped == (Skip("w", "its type is int32; only floating-point weights are pruned"),)


def test_quantized_weights_are_left_alone() -> None:
    text = """m (float[N,8] x) => (float[N,8] y) <float s = {0.5}> {
        h = DequantizeLinear(w, s)  y = MatMul(x, h)
    }"""
    model = model_of(text, w=np.ones((8, 8), np.int8))
    assert run(model).skipped == (Skip("w", "it is quantized already (int8); prune before quant"),)


def test_a_sparse_weight_is_left_alone() -> None:
    proto = parse(MATMUL)
    sparse = proto.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.array([1, 2], np.float32), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([3, 9]), "indices"))
    sparse.dims.extend([8, 10])
    assert run(Model.from_proto(proto)).skipped == (Skip("w", "it is stored as a sparse tensor already"),)


def test_an_embedding_is_pruned_when_asked() -> None:
    model = model_of("m (int64[N] i) => (float[N,8] y) { y = Gather(w, i) }", w=random(10, 8))
    assert run(model).changed == 0
    assert run(model, embeddings=True).changed == 1
    assert np.count_nonzero(values(model, "w")) == 40


def test_a_model_without_weights_says_so() -> None:
    report = run(model_of("m (float[N] x) => (float[N] y) { y = Relu(x) }"))
    assert report.skipped[0].where == "model"
    assert report.skipped[0].reason.startswith("it has no constant weights")


def test_weights_that_other_models_share_stay_as_they_are(tmp_path: Path) -> None:
    model = model_of(MATMUL, w=random(8, 10))
    other = model.copy()
    before = other.fingerprint()
    run(model)
    assert other.fingerprint() == before
    assert np.count_nonzero(values(other, "w")) == 80


def test_the_same_model_gives_the_same_bytes() -> None:
    found = set()
    for _ in range(2):
        model = model_of(MATMUL, w=random(8, 10))
        run(model)
        found.add(model.to_proto().SerializeToString(deterministic=True))
    assert len(found) == 1


def test_the_saved_model_is_the_pruned_one(tmp_path: Path) -> None:
    model = model_of("""m (float[N,4] x) => (float[N,1] y) {
        w = Constant<value = float[4,1] {1.0, 2.0, 3.0, 4.0}>()  y = MatMul(x, w)
    }""")
    run(model)
    saved = onnx.load(model.save(tmp_path / "pruned.onnx").path)
    held = next(node for node in saved.graph.node if node.op_type == "Constant").attribute[0].t
    assert numpy_helper.to_array(held).ravel().tolist() == [0, 0, 3, 4]
    assert all(node.op != "Constant" or node.attrs["value"].values.any() for node in walk_nodes(model.graph))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prune:ratio=1", r"ratio must be in \[0, 1\) or auto, not 1.0"),
        ("prune:ratio=-0.1", r"ratio must be in \[0, 1\) or auto, not -0.1"),
        ("prune:ratio=nan", "'nan' is not allowed; use number"),
        ("prune:scope=model", "'model' is not allowed; use adaptive|layer|global"),
        ("prune:pattern=4of2", "must keep at least 1 and fewer than all of at most 64 inputs"),
        ("prune:pattern=dense", "pattern must be unstructured, NofM such as 2of4, block or channels, not 'dense'"),
        ("prune:pattern=block:block=0x4", "block must be outputs times inputs, such as 4x4, not '0x4'"),
        ("prune:of=latency", "of=latency needs pattern=channels"),
        ("prune:criterion=variance", "criterion=variance compares groups of weights"),
        (
            "prune:pattern=2of4:threshold=0.1",
            "threshold must be at least 0 and goes with pattern=unstructured or block",
        ),
    ],
)
def test_wrong_options_are_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_pass(text)


def test_wrong_options_are_refused_in_python() -> None:
    with pytest.raises(ValueError, match="scope must be adaptive\\|layer\\|global, not 'model'"):
        Prune(scope="model")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pattern must be unstructured, NofM"):
        Prune(pattern="2/4")


def test_the_text_of_the_options_reads_back() -> None:
    item = Prune(ratio=0.3, scope="global", embeddings=True)
    assert format_pass(item) == "prune:ratio=0.3:scope=global:embeddings=true"
    assert parse_pass(format_pass(item)) == item


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=60),
    st.integers(1, 8),
    st.floats(0, 1),
    st.sampled_from([np.float32, np.float64]),
)
def test_the_cut_is_where_sorting_puts_it(scores: list[float], step: int, where: float, dtype: Any) -> None:
    array = np.abs(np.array(scores, dtype))
    count = 1 + int(where * (len(scores) - 1))
    chunks = [array[start : start + step] for start in range(0, len(scores), step)]
    ordered = np.sort(score_keys(array))
    key = int(ordered[count - 1])
    assert find_cut(lambda: chunks, count, dtype) == Cut(key, count - int(np.searchsorted(ordered, key)))


def test_no_more_can_be_selected_than_there_are() -> None:
    with pytest.raises(ValueError, match="cannot select 3 of 2 scores"):
        find_cut(lambda: [np.array([1, 2], np.float32)], 3)


def test_half_precision_is_scored_exactly() -> None:
    tiny = np.array([6e-8, -6e-8, 1], np.float16)
    assert magnitude(tiny).dtype == np.float32
    assert np.array_equal(magnitude(tiny), np.abs(tiny.astype(np.float64)))
    assert magnitude(np.array([-1e-300])).tolist() == [1e-300]
