"""Quantization: pure functions against their definitions, and the pass on models where the right answer is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.api import compress
from graphopt.errors import ModelError, UsageError
from graphopt.evaluate import Evaluator
from graphopt.ir.graph import constants, walk_nodes
from graphopt.model import Model
from graphopt.observe import Observer
from graphopt.opsets import PER_CHANNEL, operative_part, raised
from graphopt.passes.quant import run as quant_run
from graphopt.passes.quant.nodes.sites import find_sites
from graphopt.passes.quant.nodes.units import find_units
from graphopt.passes.quant.numbers.calibrate import calibrate
from graphopt.passes.quant.numbers.fit import fit_weights
from graphopt.passes.quant.numbers.ranges import affine, choose_range, squared_errors
from graphopt.passes.quant.numbers.store import WeightStore
from graphopt.passes.quant.numbers.weights import (
    least_scale,
    quantize_bias,
    quantize_rows,
    quantize_tensor,
    quantize_weight,
    saturates,
    to_rows,
)
from graphopt.passes.quant.search.plans import IntegerOptions, make_plans
from graphopt.passes.quant.search.workshop import Workshop
from graphopt.passes.quant.storage import others
from graphopt.runtime.session import op_counts, open_session, optimized_model
from graphopt.runtime.timing import Ratio
from graphopt.samples import open_samples
from graphopt.shapes import infer_shapes
from graphopt.targets import get_target

RNG = np.random.default_rng(11)


class TestWeights:
    @pytest.mark.parametrize("axis", [0, 1])
    def test_error_is_half_a_step_at_most(self, axis: int) -> None:
        weight = RNG.normal(size=(16, 24)).astype(np.float32) * np.geomspace(0.01, 10, 16)[:, None].astype(np.float32)
        found = quantize_weight(weight, axis)
        assert found.values.dtype == np.int8
        assert found.scale.shape == (weight.shape[axis],)
        steps = found.scale.reshape([-1, 1] if axis == 0 else [1, -1])
        inside = np.abs(weight) <= 127 * steps
        assert (
            np.abs(found.restored() - weight)[inside] <= 0.5001 * np.broadcast_to(steps, weight.shape)[inside]
        ).all()

    def test_scales_are_of_each_channel(self) -> None:
        weight = np.stack([np.linspace(-1, 1, 255), np.linspace(-100, 100, 255)]).astype(np.float32)
        scale = quantize_weight(weight, 0).scale
        assert scale[1] / scale[0] == pytest.approx(100, rel=1e-4)

    def test_scale_beats_the_largest_magnitude_on_outliers(self) -> None:
        rows = RNG.normal(size=(4, 4096)).astype(np.float32)
        rows[:, 0] = 40
        codes, scales = quantize_rows(rows)
        best = np.square(codes * scales[:, None] - rows).sum()
        plain = np.abs(rows).max(axis=1, keepdims=True) / 127
        assert best < np.square(np.rint(rows / plain) * plain - rows).sum()

    def test_pairs_do_not_saturate(self) -> None:
        rows = np.full((1, 8), 1.0, np.float32)
        codes, _ = quantize_rows(rows)
        assert saturates(codes, "even"), "the test needs weights that would"
        bounded, scales = quantize_rows(rows, "even")
        assert not saturates(bounded, "even")
        np.testing.assert_allclose(bounded * scales[:, None], rows, rtol=0.02)

    def test_zeros_stay_zeros(self) -> None:
        found = quantize_weight(np.zeros((3, 5), np.float32), 0)
        assert not found.values.any()
        assert (found.scale > 0).all()
        assert quantize_tensor(np.zeros((2, 2), np.float32)).restored().sum() == 0

    def test_bias_is_in_units_of_both_scales(self) -> None:
        scale = np.array([0.5, 0.25])
        np.testing.assert_array_equal(quantize_bias(np.array([1.0, -1.0], np.float32), scale), [2, -4])

    def test_bias_that_does_not_fit_is_told_what_it_takes(self) -> None:
        bias, input_scale = np.array([1e6], np.float32), 1e-4
        with pytest.raises(ValueError, match="does not fit into 32 bits"):
            quantize_bias(bias, np.array([input_scale * 1e-4]))
        quantize_bias(bias, input_scale * least_scale(bias, input_scale))


class TestRanges:
    def test_zero_is_exact_and_the_range_is_covered(self) -> None:
        for low, high in ((-1.0, 3.0), (2.0, 5.0), (-7.0, -1.0), (0.0, 0.1)):
            found = affine(low, high)
            assert 0 <= found.zero_point <= 255
            assert found.round_trip(np.zeros(1, np.float32))[0] == 0
            ends = np.array([min(low, 0), max(high, 0)], np.float32)
            np.testing.assert_allclose(found.round_trip(ends), ends, atol=float(found.scale))

    def test_a_range_that_is_not_finite_is_refused(self) -> None:
        with pytest.raises(ValueError, match="must be finite"):
            affine(0.0, np.inf)

    @pytest.mark.parametrize("method", ["percentile", "entropy"])
    def test_an_outlier_is_clipped(self, method: Any) -> None:
        values = np.append(RNG.normal(size=200_000), 500.0)
        counts, edges = np.histogram(values, 2048)
        low, high = choose_range(method, float(values.min()), 500.0, counts, edges)
        assert high < 250
        assert low < -2
        assert choose_range("minmax", float(values.min()), 500.0, counts, edges)[1] == 500.0

    def test_least_squares_errs_no_more_than_the_whole_range(self) -> None:
        values = RNG.standard_cauchy(size=100_000)
        counts, edges = np.histogram(values, 2048)
        whole = (float(values.min()), float(values.max()))
        found = choose_range("mse", *whole, counts, edges)
        lows, highs = np.array([found, whole]).T
        ours, theirs = squared_errors(lows, highs, counts, edges)
        assert ours <= theirs

    def test_errors_of_many_ranges_are_those_of_each(self) -> None:
        counts, edges = np.histogram(RNG.standard_cauchy(size=5_000) + 1.0, 301)
        centers, lows, highs = (edges[1:] + edges[:-1]) / 2, np.array([-9.0, -0.5, 0.0]), np.array([90.0, 3.0, 1e4])
        for low, high, found in zip(lows, highs, squared_errors(lows, highs, counts, edges), strict=True):
            outside = np.maximum(np.maximum(low - centers, centers - high), 0.0)
            zero = (edges[:-1] <= 0) & (edges[1:] > 0)
            noise = np.where(zero, 0.0, ((high - low) / 255) ** 2 / 12)
            wanted = np.sum(counts * np.where(outside > 0, outside**2, noise)) / counts.sum()
            assert found == pytest.approx(wanted, rel=1e-9)


CONV = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 16, 24, 24] x) => (float[N, 32] y)
<float[32, 16, 3, 3] w, float[32] b, float[32, 32, 3, 3] v, float[32] c>
{
  h = Conv <pads = [1, 1, 1, 1]> (x, w, b)
  r = Relu(h)
  s = Conv <pads = [1, 1, 1, 1]> (r, v, c)
  t = Relu(s)
  p = GlobalAveragePool(t)
  y = Flatten(p)
}
"""
MATRIX = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 512] x) => (float[N, 256] y)
<float[512, 256] w>
{ y = MatMul(x, w) }
"""


def build(text: str, **weights: np.ndarray) -> Model:
    """Return the model with values for the weights that the text only declares, random where none are given."""
    proto = onnx.parser.parse_model(text)
    for info in proto.graph.value_info:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        values = weights.get(info.name, RNG.normal(size=shape) / np.sqrt(np.prod(shape[1:])))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), info.name))
    del proto.graph.value_info[:]
    return Model.from_proto(proto)


def feeds(shape: tuple[int, ...], count: int = 8) -> list[Mapping[str, np.ndarray]]:
    return [{"x": RNG.normal(size=shape).astype(np.float32)} for _ in range(count)]


def quantize(model: Model, spec: str, data: Any = None, **options: Any) -> Any:
    return compress(model, spec, data=data, benchmark=False, **options)


def ops(model: Model) -> set[str]:
    return {node.op for node in walk_nodes(model.graph)}


def test_static_convolutions_become_integer_kernels() -> None:
    data = feeds((1, 16, 24, 24))
    result = quantize(build(CONV), "quant:mode=static", data, max_drop=0.05)
    assert result.report.steps[-1].outcome == "accepted", result.report.steps[-1].reason
    counts = op_counts(optimized_model(result.model))
    assert counts["QLinearConv"] + counts["com.microsoft:QLinearConv"] == 2  # the latter in channels-last layout
    assert counts.get("Conv", 0) == 0
    assert result.report.drop.value < 0.01


def test_bias_scale_is_the_product_of_input_and_weight_scale() -> None:
    model = quantize(build(CONV), "quant:mode=static", feeds((1, 16, 24, 24)), max_drop=0.05).model
    convolutions = [node for node in model.graph.nodes if node.op == "Conv"]
    assert convolutions
    for node in convolutions:
        data, weight, bias = (tensor.inputs[0] for tensor in node.inputs)
        assert (data.op, weight.op, bias.op) == ("DequantizeLinear",) * 3
        assert bias.inputs[0].dtype == np.int32
        product = data.inputs[1].values * weight.inputs[1].values
        np.testing.assert_allclose(bias.inputs[1].values, product, rtol=1e-6)


def test_the_same_answers_with_optimizations_off() -> None:
    data = feeds((1, 16, 24, 24), 4)
    model = quantize(build(CONV), "quant:mode=static", data, max_drop=0.05).model
    with open_session(model) as fused, open_session(model, optimize=False) as plain:
        for item in data:
            one, other = fused.run(item)["y"], plain.run(item)["y"]
            np.testing.assert_allclose(one, other, atol=0.02 * np.abs(other).max())


def test_without_samples_matrices_are_dynamic() -> None:
    result = quantize(build(MATRIX), "quant")
    assert result.report.steps[-1].outcome == "accepted"
    assert "MatMulInteger" in ops(result.model)
    notes = " ".join(result.report.steps[-1].report.notes)
    assert "--data" in notes
    (x,) = feeds((4, 512), 1)
    with open_session(build_like(result.model)) as session:
        assert np.isfinite(session.run(x)["y"]).all()


def build_like(model: Model) -> Model:
    return Model.from_proto(model.to_proto())


def test_weights_are_stored_in_a_quarter_of_the_bytes() -> None:
    result = quantize(build(MATRIX), "quant")
    assert result.report.after.nbytes < 0.27 * result.report.before.nbytes
    assert {np.dtype(item.dtype) for item in constants(result.model.graph) if item.values.size > 1000} == {
        np.dtype(np.int8)
    }


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_left_alone(value: float) -> None:
    weight = RNG.normal(size=(512, 256))
    weight[3, 4] = value
    step = quantize(build(MATRIX, w=weight), "quant").report.steps[-1]
    assert step.outcome == "unchanged"
    assert any("NaN or infinities" in skip.reason for skip in step.report.skipped)


def test_cuda_has_no_integer_kernels() -> None:
    step = quantize(build(MATRIX), "quant", target="cuda").report.steps[-1]
    assert step.outcome == "unchanged"
    assert "cuda has no int8 kernels" in " ".join(step.report.notes)


def test_static_without_samples_says_what_is_missing() -> None:
    step = quantize(build(MATRIX), "quant:mode=static").report.steps[-1]
    assert step.outcome == "unchanged"
    assert "needs samples (--data)" in " ".join(step.report.notes)


def test_excluded_nodes_stay_float() -> None:
    step = quantize(build(MATRIX), "quant:exclude=MatMul").report.steps[-1]
    assert step.outcome == "unchanged"
    assert [(skip.where, skip.reason) for skip in step.report.skipped] == [("y", "excluded by option")]


@pytest.mark.parametrize("option", ["bits=4", "block=32", "symmetric=false", "form=load", "mode=weights:ranges=minmax"])
def test_options_of_another_mode_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match=f"{option.split('=')[-2].split(':')[-1]}: an option of"):
        quantize(build(MATRIX), f"quant:{option}")


def test_what_would_make_the_file_larger_is_not_offered() -> None:
    small = MATRIX.replace("512", "4").replace("256", "3")
    model = build(small.replace("17", "11"))
    step = quantize(model, "quant", [{"x": RNG.normal(size=(2, 4)).astype(np.float32)}]).report.steps[-1]
    assert step.outcome == "unchanged"
    assert len(step.report.notes) == 1, "nothing came of the conversion to another opset: no word about it"
    assert "the file would grow" in step.report.notes[0]


@pytest.mark.parametrize(
    ("nodes", "why"), [("y = Unheard(x)", "Unheard"), ("y = Scan(x, x)", "Unsupported conversion to opset 9")]
)
def test_a_conversion_that_fails_is_told_in_one_clean_line(nodes: str, why: str) -> None:
    model = build(f'<ir_version: 4, opset_import: ["" : 8]> g (float[1, 4] x) => (float[1, 4] y) {{ {nodes} }}')
    same, note = raised(model, PER_CHANNEL, "its integer operators")
    assert same is model
    assert note.startswith("opset 8 was kept: the converter failed (")
    assert why in note
    assert "/" not in note
    assert "%" not in note


def test_a_version_that_the_converter_does_not_take_is_told_without_its_source() -> None:
    said = "/project/onnx/version_converter/convert.h:96: assertInVersionRange: Assertion `version >= first` failed: "
    error = RuntimeError(f"{said}Warning: invalid version (must be between 1 and 26)")
    assert operative_part(error) == "invalid version (must be between 1 and 26)"


def test_a_weight_that_two_layers_share_is_stored_once() -> None:
    text = MATRIX.replace("[512, 256]", "[512, 512]").replace("256", "512").replace("y = MatMul(x, w)",
           "h = MatMul(x, w) r = Relu(h) y = MatMul(r, w)")  # fmt: skip
    result = quantize(build(text), "quant:mode=static", feeds((4, 512)), max_drop=0.05)
    assert result.report.steps[-1].report.changed == 2
    assert [item.values.shape for item in constants(result.model.graph) if item.values.size > 1000] == [(512, 512)]


def test_a_quantized_model_is_left_as_it_is() -> None:
    once = quantize(build(CONV), "quant:mode=static", feeds((1, 16, 24, 24)), max_drop=0.05).model
    again = quantize(once, "quant:mode=static", feeds((1, 16, 24, 24)), max_drop=0.05).report.steps[-1]
    assert again.outcome == "unchanged"
    assert any("quantized already" in skip.reason for skip in again.report.skipped)


def test_the_limit_decides_how_much_is_quantized() -> None:
    data = feeds((1, 16, 24, 24))
    loose = quantize(build(CONV), "quant:mode=static", data, max_drop=0.05)
    tight = quantize(build(CONV), "quant:mode=static", data, max_drop=1e-9)
    assert loose.report.steps[-1].outcome == "accepted"
    assert tight.report.steps[-1].outcome != "accepted"
    assert tight.report.drop.value == 0


UP = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 16, 12, 12] x) => (float[N, 16, 24, 24] y)
<float[32, 16, 3, 3] w, float[32, 16, 2, 2] v>
{
  h = Conv <pads = [1, 1, 1, 1]> (x, w)
  y = ConvTranspose <strides = [2, 2]> (h, v)
}
"""


@pytest.mark.parametrize(("spec", "stored"), [("quant", True), ("quant:mode=static", False)])
def test_weights_that_stay_float_are_stored_in_8_bits(spec: str, stored: bool) -> None:
    """One of two large weights has an integer kernel. Who asks for a form gets that form and nothing else."""
    step = quantize(build(UP), spec, feeds((1, 16, 12, 12))).report.steps[-1]
    assert step.outcome == "accepted"
    assert any("stored in 8 bits, decoded at load: 1" in note for note in step.report.notes) == stored


def test_integers_are_kept_where_the_other_weights_cannot_be_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    def store(*_: Any, **__: Any) -> int:
        raise ModelError("no moments")

    monkeypatch.setattr(others, "store_others", store)
    step = quantize(build(UP), "quant", feeds((1, 16, 12, 12))).report.steps[-1]
    assert step.outcome == "accepted"
    for bits in others.WIDTHS:
        assert f"weights that stay float are not stored in {bits} bits: no moments" in step.report.notes


TABLE = """
<ir_version: 8, opset_import: ["" : 17]>
g (int64[N] x) => (float[N, 256] y)
<float[2000, 64] t, float[64, 256] w>
{
  rows = Gather(t, x)
  y = MatMul(rows, w)
}
"""


@pytest.fixture
def as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """All forms take half of the float model's time, whatever this machine does besides."""
    monkeypatch.setattr(Evaluator, "race", lambda *_: Ratio(0.5, 0.49, 0.51, 10))
    monkeypatch.setattr(quant_run, "node_times", lambda *_: [])


@pytest.mark.usefixtures("as_fast")
def test_rows_of_a_table_go_into_kernels_as_they_are() -> None:
    data = [{"x": RNG.integers(0, 2000, 64)} for _ in range(4)]
    model = build(TABLE)
    result = quantize(model, "quant:mode=auto", data, max_drop=0.05)
    assert result.report.steps[-1].outcome == "accepted", result.report.steps[-1]
    (gather,) = [node for node in result.model.graph.nodes if node.op == "Gather"]
    assert np.dtype(gather.inputs[0].dtype) == np.uint8
    assert "QuantizeLinear" not in ops(result.model)
    assert result.report.after.nbytes < 0.3 * result.report.before.nbytes
    again = quantize(result.model, "quant:mode=auto", data, max_drop=0.05)
    assert again.report.steps[-1].outcome == "unchanged"


TIED = """
<ir_version: 8, opset_import: ["" : 17]>
g (int64[N] x) => (float[N, 2000] y)
<float[2000, 64] t, float[64, 64] w>
{
  rows = Gather(t, x)
  h = MatMul(rows, w)
  LAST
}
"""


@pytest.mark.parametrize(
    "last", ["y = Gemm<transB = 1>(h, t)", "turned = Transpose<perm = [1, 0]>(t) y = MatMul(h, turned)"]
)
def test_rows_of_a_table_that_a_product_shares_go_into_kernels_as_they_are(last: str) -> None:
    model, target = build(TIED.replace("LAST", last)), get_target("cpu-avx2")
    samples = open_samples([{"x": RNG.integers(0, 2000, 64)} for _ in range(4)], model.interface)
    infer_shapes(model)
    units, _ = find_units(model.graph, target, model.opset)
    sites, _ = find_sites(model.graph, target, model.opset)
    workshop = Workshop(model, target, units, sites, calibrate(model, units, Observer(samples)), samples)
    made = workshop.make(make_plans(IntegerOptions("auto", "mse", ()), units, sites)[0])
    assert made.audit.inside == 0
    (gather,) = [node for node in made.model.graph.nodes if node.op == "Gather"]
    assert np.dtype(gather.inputs[0].dtype) == np.uint8
    assert made.model.weight_bytes < 0.6 * model.weight_bytes


@pytest.mark.usefixtures("as_fast")
def test_of_forms_that_are_as_fast_the_one_that_stores_a_tied_table_once_is_kept() -> None:
    data = [{"x": RNG.integers(0, 2000, 64)} for _ in range(4)]
    result = quantize(build(TIED.replace("LAST", "y = Gemm<transB = 1>(h, t)")), "quant", data, max_drop=0.05)
    assert result.report.after.nbytes < 0.35 * result.report.before.nbytes


def test_a_product_that_shares_a_float_table_stays_float() -> None:
    """In integers it would need bytes of its own, beside the floats that Gather still reads."""
    data = [{"x": RNG.integers(0, 2000, 64)} for _ in range(4)]
    model = build(TIED.replace("LAST", "[product] y = Gemm<transB = 1>(h, t)"))
    result = quantize(model, "quant:mode=static", data, max_drop=0.05)
    step = result.report.steps[-1]
    assert step.report is not None
    (reason,) = [item.reason for item in step.report.skipped if item.where == "product"]
    assert "shares its weight and stays float" in reason
    assert step.outcome == "accepted"
    assert result.report.after.nbytes < result.report.before.nbytes


TURNED = """
<ir_version: 8, opset_import: ["" : 17]>
g (int64[N, 3] x) => (float[3, N, 64] y, float[N, 3, 64] z, float[3, 64, N] u)
<float[2000, 64] t>
{
  rows = Gather(t, x)
  turned = Transpose<perm = [1, 0, 2]>(rows)
  y = Tanh(turned)
  z = Tanh(rows)
  u = Transpose<perm = [0, 2, 1]>(turned)
}
"""


def test_a_transpose_moves_the_integers_of_rows() -> None:
    """ONNX Runtime leaves a QuantizeLinear behind a Transpose that moves floats with a scale for each column."""
    model, samples = build(TURNED), [{"x": RNG.integers(0, 2000, (5, 3))} for _ in range(2)]
    result = quantize(model, "quant:mode=dynamic", samples, max_drop=0.05)
    assert "QuantizeLinear" not in op_counts(optimized_model(result.model))
    report = result.report.steps[-1].report
    assert report is not None
    assert report.metrics["conversions inside"] == 0
    with open_session(model) as before, open_session(result.model) as after:
        for feeds in samples:
            wanted, found = before.run(feeds), after.run(feeds)
            for name in ("y", "z", "u"):
                np.testing.assert_allclose(found[name], wanted[name], atol=0.05 * float(np.abs(wanted["u"]).max()))


@pytest.mark.parametrize("pairs", [False, True])
def test_fitted_weights_change_outputs_less_than_the_nearest(pairs: bool) -> None:
    model = build(MATRIX.replace("512", "64").replace("256", "32"))
    mixing = RNG.normal(size=(64, 64)) * np.geomspace(1, 0.01, 64)
    data = [{"x": np.asarray(item["x"] @ mixing.T, np.float32)} for item in feeds((512, 64))]
    infer_shapes(model)
    (unit,), _ = find_units(model.graph, get_target("cpu-avx2"), model.opset)
    store = WeightStore(pairs)
    assert unit.weight is not None
    near = store.weight(unit)
    (fitted,) = fit_weights(model, [unit], store, open_samples(data, model.interface)).values()
    assert not pairs or not saturates(to_rows(fitted.values, 1), "even")
    np.testing.assert_array_equal(near.scale, fitted.scale)
    read = np.concatenate([item["x"] for item in data])
    lost = [np.square(read @ (weight.restored() - unit.weight.values)).sum(axis=0) for weight in (near, fitted)]
    assert (lost[1] <= lost[0] * 1.001).all(), "a row is never worse"
    assert lost[1].sum() < 0.7 * lost[0].sum()
