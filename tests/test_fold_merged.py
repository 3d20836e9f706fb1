"""Rules of fold that merge what stands in a row: transpositions, arithmetic, joins, padding of pools, RMS norms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.foldcase import Folded, fold, ints, model, weight

SWISH = "t = Transpose<perm = [0, 2, 3, 1]>(x) s = Sigmoid(t) m = Mul(t, s) y = Transpose<perm = [0, 3, 1, 2]>(m)"


# Transpositions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "left"),
    [
        ("t = Transpose<perm = [0, 2, 3, 1]>(x) r = Relu(t) y = Transpose<perm = [0, 3, 1, 2]>(r)", {"Relu": 1}),
        ("t = Transpose(x) r = Clip(t, low) y = Transpose(r)", {"Clip": 1}),
        (SWISH, {"Sigmoid": 1, "Mul": 1}),
        ("t = Transpose(x) r = Relu(t) y = Transpose<perm = [1, 0, 2, 3]>(r)", {"Relu": 1, "Transpose": 1}),
        ("t = Transpose(x) a = Add(t, plane) y = Transpose(a)", {"Add": 1}),
        (
            "t = Transpose<perm = [0, 2, 3, 1]>(x) a = Mul(t, channels) y = Transpose<perm = [0, 3, 1, 2]>(a)",
            {"Mul": 1},
        ),
        ("t = Transpose(x) n = Neg(x) u = Transpose(n) a = Max(t, u) y = Transpose(a)", {"Neg": 1, "Max": 1}),
    ],
)
def test_transpositions_around_elementwise_operators_meet(nodes: str, left: dict[str, int]) -> None:
    done = fold(
        f"""g (float[2, 3, 4, 5] x) => (float[a, b, c, d] y)
            <float low = {{0.1}}, float[3] channels = {{1, 2, 3}}, float[4, 1, 2] unused = {{1, 2, 3, 4, 5, 6, 7, 8}},
             float[3, 2] plane = {{1, 2, 3, 4, 5, 6}}> {{ {nodes} }}"""
    )
    assert done.ops == left


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ("t = Transpose(x) z = Relu(t) y = Transpose(z)", "used elsewhere too"),
        ("t = Transpose(x) z = Neg(t) r = Relu(t) y = Transpose(r)", "used elsewhere too"),
        (
            "t = Transpose(x) u = Transpose<perm = [3, 2, 0, 1]>(x) a = Add(t, u) z = Abs(x) y = Transpose(a)",
            "different orders",
        ),
    ],
)
def test_other_transpositions_stay(nodes: str, why: str) -> None:
    done = fold(f"g (float[2, 2, 2, 2] x) => (float[2, 2, 2, 2] y, float[2, 2, 2, 2] z) {{ {nodes} }}")
    assert done.ops["Transpose"] >= 2
    assert done.declined(why)


def test_an_operand_that_is_not_transposed_keeps_the_transposition() -> None:
    done = fold(
        """g (float[2, 2] x, float[2, 2] z) => (float[2, 2] y)
        { t = Transpose(x) a = Add(t, z) y = Transpose(a) }"""
    )
    assert done.ops == {"Transpose": 2, "Add": 1}


# Arithmetic ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "op", "value"),
    [
        ("a = Mul(x, three) y = Mul(a, four)", "Mul", 12.0),
        ("a = Mul(three, x) y = Div(a, four)", "Mul", 0.75),
        ("a = Div(x, three) y = Div(a, four)", "Mul", 1 / 12),
        ("a = Div(three, x) y = Mul(four, a)", "Div", 12.0),
        ("a = Div(three, x) y = Div(four, a)", "Mul", 4 / 3),
        ("a = Mul(three, x) y = Div(four, a)", "Div", 4 / 3),
        ("a = Add(x, three) y = Add(four, a)", "Add", 7.0),
        ("a = Sub(x, three) y = Sub(a, four)", "Add", -7.0),
        ("a = Sub(three, x) y = Add(a, four)", "Sub", 7.0),
        ("a = Sub(three, x) y = Sub(minus, a)", "Add", -7.0),
        ("a = Add(three, x) y = Sub(minus, a)", "Sub", -7.0),
    ],
)
def test_two_steps_with_constants_become_one(nodes: str, op: str, value: float) -> None:
    done = fold(
        f"""g (float[N, 3] x) => (float[N, 3] y)
            <float three = {{3}}, float four = {{4}}, float minus = {{-4}}> {{ {nodes} }}"""
    )
    assert done.ops == {op: 1}
    assert [float(array) for array in done.weights.values()] == pytest.approx([value])


def test_constants_of_other_shapes_are_broadcast_into_one() -> None:
    nodes = [helper.make_node("Mul", ["x", "a"], ["t"]), helper.make_node("Mul", ["b", "t"], ["y"])]
    done = Folded(model(nodes, {"x": ["N", 3, 4]}, ["y"], [weight("a", 3, 1, low=0.5), weight("b", 1, low=0.5)]))
    assert done.ops == {"Mul": 1}
    assert [array.shape for array in done.weights.values()] == [(3, 1)]


def test_integers_wrap_around_as_before() -> None:
    nodes = [helper.make_node("Mul", ["x", "a"], ["t"]), helper.make_node("Mul", ["t", "a"], ["y"])]
    large = numpy_helper.from_array(np.array(1 << 20, np.int32), "a")
    done = Folded(model(nodes, {"x": ["N", 3]}, ["y"], [large], kind=TensorProto.INT32))
    assert done.ops == {"Mul": 1}


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ("a = Add(x, magic) y = Sub(a, magic)", "cancel"),
        ("a = Mul(x, magic) b = Mul(a, magic) c = Mul(b, magic) d = Mul(c, magic) e = Mul(d, magic) y = Mul(e, magic)",
         "overflow on the way"),
        ("z = Mul(x, three) y = Mul(z, three)", "used elsewhere too"),
        ("a = Mul(x, row) y = Mul(a, column)", "bytes more"),
    ],
)  # fmt: skip
def test_arithmetic_that_may_mean_more_stays(nodes: str, why: str) -> None:
    outputs = "float[4, 4] y" + (", float[4, 4] z" if "z =" in nodes else "")
    many = ", ".join(str(1 + number) for number in range(40))
    done = fold(
        f"""g (float[4, 4] x) => ({outputs.replace("4, 4", "40, 40") if "row" in nodes else outputs})
            <float magic = {{12582912}}, float three = {{3}}, float[40] row = {{{many}}},
             float[40, 1] column = {{{many}}}> {{ {nodes} }}""".replace(
            "(float[4, 4] x)", "(float[40, 40] x)" if "row" in nodes else "(float[4, 4] x)"
        ),
        max_growth=32,
    )
    assert done.declined(why)
    assert sum(done.ops.values()) >= 2


# Joins ---------------------------------------------------------------------------------------------------------------


def test_parts_of_parts_are_joined_at_once() -> None:
    done = fold(
        """g (float[N, 2] x, float[N, 2] z) => (float[N, m] y)
        { a = Concat<axis = 1>(x, z) b = Concat<axis = -1>(z, z) y = Concat<axis = 1>(a, x, b) }"""
    )
    assert done.ops == {"Concat": 1}
    assert list(done.after.graph.node[0].input) == ["x", "z", "x", "z", "z"]


@pytest.mark.parametrize("inner", ["w = Concat<axis = 1>(x, x)", "w = Concat<axis = 0>(x, x)"])
def test_parts_that_are_used_or_joined_otherwise_stay(inner: str) -> None:
    second = "(w, w)" if "axis = 0" in inner else "(w, x)"
    outputs = "float[a, b] y" + ("" if "axis = 0" in inner else ", float[c, d] w")
    done = fold(f"g (float[2, 2] x) => ({outputs}) {{ {inner} y = Concat<axis = 1>{second} }}")
    assert done.ops["Concat"] == 2
    assert done.declined("the parts are used elsewhere")


# Padding of pools ----------------------------------------------------------------------------------------------------


def pooled(op: str, value: float | None, *, before: str = "Identity", **attrs: Any) -> Folded:
    inputs = ["a", "p"] if value is None else ["a", "p", "v"]
    nodes = [
        helper.make_node(before, ["x"], ["a"]),
        helper.make_node("Pad", inputs, ["b"]),
        helper.make_node(op, ["b"], ["y"], **({"kernel_shape": [3, 3]} | attrs)),
    ]
    weights = [ints("p", 0, 0, 1, 0, 0, 0, 2, 1)]
    if value is not None:
        weights.append(numpy_helper.from_array(np.array(value, np.float32), "v"))
    return Folded(model(nodes, {"x": ["N", 2, 9, 8]}, ["y"], weights))


@pytest.mark.parametrize(
    ("op", "value", "before", "attrs"),
    [
        ("MaxPool", float("-inf"), "Identity", {"strides": [2, 2]}),
        ("MaxPool", float(np.finfo(np.float32).min), "Neg", {"pads": [1, 1, 0, 1]}),
        ("MaxPool", 0.0, "Relu", {"strides": [2, 1]}),
        ("AveragePool", None, "Neg", {}),
        ("AveragePool", 0.0, "Neg", {"pads": [1, 1, 0, 0], "count_include_pad": 1}),
    ],
)
def test_padding_moves_into_the_pool(op: str, value: float | None, before: str, attrs: dict[str, Any]) -> None:
    assert "Pad" not in pooled(op, value, before=before, **attrs).ops


@pytest.mark.parametrize(
    ("op", "value", "before", "attrs", "why"),
    [
        ("MaxPool", 0.0, "Neg", {}, "would not take its own margin"),
        ("MaxPool", 1.0, "Relu", {}, "would not take its own margin"),
        ("AveragePool", 1.0, "Neg", {}, "would not take its own margin"),
        ("AveragePool", 0.0, "Neg", {"pads": [1, 1, 0, 0]}, "would not take its own margin"),
        ("MaxPool", 0.0, "Relu", {"ceil_mode": 1, "strides": [2, 2]}, "rounds its size up"),
        ("MaxPool", 0.0, "Relu", {"auto_pad": "SAME_UPPER"}, "pads by itself"),
        ("AveragePool", 0.0, "Neg", {"kernel_shape": [2, 2]}, "as long as the window"),
    ],
)
def test_other_padding_of_pools_stays(op: str, value: float, before: str, attrs: dict[str, Any], why: str) -> None:
    done = pooled(op, value, before=before, **attrs)
    assert done.ops["Pad"] == 1
    assert done.declined(why)


# RMS normalization ---------------------------------------------------------------------------------------------------

MEAN = "p = Pow(x, two) m = ReduceMean(p, last) s = Add(m, small)"


@pytest.mark.parametrize(
    "nodes",
    [
        f"{MEAN} r = Sqrt(s) d = Div(x, r) y = Mul(gamma, d)",
        f"{MEAN} r = Sqrt(s) i = Reciprocal(r) d = Mul(x, i) y = Mul(d, gamma)",
        f"{MEAN} i = Pow(s, half) d = Mul(i, x) y = Mul(d, gamma)",
        "p = Mul(x, x) m = ReduceMean(p, last) s = Add(small, m) r = Sqrt(s) d = Div(x, r) y = Mul(gamma, d)",
    ],
)
@pytest.mark.parametrize("opset", [18, 23])
def test_rms_normalization_is_recognised_where_the_operator_set_may_have_it(nodes: str, opset: int) -> None:
    text = f"""<ir_version: 10, opset_import: ["": {opset}]> g (float[N, 4] x) => (float[N, 4] y)
        <float two = {{2}}, int64[1] last = {{-1}}, float small = {{0.001}}, float half = {{-0.5}},
         float[4] gamma = {{1, 2, 3, 4}}> {{ {nodes} }}"""
    assert fold(text, max_opset=23).ops == {"RMSNormalization": 1}
    kept = fold(text)
    assert (kept.ops == {"RMSNormalization": 1}) == (opset == 23)
    assert kept.declined("max-opset is 20") == (opset == 18)


@pytest.mark.parametrize("nodes", ["y = Mul(gamma, d)", "a = Mul(gamma, d) y = Add(a, gamma)"])
@pytest.mark.parametrize("opset", [17, 23])
def test_a_normalization_that_takes_off_the_mean_is_a_layer_normalization(nodes: str, opset: int) -> None:
    mean = "ReduceMean(x, last)" if opset >= 18 else "ReduceMean<axes = [-1]>(x)"
    spread = mean.replace("x", "p", 1) if opset >= 18 else mean.replace("(x)", "(p)")
    done = fold(
        f"""<ir_version: 8, opset_import: ["": {opset}]> g (float[N, 4] x) => (float[N, 4] y)
        <int64[1] last = {{-1}}, float small = {{0.001}}, float[4] gamma = {{1, 2, 3, 4}}>
        {{ m = {mean} c = Sub(x, m) p = Mul(c, c) v = {spread} s = Add(v, small) r = Sqrt(s) d = Div(c, r) {nodes} }}"""
    )
    assert done.ops == {"LayerNormalization": 1}
    assert len(done.after.graph.node[0].input) == (3 if "Add" in nodes else 2)
