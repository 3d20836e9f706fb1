"""Weights in 4 and 8 bits: every form computes the same, shared weights stay shared, and what cannot be says why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from graphopt.base import PassReport, Skip
from graphopt.context import Context
from graphopt.evaluate import Drop, Evaluator
from graphopt.ir.clean import clean
from graphopt.model import Model
from graphopt.passes.quant import Quant
from graphopt.passes.quant.storage.decoder import packed_codes
from graphopt.passes.quant.storage.forms import kernel_block
from graphopt.passes.quant.storage.others import Judgement, others_stored, store_others
from graphopt.passes.quant.storage.weights import Weight, find_weights
from graphopt.progress import SilentProgress
from graphopt.runtime.session import op_counts, optimized_model
from graphopt.samples import random_samples
from graphopt.shapes import infer_shapes
from graphopt.targets import get_target
from tests.helpers import outputs_of, parse, random_feeds

FORMS = ("load", "nbits", "qdq")
every_form = pytest.mark.parametrize("form", FORMS)
both_widths = pytest.mark.parametrize("bits", [4, 8])

LAYERS = """
layers (float[N, 3, 8, 8] x) => (float[N, 20] y)
<float[32, 3, 3, 3] conv, float[32] conv_bias, float[32, 1, 3, 3] depthwise, float[32, 48] dense, float[20, 48] last,
 float[20] last_bias, int64[2] shape = {0, 32}>
{
    a = Conv <pads = [1, 1, 1, 1]> (x, conv, conv_bias)
    b = Conv <group = 32, pads = [1, 1, 1, 1]> (a, depthwise)
    c = Relu (b)
    d = GlobalAveragePool (c)
    e = Reshape (d, shape)
    f = MatMul (e, dense)
    g = Relu (f)
    y = Gemm <transB = 1> (g, last, last_bias)
}
"""


def filled(text: str, seed: int = 0) -> onnx.ModelProto:
    """Return the model of a text; weights of which it only states the types are random."""
    proto = parse(text)
    rng = np.random.default_rng(seed)
    for info in proto.graph.value_info:
        kind = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        values = rng.standard_normal(shape) / np.sqrt(max(np.prod(shape[1:]), 1))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(kind), info.name))
    del proto.graph.value_info[:]
    return proto


def compressed(
    proto: onnx.ModelProto, *, samples: bool = True, target: str = "cpu-avx2", **options: object
) -> tuple[Model, PassReport]:
    """Return the model after the pass, with its report."""
    model = Model.from_proto(proto)
    drawn = random_samples(model.interface, count=16) if samples else None
    evaluator = Evaluator(model, get_target(target), samples=drawn)
    result = model.copy()
    infer_shapes(result)
    report = Quant(mode="weights", **options).run(result, Context(get_target(target), evaluator, drawn))  # type: ignore[arg-type]
    clean(result.graph)
    onnx.checker.check_model(result.skeleton())
    return result, report


def error(proto: onnx.ModelProto, result: Model, **sizes: int) -> float:
    """Return the energy of the difference of the outputs, as a fraction."""
    feeds = random_feeds(proto, seed=1, sizes={"N": 6, **sizes})
    before, after = outputs_of(proto, feeds), outputs_of(result, feeds)
    total = sum(float(np.square(value).sum()) for value in before.values())
    return sum(float(np.square(after[name] - value).sum()) for name, value in before.items()) / total


def nodes(model: Model) -> Counter[str]:
    """Return the nodes that really run."""
    return op_counts(optimized_model(model))


def weight_bytes(model: Model) -> int:
    """Return the bytes of all initializers."""
    return sum(len(item.SerializeToString()) for item in model.to_proto().graph.initializer)


@every_form
@both_widths
@pytest.mark.parametrize("block", [0, 16, 32])
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_form_is_near_and_small(form: str, bits: int, block: int, symmetric: bool) -> None:
    proto = filled(LAYERS)
    result, report = compressed(proto, bits=bits, block=block, symmetric=symmetric, form=form)
    assert report.changed == 4
    assert error(proto, result) < (0.01 if bits == 4 else 1e-4)
    assert weight_bytes(result) < weight_bytes(Model.from_proto(proto)) * (0.42 if bits == 4 else 0.55)


@both_widths
@pytest.mark.parametrize("symmetric", [True, False])
def test_forms_agree(bits: int, symmetric: bool) -> None:
    proto = filled(LAYERS)
    feeds = random_feeds(proto, sizes={"N": 4})
    results = [
        outputs_of(compressed(proto, bits=bits, block=16, symmetric=symmetric, form=form)[0], feeds) for form in FORMS
    ]
    scale = np.abs(results[0]["y"]).max()
    np.testing.assert_allclose(results[2]["y"], results[0]["y"], atol=1e-5 * scale)
    np.testing.assert_allclose(results[1]["y"], results[0]["y"], atol=0.02 * scale)  # activations in 8 bits


def test_decoders_are_evaluated_at_load() -> None:
    proto = filled(LAYERS)
    for bits in (4, 8):
        result, _ = compressed(proto, bits=bits, block=16, form="load")
        assert nodes(result) == op_counts(optimized_model(proto))


@both_widths
def test_matrices_run_in_their_kernels(bits: int) -> None:
    for block in (0, 16, 32):
        result, _ = compressed(filled(LAYERS), bits=bits, block=block, form="nbits")
        assert nodes(result)["com.microsoft:MatMulNBits"] == 2
    text = "alone (float[N, 48] x) => (float[N, 20] y) <float[48, 20] w> { y = MatMul (x, w) }"
    for block in (0, 16, 32):
        result, _ = compressed(filled(text), bits=bits, block=block, form="qdq")
        assert nodes(result) == Counter({"com.microsoft:MatMulNBits": 1})


@pytest.mark.parametrize(("exclude", "count"), [((), 4), (("Gemm",), 3)])
def test_what_stays_float_is_stored_in_8_bits_and_runs_as_before(exclude: tuple[str, ...], count: int) -> None:
    before = filled(LAYERS)
    model = Model.from_proto(before)
    bytes_before = model.weight_bytes
    assert store_others(model.copy(), 8, None, SilentProgress(), exclude, worth=0.8) == 0
    samples = random_samples(model.interface, count=3)
    assert store_others(model, 8, samples, SilentProgress(), exclude) == count
    assert op_counts(optimized_model(model)) == op_counts(optimized_model(before))
    assert ("last" in {item.name for item in model.to_proto().graph.initializer}) == bool(exclude)
    assert model.weight_bytes < (0.7 if exclude else 0.45) * bytes_before
    feeds = random_feeds(before, seed=3, sizes={"N": 3})
    wanted, found = outputs_of(before, feeds)["y"], outputs_of(model.to_proto(), feeds)["y"]
    assert np.abs(found - wanted).max() < 0.03 * np.abs(wanted).max()


def test_what_does_not_bear_8_bits_is_stored_in_16() -> None:
    """Beside what is lost already, bytes alone are worth a tenth of the limit."""
    before = filled(LAYERS)
    model, errors = Model.from_proto(before), iter((0.0029, 0.0001))
    feeds = random_feeds(before, seed=3, sizes={"N": 3})

    def drop(_: Model) -> Drop:
        value = next(errors)
        return Drop(value, value, value, "agreement", {}, 4, random=False)

    result, count, notes = others_stored(model, Judgement(0.01, 0.0018, drop), None, SilentProgress(), (), 0.1)
    assert count == 4
    assert notes == [
        "weights that stay float are not stored in 8 bits: that loses 0.29%, 0.18% without",
        "weights that stay float are stored in 16 bits, decoded at load: 4",
    ]
    assert result.weight_bytes < 0.6 * model.weight_bytes
    assert op_counts(optimized_model(result)) == op_counts(optimized_model(before))
    wanted, found = outputs_of(before, feeds)["y"], outputs_of(result.to_proto(), feeds)["y"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3 * np.abs(wanted).max())
    errors = iter((0.0027,))
    assert "in 8 bits" in others_stored(model, Judgement(0.01, 0.0018, drop), None, SilentProgress(), (), 0.1)[2][0]


def test_values_that_16_bits_cannot_hold_stay_as_they_are() -> None:
    proto = filled(LAYERS)
    model = Model.from_proto(proto)
    first = next(weight for weight in find_weights(model)[0] if weight.constant.values.ndim == 2)
    first.constant.values = first.constant.values * np.float32(1e-9)
    assert store_others(model, 16, None, SilentProgress(), ()) == 3


def test_fitting_beats_rounding() -> None:
    proto = filled(LAYERS)
    fitted, _ = compressed(proto, bits=4)
    rounded, report = compressed(proto, bits=4, samples=False)
    assert any("without --data" in note for note in report.notes)
    assert error(proto, fitted) < 0.7 * error(proto, rounded)


@every_form
def test_a_second_run_changes_nothing(form: str) -> None:
    first, _ = compressed(filled(LAYERS), bits=4, block=16, form=form)
    second, report = compressed(first.to_proto(), bits=4, block=16, form=form)
    assert report.changed == 0
    assert op_counts(second.to_proto()) == op_counts(first.to_proto())


TIED = """
tied (int64[N] ids) => (float[N, 64] y, float[N, 40] logits)
<float[40, 64] table, float[64, 64] dense>
{
    rows = Gather (table, ids)
    y = MatMul (rows, dense)
    turned = Transpose <perm = [1, 0]> (table)
    logits = MatMul (y, turned)
}
"""


@every_form
@both_widths
def test_tied_tables_stay_tied(form: str, bits: int) -> None:
    proto = filled(TIED)
    result, report = compressed(proto, samples=False, bits=bits, block=32, form=form)
    assert report.changed == 2
    assert error(proto, result) < (0.05 if bits == 4 else 1e-3)
    assert weight_bytes(result) < weight_bytes(Model.from_proto(proto)) * bits / 32 * 1.6
    assert [
        item.name for item in result.to_proto().graph.initializer if "table" in item.name and "codes" in item.name
    ] == ["table_codes"]


@every_form
@both_widths
@pytest.mark.parametrize("block", [0, 32])
def test_rows_of_tables_keep_their_length(form: str, bits: int, block: int) -> None:
    """GatherBlockQuantized hands out whole blocks: 40 columns would become 48 or 64."""
    proto = filled(TIED.replace("64]", "40]").replace("[64,", "[40,"))
    result, _ = compressed(proto, samples=False, bits=bits, block=block, form=form)
    assert error(proto, result) < (0.05 if bits == 4 else 1e-3)


def test_tables_are_read_in_their_codes() -> None:
    result, _ = compressed(filled(TIED), samples=False, bits=4, block=32, form="nbits")
    found = nodes(result)
    assert found["com.microsoft:GatherBlockQuantized"] == 1
    assert found["com.microsoft:MatMulNBits"] == 2
    assert found["Gather"] == found["Transpose"] == 0


@every_form
def test_a_weight_of_two_layers_is_stored_once(form: str) -> None:
    text = """
    shared (float[N, 32] x) => (float[N, 32] y) <float[32, 32] w> { a = MatMul (x, w)  b = Relu (a)  y = MatMul (b, w) }
    """
    proto = filled(text)
    result, report = compressed(proto, bits=4, form=form)
    assert report.changed == 1
    assert sum(item.name.startswith("w_codes") for item in result.to_proto().graph.initializer) == 1
    assert error(proto, result) < 0.05


def test_weights_are_found_again_in_copies_whatever_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are listed by first use, and cleaning up after layers were fitted may have sorted the nodes."""
    listed: list[list[str]] = []

    def turned(model: Model) -> tuple[list[Weight], list[Skip]]:
        weights, skipped = find_weights(model)
        listed.append([weight.constant.name for weight in weights])
        return weights[:: -1 if len(listed) > 1 else 1], skipped

    monkeypatch.setattr("graphopt.passes.quant.storage.weight_only.find_weights", turned)
    proto = filled("""
    g (float[N, 32] x) => (float[N, 32] y) <float[32, 64] a, float[64, 32] b>
    { h = MatMul (x, a)  r = Tanh (h)  y = MatMul (r, b) }
    """)
    result, report = compressed(proto, bits=8, form="auto")
    assert listed == [["a", "b"]] * 3
    assert report.changed == 2
    assert error(proto, result) < 1e-3


@every_form
def test_recurrent_weights_and_bodies(form: str) -> None:
    text = """
    recurrent (float[5, N, 16] x, bool flag) => (float[5, 1, N, 16] y, float[5, N, 32] z)
    <float[1, 64, 16] w, float[1, 64, 16] r, float[16, 32] inner>
    {
        y = LSTM <hidden_size = 16> (x, w, r)
        z = If (flag) <
            then_branch = first () => (float[5, N, 32] a) { a = MatMul (x, inner) },
            else_branch = other () => (float[5, N, 32] b) { c = MatMul (x, inner)  b = Neg (c) }
        >
    }
    """
    proto = filled(text)
    feeds = random_feeds(proto, sizes={"N": 2}) | {"flag": np.array(True)}
    model = Model.from_proto(proto)
    context = Context(get_target("cpu-avx2"), Evaluator(model, get_target("cpu-avx2"), samples=None))
    result = model.copy()
    report = Quant(mode="weights", bits=8, form=form).run(result, context)  # type: ignore[arg-type]
    clean(result.graph)
    assert report.changed == 3
    for flag in (True, False):
        before, after = (outputs_of(item, feeds | {"flag": np.array(flag)}) for item in (proto, result))
        for name in before:
            np.testing.assert_allclose(after[name], before[name], atol=0.03 * np.abs(before[name]).max())


@pytest.mark.parametrize(
    ("declared", "body", "reason"),
    [
        (
            "float[32, 32] w",
            "y = MatMul (x, w)  v = Identity (w)",
            "an operator reads it that is neither layer nor table",
        ),
        ("float[32, 32] w", "a = MatMul (x, w)  y = Gemm <transB = 1> (a, w)  v = Neg (x)", "in two orientations"),
        ("float[32, 32] w", "y = MatMul (x, w)  v = Add (x, w)", "neither layer nor table"),
    ],
)
def test_what_cannot_be_stored_says_why(declared: str, body: str, reason: str) -> None:
    text = f"plain (float[32, 32] x) => (float[32, 32] y, float[32, 32] v) <{declared}> {{ {body} }}"
    _, report = compressed(filled(text), bits=4)
    assert report.changed == 0
    assert reason in report.skipped[0].reason


def test_other_types_nan_and_outputs_are_left() -> None:
    half = "h (float16[4, 32] x) => (float16[4, 32] y) <float16[32, 32] w> { y = MatMul (x, w) }"
    _, report = compressed(filled(half), bits=4, samples=False)
    assert [skip.reason for skip in report.skipped] == ["it is float16, not float32"]
    shown = filled("s (float[4, 32] x) => (float[4, 32] y, float[32, 32] w) <float[32, 32] w> { y = MatMul (x, w) }")
    assert compressed(shown, bits=4, samples=False)[1].skipped[0].reason == "it is a graph output"
    broken = filled("b (float[4, 32] x) => (float[4, 32] y) <float[32, 32] w> { y = MatMul (x, w) }")
    values = onnx.numpy_helper.to_array(broken.graph.initializer[0]).copy()
    values[0, 0] = np.nan
    broken.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    assert compressed(broken, bits=4, samples=False)[1].skipped[0].reason == "it holds NaN or infinities"


def test_overridable_weights_stay() -> None:
    proto = filled("o (float[4, 32] x) => (float[4, 32] y) <float[32, 32] w> { y = MatMul (x, w) }")
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [32, 32]))
    assert compressed(proto, bits=4, samples=False)[1].changed == 0


def test_exclusion_by_name_and_operator() -> None:
    proto = filled(LAYERS)
    result, report = compressed(proto, bits=4, samples=False, exclude="Conv+y*")
    assert report.changed == 2 - sum(skip.where == "last" for skip in report.skipped)
    assert {skip.where for skip in report.skipped if skip.reason == "it is excluded"} >= {"conv", "depthwise"}
    assert "conv" in {item.name for item in result.to_proto().graph.initializer}


CAPTURED = """
agraph (float[N, 32] x, bool c) => (float[N, 32] y)
<float[32, 32] own>
{
    r = MatMul (x, own)
    y = If (c) <then_branch = g () => (float[N, 32] p) { p = MatMul (r, own) },
                else_branch = k () => (float[N, 32] q) { q = Relu (r) }>
}
"""


@every_form
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_that_bodies_capture_load(form: str, symmetric: bool) -> None:
    proto = filled(CAPTURED)
    result, report = compressed(proto, form=form, symmetric=symmetric, bits=8)
    assert report.changed == 1
    assert error(proto, result, N=4) < 0.02
    optimized_model(result)


@pytest.mark.parametrize("opset", [9, 11, 17])
def test_older_opsets(opset: int) -> None:
    proto = filled(f'<ir_version: 8, opset_import: ["" : {opset}]>\n' + LAYERS)
    result, report = compressed(proto, bits=4, form="load")
    assert error(proto, result) < 0.02
    assert any("second moments need opset 10" in note for note in report.notes) == (opset == 9)
    _, report = compressed(proto, bits=4, form="qdq")
    assert report.changed == 0
    assert report.skipped[0].where == "model"
    assert "needs opset 21" in report.skipped[0].reason
    _, report = compressed(proto, bits=4, block=32, form="load")
    assert (report.changed == 0) == (opset == 9)


def test_scaled_gemm_and_vectors_are_decoded_at_load() -> None:
    text = """
    odd (float[N, 32] x, float[32] v) => (float[N, 32] y, float[32] z) <float[32, 32] w, float[32, 32] u>
    { y = Gemm <alpha = 0.5> (x, w)  z = MatMul (v, u) }
    """
    proto = filled(text)
    result, report = compressed(proto, bits=4, form="nbits", samples=False)
    assert report.changed == 2
    assert nodes(result)["com.microsoft:MatMulNBits"] == 0
    assert error(proto, result) < 0.05


def test_without_timing_the_target_decides() -> None:
    _, report = compressed(filled(LAYERS), bits=4, samples=False, target="cuda")
    assert any("not timed here" in note for note in report.notes)


@pytest.mark.parametrize(("inputs", "block", "wanted"), [(384, 384, 128), (120, 120, 128), (27, 27, 32), (384, 64, 64)])
def test_blocks_of_kernels(inputs: int, block: int, wanted: int) -> None:
    assert kernel_block(inputs, block, 4) == wanted


def test_packed_codes_hold_the_first_in_the_lower_half() -> None:
    np.testing.assert_array_equal(packed_codes(np.array([[1, 2, 3]]), 4), [[0x21, 0x03]])


@pytest.mark.parametrize("wrong", [lambda: Quant(mode="weights", bits=3), lambda: Quant(mode="weights", block=20)])
def test_options_are_checked(wrong: Callable[[], Quant]) -> None:
    with pytest.raises(ValueError, match="must be"):
        wrong()
