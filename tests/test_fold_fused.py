"""Operators that were written out in parts, and the operator sets that their fused forms need."""

from __future__ import annotations

import pytest
from onnx import helper

from graphopt.model import Model
from graphopt.passes.fold.opset import raise_opset
from graphopt.passes.fold.workbench import Workbench
from tests.foldcase import Folded, fold, model
from tests.helpers import parse

NUMBERS = """<float half = {0.5}, float one = {1.0}, float root = {1.4142135}, float inverse = {0.70710677},
    float cubic = {0.044715}, float slope = {0.7978846}, float three = {3.0}, float six = {6.0}, float zero = {0.0},
    float sixth = {0.16666667}, float two = {2.0}, float[1, 1, 1] deep = {0.5}>"""


def activation(nodes: str, *, opset: int = 20, outputs: str = "float[N, 4] y") -> str:
    return f'<ir_version: 8, opset_import: ["": {opset}]>\ng (float[N, 4] x) => ({outputs}) {NUMBERS} {{ {nodes} }}'


GELU = "a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)"
GELU_TANH = """a = Mul(cubic, x) b = Mul(x, a) c = Mul(x, b) d = Add(x, c) e = Mul(slope, d) f = Tanh(e)
    h = Add(one, f) i = Mul(half, h) y = Mul(x, i)"""
HARD_SWISH = "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)"


@pytest.mark.parametrize(
    ("nodes", "fused"),
    [
        (GELU, "Gelu"),
        ("a = Mul(x, inverse) b = Erf(a) c = Add(one, b) h = Mul(x, half) y = Mul(h, c)", "Gelu"),
        ("a = Mul(x, inverse) b = Erf(a) c = Add(one, b) h = Mul(c, half) y = Mul(x, h)", "Gelu"),
        ("a = Mul(x, inverse) b = Erf(a) c = Add(one, b) h = Mul(c, x) y = Div(h, two)", "Gelu"),
        (GELU_TANH, "Gelu"),
        (
            "p = Pow(x, three) a = Mul(p, cubic) d = Add(a, x) e = Mul(d, slope) f = Tanh(e) h = Add(f, one) "
            "i = Mul(x, h) y = Mul(i, half)",
            "Gelu",
        ),
        (HARD_SWISH, "HardSwish"),
        ("a = Add(x, three) b = Clip(a, zero, six) c = Mul(b, sixth) y = Mul(x, c)", "HardSwish"),
        ("a = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(x, a)", "HardSwish"),
        ("a = Softplus(x) b = Tanh(a) y = Mul(x, b)", "Mish"),
        ("a = Add(x, three) b = Clip(a, zero, six) y = Div(b, six)", "HardSigmoid"),
    ],
)
def test_written_out_activations_become_the_operator(nodes: str, fused: str) -> None:
    done = fold(activation(nodes), tolerance=1e-5)
    assert done.ops == {fused: 1}


def test_gelu_keeps_the_approximation() -> None:
    node = fold(activation(GELU_TANH)).after.graph.node[0]
    assert [attribute.s for attribute in node.attribute] == [b"tanh"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("float half = {0.5}", "float half = {0.51}"),
        ("float one = {1.0}", "float one = {1.001}"),
        ("float root = {1.4142135}", "float root = {1.41}"),
        ("Mul(x, c)", "Mul(a, c)"),
        ("Mul(d, half)", "Mul(d, deep)"),
        ("(float[N, 4] y)", "(float[N, 4] y, float[N, 4] b)"),
    ],
)
def test_what_is_no_gelu_stays(old: str, new: str) -> None:
    text = activation(GELU).replace("float[N, 4] y)", "float[N, 4] y)" if "deep" not in new else "float[A, B, C] y)")
    assert old in text
    assert "Gelu" not in fold(text.replace(old, new)).ops


@pytest.mark.parametrize(
    ("old", "new"), [("float three = {3.0}", "float three = {2.0}"), ("Clip(a, zero, six)", "Clip(a, zero, three)")]
)
def test_what_is_no_hard_swish_stays(old: str, new: str) -> None:
    assert "HardSwish" not in fold(activation(HARD_SWISH).replace(old, new)).ops


def test_activations_in_other_types_stay() -> None:
    text = activation(HARD_SWISH).replace("float", "double")
    assert fold(text).ops == {"Add": 1, "Clip": 1, "Mul": 1, "Div": 1}


# The operator set ----------------------------------------------------------------------------------------------------


def test_the_operator_set_is_raised_as_far_as_needed() -> None:
    assert fold(activation(HARD_SWISH, opset=11)).after.opset_import[0].version == 14
    assert fold(activation(GELU, opset=11)).after.opset_import[0].version == 20
    assert fold(activation(GELU, opset=21)).after.opset_import[0].version == 21


def test_the_operator_set_can_be_kept() -> None:
    done = fold(activation(GELU, opset=11), max_opset=0)
    assert "Gelu" not in done.ops
    assert done.declined("it takes operator set 20, and max-opset is 0")
    assert fold(activation(GELU, opset=20), max_opset=0).ops == {"Gelu": 1}


def test_old_operator_sets_and_functions_are_not_raised() -> None:
    old = activation(GELU, opset=10)
    assert fold(old).declined("operator sets before 11 are not raised")
    function = """<ir_version: 10, opset_import: ["": 17, "local": 1]>
        g (float[N, 4] x) => (float[N, 4] y) <float half = {0.5}, float one = {1.0}, float root = {1.4142135}> {
            t = local.f(x) a = Div(t, root) b = Erf(a) c = Add(b, one) d = Mul(t, c) y = Mul(d, half)
        }
        <domain: "local", opset_import: ["": 17]> f (v) => (w) { w = Relu(v) }"""
    assert fold(function, without="functions").declined("the model has functions")


CONVERTED = [
    ("s = Squeeze<axes = [1]>(g) z = Neg(s)", 12),
    ("s = Unsqueeze<axes = [0, -1]>(g) z = Neg(s)", 12),
    ("s = ReduceSum<axes = [1], keepdims = 0>(g) z = Neg(s)", 12),
    ("s = ReduceSum(g) z = Neg(s)", 12),
    ("s = ReduceMean<axes = [-1]>(g) z = Neg(s)", 17),
    ("s = ReduceMax<axes = [1], keepdims = 0>(g) z = Neg(s)", 13),
    ("s, t = Split<axis = 2, split = [1, 3]>(g) z = Mul(s, t)", 12),
    ("s, t = Split<axis = 2>(g) z = Mul(s, t)", 12),
    ("z = Softmax<axis = 2>(g)", 12),
    ("z = LogSoftmax<axis = -1>(g)", 11),
    ("r, m = MaxPool<kernel_shape = [2], strides = [2]>(g) z = Neg(r)", 11),
    ('z = Resize<mode = "nearest">(g, none, scales)', 11),
    ('z = Resize<mode = "linear">(g, none, none, sizes)', 11),
    ("z = AveragePool<kernel_shape = [2], strides = [2]>(g)", 11),
    ("z = Pad(g, pads)", 11),
    ("z = CumSum(g, axis)", 11),
]


@pytest.mark.parametrize(("nodes", "opset"), CONVERTED)
def test_operators_that_changed_are_converted(nodes: str, opset: int) -> None:
    text = f"""<ir_version: 8, opset_import: ["": {opset}]>
        g (float[2, 1, 4] x) => (float[2, 1, 4] y, float[] z) <float half = {{0.5}}, float one = {{1.0}},
            float root = {{1.4142135}}, float[0] none = {{}}, float[3] scales = {{1, 1, 2}},
            int64[3] sizes = {{2, 1, 7}}, int64[6] pads = {{0, 0, 1, 0, 0, 1}}, int64 axis = {{2}}> {{
            a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half) g = Relu(x) {nodes}
        }}"""
    proto = parse(text.replace("float[] z", "float z"))
    proto.graph.output[1].type.tensor_type.ClearField("shape")
    done = Folded(proto, max_growth=64)
    assert done.ops.get("Gelu") == 1, [skip.reason for skip in done.report.skipped]


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("z = Softmax<axis = 1>(g)", "Softmax '' is not known to be over the last axis"),
        ("z = AveragePool<kernel_shape = [3], strides = [2], ceil_mode = 1>(g)", "rounds its size up"),
        ('z = Resize<coordinate_transformation_mode = "tf_half_pixel_for_nn">(g, none, scales)', "were renamed"),
    ],
)
def test_operators_that_mean_something_else_keep_the_operator_set(nodes: str, reason: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 11]>
        g (float[2, 1, 4] x) => (float[2, 1, 4] y, float z) <float half = {{0.5}}, float one = {{1.0}},
            float root = {{1.4142135}}, float[0] none = {{}}, float[3] scales = {{1, 1, 2}}> {{
            a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half) g = Relu(x) {nodes}
        }}"""
    proto = parse(text)
    proto.graph.output[1].type.tensor_type.ClearField("shape")
    done = Folded(proto)
    assert done.after.opset_import[0].version == 11
    assert done.declined(reason)


def test_bodies_are_converted_too() -> None:
    text = """<ir_version: 8, opset_import: ["": 12]>
        g (bool k, float[N, 1, 4] x) => (float[N, 4] y)
            <float half = {0.5}, float one = {1.0}, float root = {1.4142135}> {
            a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(x, c) e = Mul(d, half)
            y = If(k) <then_branch = t () => (float[N, 4] p) { p = Squeeze<axes = [1]>(e) },
                       else_branch = f () => (float[N, 4] q) { q = ReduceSum<axes = [1], keepdims = 0>(e) }>
        }"""
    done = fold(text, max_growth=64)
    assert done.ops == {"Gelu": 1, "If": 1, "Squeeze": 1, "ReduceSum": 1}


def test_nothing_changes_where_a_raise_is_refused() -> None:
    proto = model([helper.make_node("Softmax", ["x"], ["y"])], {"x": [2, 3, 4]}, ["y"], [], opset=11)
    bench = Workbench(Model.from_proto(proto), max_opset=20)
    bench.refresh()
    assert "over the last axis" in raise_opset(bench, 20, 1000)
    assert bench.model.opset == 11


def test_a_raise_must_not_make_the_file_larger() -> None:
    nodes = [helper.make_node("Squeeze", ["x"], ["a"], axes=[0]), helper.make_node("Relu", ["a"], ["y"])]
    bench = Workbench(Model.from_proto(model(nodes, {"x": [1, 4]}, ["y"], [], opset=11)), max_opset=20)
    bench.refresh()
    assert "would make the file larger" in raise_opset(bench, 20, 39)
    assert raise_opset(bench, 20, 40) == ""
