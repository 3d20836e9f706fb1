"""16-bit floats: storage that folds away, graphs with islands of float, and what is left alone and why."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from graphopt.base import PassReport
from graphopt.context import Context
from graphopt.evaluate import Evaluator
from graphopt.ir.clean import clean
from graphopt.model import Model
from graphopt.observe import Observer
from graphopt.passes.half import Half
from graphopt.passes.half.numbers import misfit, range_misfit
from graphopt.passes.half.storage import _culprits
from graphopt.runtime.session import op_counts, optimized_model
from graphopt.samples import Samples, open_samples, random_samples
from graphopt.shapes import infer_shapes
from graphopt.targets import get_target
from tests.helpers import outputs_of, parse, random_feeds


def compressed(
    source: str | onnx.ModelProto,
    *,
    target: str = "cpu-avx2",
    samples: bool = True,
    drawn: Samples | None = None,
    **options: object,
) -> tuple[onnx.ModelProto, onnx.ModelProto, PassReport]:
    """Return the model before and after the pass, and its report."""
    proto = parse(source) if isinstance(source, str) else source
    model = Model.from_proto(proto)
    drawn = drawn or (random_samples(model.interface, count=4) if samples else None)
    context = Context(
        get_target(target),
        Evaluator(model, get_target(target), samples=drawn),
        drawn,
        observer=Observer(drawn) if drawn is not None else None,
    )
    infer_shapes(model)
    report = Half(min_bytes=0, **options).run(model, context)  # type: ignore[arg-type]
    clean(model.graph)
    result = model.to_proto()
    onnx.checker.check_model(result, full_check=True)
    return proto, result, report


def difference(before: onnx.ModelProto, after: onnx.ModelProto) -> float:
    """Return the largest difference of the outputs, in units of the largest output."""
    feeds = random_feeds(before, seed=3, sizes={"N": 3})
    wanted, found = outputs_of(before, feeds), outputs_of(after, feeds)
    assert {name: value.dtype for name, value in wanted.items()} == {name: item.dtype for name, item in found.items()}
    return max(float(np.abs(found[name] - value).max() / np.abs(value).max()) for name, value in wanted.items())


def types_of(proto: onnx.ModelProto, op: str) -> set[int]:
    """Return the element types of the outputs of all nodes of an operator."""
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    infos = {info.name: info.type.tensor_type.elem_type for info in (*inferred.value_info, *inferred.output)}
    return {infos[node.output[0]] for node in inferred.node if node.op_type == op}


FLOAT, FP16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16

NET = """
net (float[N, 4] x) => (float[N, 3] y)
<float[4, 4] w = {0.5, -1, 2, 0.25, 1, 1, -2, 3, 0.125, 0.5, 1, -1, 2, 2, 0.5, 1},
 float[4, 3] v = {1, 2, 3, 4, 5, 6, -1, -2, -3, 0.5, 0.25, 0.1}>
{
    a = MatMul (x, w)
    b = Relu (a)
    c = MatMul (b, v)
    y = Softmax <axis = 1> (c)
}
"""


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_stored_weights_are_cast_at_load(kind: str) -> None:
    before, after, report = compressed(NET, type=kind)
    assert report.changed == 2
    assert difference(before, after) < (2e-3 if kind == "fp16" else 2e-2)
    assert op_counts(optimized_model(after)) == op_counts(optimized_model(before))
    stored = {tensor.data_type for tensor in after.graph.initializer}
    assert stored == {FP16 if kind == "fp16" else onnx.TensorProto.BFLOAT16}


def test_storage_leaves_what_does_not_fit() -> None:
    text = """
    plain (float[2] x) => (float[2] y, float[2] shown)
    <float[2] large = {1e6, 1}, float[2] tiny = {1e-9, 2e-9}, float[2] shown = {1, 2}, float[2] good = {3, 4}>
    { a = Mul (x, large)  b = Add (a, tiny)  c = Add (b, shown)  y = Mul (c, good) }
    """
    _, after, report = compressed(text)
    reasons = {skip.where: skip.reason for skip in report.skipped}
    assert reasons["large"] == "its values leave the range of fp16"
    assert reasons["tiny"] == "its values are too small for fp16"
    assert reasons["shown"] == "it is a graph output"
    assert report.changed == 1
    assert "good_fp16" in {tensor.name for tensor in after.graph.initializer}


CANCELLING = """
cancelling (float[N, 8] x) => (float[N, 8] y)
<float[8, 8] first, float[8, 8] plus, float[8, 8] minus, float[8, 8] second, float[8, 8] last>
{
    a = MatMul (x, first)
    p = MatMul (a, plus)
    m = MatMul (a, minus)
    d = Sub (p, m)
    b = MatMul (d, second)
    y = MatMul (b, last)
}
"""


def test_weights_that_break_the_limit_stay_float() -> None:
    """The output is a small difference of large numbers: two weights are felt, three are not."""
    rng = np.random.default_rng(0)
    proto = parse(CANCELLING)
    values = {info.name: rng.normal(size=(8, 8)) for info in proto.graph.value_info}
    values["minus"] = values["plus"] + 1e-4 * rng.normal(size=(8, 8))
    del proto.graph.value_info[:]
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in values.items()
    )
    feeds = [{"x": rng.normal(size=(3, 8)).astype(np.float32)} for _ in range(4)]
    drawn = open_samples(feeds, Model.from_proto(proto).interface)
    _, _, report = compressed(proto, drawn=drawn)
    assert report.changed == 3
    assert {skip.where for skip in report.skipped} == {"plus", "minus"}


def test_where_each_half_holds_alone_the_second_one_stays() -> None:
    assert _culprits([0, 1, 2, 3], lambda chosen: len(chosen) < 3) == [2, 3]
    assert _culprits([0, 1, 2, 3], lambda chosen: 2 not in chosen) == [2]


def test_storage_needs_an_opset_for_bf16_and_keeps_other_types() -> None:
    old = parse('<ir_version: 7, opset_import: ["" : 12]>\n' + NET)
    _, _, report = compressed(old, type="bf16")
    assert report.changed == 0
    assert "needs opset 13" in report.skipped[0].reason
    half = "h (float16[2] x) => (float16[2] y) <float16[2] w = {1, 2}> { y = Mul (x, w) }"
    assert compressed(half)[2] == PassReport(0, (), {"weights in fp16": 0.0})


def test_a_shared_weight_is_stored_once_and_read_in_bodies() -> None:
    text = """
    shared (float[2] x, bool flag) => (float[2] y) <float[2] w = {1.5, 2}>
    {
        a = Mul (x, w)
        b = If (flag) <
            then_branch = first () => (float[2] p) { p = Add (a, w) },
            else_branch = other () => (float[2] q) { q = Sub (a, w) }
        >
        y = Mul (b, w)
    }
    """
    before, after, report = compressed(text)
    assert report.changed == 1
    assert len(after.graph.initializer) == 1
    for flag in (True, False):
        feeds = {"x": np.array([1, 2], np.float32), "flag": np.array(flag)}
        np.testing.assert_allclose(outputs_of(after, feeds)["y"], outputs_of(before, feeds)["y"], rtol=1e-3)


def test_a_second_run_changes_nothing() -> None:
    for options in ({}, {"target": "cuda"}):
        _, after, _ = compressed(NET, **options)  # type: ignore[arg-type]
        _, again, report = compressed(after, **options)  # type: ignore[arg-type]
        assert report.changed == 0
        assert op_counts(again) == op_counts(after)


def test_graph_computes_in_fp16_between_two_casts() -> None:
    before, after, report = compressed(NET, target="cuda")
    assert report.changed == 4
    assert types_of(after, "MatMul") == types_of(after, "Softmax") == {FP16}
    assert op_counts(after)["Cast"] == 2
    assert {tensor.data_type for tensor in after.graph.initializer} == {FP16}
    assert 0 < difference(before, after) < 5e-3
    reference = ReferenceEvaluator(after)
    feeds = random_feeds(before, seed=3, sizes={"N": 3})
    np.testing.assert_allclose(next(iter(reference.run(None, feeds))), outputs_of(before, feeds)["y"], atol=5e-3)


def test_what_overflows_is_an_island() -> None:
    text = """
    wide (float[N, 2] x) => (float[N, 2] y) <float[1] large = {3e4}, float[1] back = {1e-4}>
    { a = Mul (x, large)  b = Mul (a, a)  c = Sqrt (b)  y = Mul (c, back) }
    """
    before, after, report = compressed(text, target="cuda", samples=True)
    assert difference(before, after) < 5e-3
    reasons = " ".join(skip.reason for skip in report.skipped)
    assert "fp16 ends at 65504" in reasons
    assert report.changed < 4


def test_an_epsilon_that_would_become_zero_is_an_island() -> None:
    text = """
    norm (float[N, 4] x) => (float[N, 4] y) <float eps = {1e-12}>
    { z = Relu (x)  a = Add (z, eps)  b = Sqrt (a)  y = Tanh (b) }
    """
    before, after, report = compressed(text, target="cuda")
    assert [skip.reason for skip in report.skipped] == ["eps: its values are too small for fp16"]
    assert types_of(after, "Add") == {FLOAT}
    assert types_of(after, "Sqrt") == {FP16}
    assert difference(before, after) < 5e-3


def test_scales_of_resize_stay_float() -> None:
    text = """
    up (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) <float[4] scales = {1, 1, 2, 2}>
    { a = Sigmoid (x)  y = Resize <mode = "linear"> (a, , scales) }
    """
    before, after, report = compressed(text, target="cuda")
    assert report.changed == 2
    assert {tensor.name: tensor.data_type for tensor in after.graph.initializer} == {"scales": FLOAT}
    assert difference(before, after) < 5e-3


def test_bodies_counting_and_foreign_operators_stay_float() -> None:
    text = """
    mixed (float[N, 4] x, bool flag) => (float[N, 4] y, float[N, 2] t)
    <int64[1] two = {2}, int64 axis = {1}>
    {
        a = Tanh (x)
        b = If (flag) <
            then_branch = first () => (float[N, 4] p) { p = Neg (a) },
            else_branch = other () => (float[N, 4] q) { q = Identity (a) }
        >
        y = CumSum (b, axis)
        t, i = TopK (a, two)
    }
    """
    before, after, report = compressed(text, target="cuda")
    assert {skip.reason.split(",")[0] for skip in report.skipped} == {
        "what is inside a body stays in float",
        "CumSum counts or orders",
        "TopK counts or orders",
    }
    assert report.changed == 1
    feeds = {"x": np.ones((2, 4), np.float32), "flag": np.array(True)}
    np.testing.assert_allclose(outputs_of(after, feeds)["y"], outputs_of(before, feeds)["y"], rtol=1e-3)


def test_moves_alone_are_not_worth_casts() -> None:
    text = "m (float[2, 3] x) => (float[3, 2] y) { y = Transpose (x) }"
    _, _, report = compressed(text, target="cuda")
    assert report.changed == 0


def test_scalars_are_not_stored_in_16_bits() -> None:
    source = """agraph (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}, float ratio = {0.5}>
    { a = Mul(x, w) y = Dropout(a, ratio) }"""
    _, result, report = compressed(source)
    assert report.changed == 1
    assert [item.name for item in result.graph.initializer if item.data_type == onnx.TensorProto.FLOAT] == ["ratio"]


def test_a_weight_of_graph_and_body_is_stored_once() -> None:
    values = np.random.default_rng(0).standard_normal((24, 24)).astype(np.float32)
    proto = parse("""agraph (float[N, 24] x, bool c) => (float[N, 24] y)
    { h = MatMul(x, w) r = Relu(h)
      y = If(c) <then_branch = g () => (float[N, 24] p) { p = MatMul(r, w) },
                 else_branch = k () => (float[N, 24] q) { q = Neg(r) }> }""")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(values, "w"))
    before, result, _ = compressed(proto, compute="graph")
    assert [item.data_type for item in result.graph.initializer if len(item.dims) == 2] == [onnx.TensorProto.FLOAT16]
    assert difference(before, result) < 0.01


def test_a_tensor_that_is_output_and_read_is_cast_once() -> None:
    text = "o (float[N] x) => (float[N] a, float[N] y) { a = Tanh (x)  b = Sigmoid (a)  y = Mul (a, b) }"
    before, after, report = compressed(text, target="cuda")
    assert report.changed == 3
    assert op_counts(after)["Cast"] == 3
    assert difference(before, after) < 5e-3


def test_graph_needs_samples_and_fp16() -> None:
    _, _, report = compressed(NET, compute="graph", samples=False)
    assert report.changed == 0
    assert "measured on samples" in report.skipped[0].reason
    with pytest.raises(ValueError, match="needs type=fp16"):
        Half(type="bf16", compute="graph")
    with pytest.raises(ValueError, match="0 or more"):
        Half(min_bytes=-1)


def test_what_fits() -> None:
    assert misfit(np.array([1.0, 1e-9], np.float32), "fp16") == ""  # next to the 1, it does not matter
    assert misfit(np.array([np.nan, np.inf, 1], np.float32), "fp16") == ""
    assert misfit(np.zeros(0, np.float32), "fp16") == ""
    assert "range" in misfit(np.array([7e4], np.float32), "fp16")
    assert misfit(np.array([7e4], np.float32), "bf16") == ""
    assert np.dtype(ml_dtypes.bfloat16).itemsize == 2
    assert range_misfit(0.0, 0.0) == range_misfit(-100, 3e4) == ""
    assert "ends at 65504" in range_misfit(-1e5, 0)
    assert "ends at 65504" in range_misfit(0, float("nan"))
    assert "loses digits" in range_misfit(-1e-6, 1e-6)
