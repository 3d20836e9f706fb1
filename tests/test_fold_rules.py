"""The rules of fold, each where it fits and where it must not; every case is run before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.model import Model
from graphopt.passes.fold import Fold
from graphopt.passes.fold.ints import Ints, add, divide, equal, multiply, subtract
from graphopt.passes.fold.rules.reshape_target import constant_target
from tests.foldcase import NO_CONTEXT, Folded, fold, ints, model, weight
from tests.helpers import parse

# No-ops --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Identity(a)",
        "y = Dropout(a)",
        "y = Cast<to = 1>(a)",
        "y = CastLike(a, x)",
        "y = Transpose<perm = [0, 1]>(a)",
        "y = Pad(a, none)",
        "y = Tile(a, ones)",
        "y = Clip(a)",
        "y = Concat<axis = 1>(a)",
        "y = Sum(a)",
        "y = Mean(a)",
        "y = Max(a)",
        "y = Min(a)",
        "y = Slice(a, zero, end, zero)",
        "y = Reshape(a, same)",
        "y = Reshape(a, open)",
        "y = Flatten(a)",
        "y = Expand(a, one)",
        "y = Mul(a, unit)",
        "y = Div(a, unit)",
        "y = Pow(a, unit)",
        "y = Sub(a, nought)",
        "y = Add(minus, a)",
    ],
)
def test_operators_that_return_their_input_go(nodes: str) -> None:
    done = fold(
        f"""g (float[N, 3] x) => (float[N, 3] y)
            <int64[4] none = {{0, 0, 0, 0}}, int64[2] ones = {{1, 1}}, int64[1] zero = {{0}},
             int64[1] end = {{9223372036854775807}}, int64[2] same = {{0, 3}}, int64[2] open = {{-1, 3}},
             int64[1] one = {{1}}, float[1] unit = {{1.0}}, float nought = {{0.0}}, float minus = {{-0.0}}> {{
            a = Relu(x) {nodes}
        }}"""
    )
    assert done.ops == {"Relu": 1}
    assert done.after.graph.output[0].name == "y"


@pytest.mark.parametrize(
    ("nodes", "kept"),
    [
        ("b = Cast<to = 11>(a) y = Cast<to = 1>(b)", ["Cast", "Cast"]),
        ("y = Transpose<perm = [1, 0]>(a)", ["Transpose"]),
        ("y = Transpose(a)", ["Transpose"]),
        ("y = Pad(a, some)", ["Pad"]),
        ("y = Slice(a, zero, end, zero, back)", ["Slice"]),
        ("y = Slice(a, zero, two, axis)", ["Slice"]),
        ("y = Slice(a, axis, end, axis)", ["Slice"]),
        ("y = Slice(a, back, far, axis, back)", ["Slice"]),
        ("y = Reshape(a, other)", ["Reshape"]),
        ("y = Expand(a, tall)", ["Expand"]),
        ("y = Mul(a, ones)", ["Mul"]),
        ("y = Mul(a, double)", ["Mul"]),
        ("y = Add(a, nought)", ["Add"]),
        ("y = Sub(nought, a)", ["Sub"]),
        ("y = Div(unit, a)", ["Div"]),
    ],
)
def test_operators_that_do_something_stay(nodes: str, kept: list[str]) -> None:
    done = fold(
        f"""g (float[1, 3] x) => (float[M, N] y)
            <int64[4] some = {{0, 1, 0, 0}}, int64[1] zero = {{0}}, int64[1] end = {{9223372036854775807}},
             int64[1] two = {{2}}, int64[1] axis = {{1}}, int64[1] back = {{-1}}, int64[1] far = {{-9}},
             int64[2] other = {{3, 1}}, int64[2] tall = {{2, 1}},
             float[2, 1] ones = {{1, 1}}, float[1] double = {{2.0}}, float unit = {{1.0}}, float nought = {{0.0}}> {{
            a = Neg(x) {nodes}
        }}"""
    )
    assert [node.op_type for node in done.after.graph.node] == ["Neg", *kept]


def test_adding_zero_goes_where_the_sign_of_zero_is_not_seen() -> None:
    done = fold("g (float[N] x) => (float[N] y) <float z = {0.0}> { a = Add(x, z) y = Exp(a) }")
    assert done.ops == {"Exp": 1}
    seen = fold("g (float[N] x) => (float[N] y) <float z = {0.0}> { a = Add(x, z) y = Reciprocal(a) }")
    assert seen.ops == {"Add": 1, "Reciprocal": 1}
    assert seen.declined("turns -0.0 into 0.0")


def test_integers_lose_their_neutral_operands() -> None:
    done = fold(
        "g (int64[N] x) => (int64[N] y) <int64 z = {0}, int64[1] o = {1}> { a = Add(x, z) b = Mul(o, a) y = Neg(b) }"
    )
    assert done.ops == {"Neg": 1}


def test_a_neutral_operand_may_broadcast() -> None:
    nodes = [helper.make_node("Mul", ["x", "c"], ["a"]), helper.make_node("Neg", ["a"], ["y"])]
    one = numpy_helper.from_array(np.ones((1, 1), np.float32), "c")
    done = Folded(model(nodes, {"x": ["N"]}, ["y"], [one]))
    assert done.ops == {"Mul": 1, "Neg": 1}
    assert done.declined("it broadcasts")


@pytest.mark.parametrize("opset", [7, 10, 12, 13, 22])
def test_dropout_goes_in_every_operator_set(opset: int) -> None:
    nodes = [helper.make_node("Dropout", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])]
    assert Folded(model(nodes, {"x": [4]}, ["y"], [], opset=opset)).ops == {"Neg": 1}


def test_dropout_with_a_mask_or_in_training_stays() -> None:
    masked = fold("g (float[N] x) => (float[N] y, bool[N] m) { y, m = Dropout(x) }")
    assert masked.ops == {"Dropout": 1}
    assert masked.declined("its mask is used")
    nodes = [helper.make_node("Dropout", ["x", "r", "t"], ["a"]), helper.make_node("Neg", ["a"], ["y"])]
    weights = [
        numpy_helper.from_array(np.array(0, np.float32), "r"),
        numpy_helper.from_array(np.array(True, np.bool_), "t"),
    ]
    trained = Folded(model(nodes, {"x": [4]}, ["y"], weights))
    assert trained.ops == {"Dropout": 1, "Neg": 1}


def test_an_identity_between_an_input_and_an_output_stays() -> None:
    done = fold("g (float[N] x) => (float[N] y, float[N] z) { y = Identity(x) a = Neg(x) z = Identity(a) }")
    assert done.ops == {"Identity": 1, "Neg": 1}
    assert done.declined("makes a graph output from an input")


def test_one_value_with_two_output_names_keeps_one_identity() -> None:
    done = fold("g (float[N] x) => (float[N] y, float[N] z) { a = Neg(x) y = Identity(a) z = Identity(a) }")
    assert done.ops == {"Neg": 1, "Identity": 1}


def test_identities_inside_bodies_go_unless_they_pass_on_a_value_from_outside() -> None:
    done = fold(
        """g (bool c, float[N] x) => (float[N] y) {
            i = Identity(x) o = Neg(i)
            y = If(c) <
                then_branch = t () => (float[N] a) { a = Identity(o) },
                else_branch = e () => (float[N] b) { n = Neg(o) m = Identity(n) b = Identity(m) }
            >
        }"""
    )
    assert done.ops == {"If": 1, "Identity": 1, "Neg": 2}
    assert done.declined("an output of its body from a value outside")


def test_identities_inside_functions_go() -> None:
    done = fold(
        """<ir_version: 10, opset_import: ["": 21, "local": 1]>
        g (float[N] x) => (float[N] y) { y = local.f(x) }
        <domain: "local", opset_import: ["": 21]>
        f (x) => (y) { a = Identity(x) b = Neg(a) y = Identity(b) }""",
        without="functions",
    )
    assert done.ops == {"f": 1, "Neg": 1}


def test_unused_nodes_and_weights_go() -> None:
    done = fold("g (float[N] x) => (float[N] y) <float[4] w = {1, 2, 3, 4}> { a = Neg(x) b = Exp(a) y = Abs(x) }")
    assert done.ops == {"Abs": 1}
    assert done.weights == {}
    assert done.report.metrics == {"unused": 2.0}


# Shapes --------------------------------------------------------------------------------------------------------------


def test_known_shapes_become_numbers() -> None:
    done = fold(
        """g (float[2, 3, 4] x) => (float[M, N] y) <int64 i = {1}, int64[1] zero = {0}> {
            s = Shape(x) d = Gather(s, i) u = Unsqueeze(d, zero) n = Size(x) m = Div(n, d) v = Unsqueeze(m, zero)
            t = Concat<axis = 0>(u, v) y = Reshape(x, t)
        }"""
    )
    assert done.ops == {"Reshape": 1}
    assert sorted(map(list, (value.tolist() for value in done.weights.values()))) == [[3, 8]]


def test_only_the_known_part_of_a_shape_becomes_numbers() -> None:
    text = """g (float[N, 3, H] x) => (int64[K] y) <int64[1] i = {{{index}}}, int64[1] m = {{5}}> {{
        s = Shape(x) d = Gather(s, i) e = Mul(d, m) f = Abs(e) y = Neg(f)
    }}"""
    assert "Shape" not in fold(text.format(index=1)).ops
    assert "Shape" in fold(text.format(index=2)).ops


def test_a_gather_beyond_the_shape_is_left_to_fail_at_run_time() -> None:
    proto = parse(
        """g (float[2, 3] x) => (int64[K] y) <int64[1] i = {7}> { s = Shape(x) d = Gather(s, i) y = Neg(d) }"""
    )
    assert Fold().run(Model.from_proto(proto), NO_CONTEXT).changed == 0


def test_shapes_that_the_file_only_states_are_not_relied_on() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Shape", ["a"], ["s"]),
        helper.make_node("Expand", ["one", "s"], ["y"]),
    ]
    proto = model(nodes, {"x": ["N", 3]}, ["y"], [weight("one", 1)])
    proto.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 3]))
    assert Folded(proto).ops == {"Relu": 1, "Shape": 1, "Expand": 1}


def test_a_reshape_by_dynamic_batch_gets_a_constant_target() -> None:
    done = fold(
        """g (float[N, 6] x) => (float[A, B, C] y) <int64 zero = {0}, int64[1] z = {0}, int64[2] rest = {2, 3}> {
            a = Relu(x) s = Shape(a) d = Gather(s, zero) u = Unsqueeze(d, z)
            t = Concat<axis = 0>(u, rest) y = Reshape(a, t)
        }"""
    )
    assert done.ops == {"Relu": 1, "Reshape": 1}
    assert [value.tolist() for value in done.weights.values()] == [[-1, 2, 3]]


def test_two_dynamic_dimensions_are_copied() -> None:
    done = fold(
        """g (float[N, T, 6] x) => (float[A, B, C, D] y)
            <int64[1] z = {0}, int64[1] two = {2}, int64[2] rest = {2, 3}> {
            s = Shape(x) d = Slice(s, z, two) t = Concat<axis = 0>(d, rest) y = Reshape(x, t)
        }"""
    )
    assert done.ops == {"Reshape": 1}
    assert [value.tolist() for value in done.weights.values()] == [[0, 0, 2, 3]]


@pytest.mark.parametrize(
    ("wanted", "dims", "target"),
    [
        ((2, 3), None, [2, 3]),
        (("N", 3), None, [-1, 3]),
        ((None, 3), ("N", 3), [-1, 3]),
        (("N", "T", 3), ("N", "T", 3), [0, 0, 3]),
        (("N", -1), ("N", 3), [0, -1]),
        (("T", "N"), ("N", "T"), None),
        (("N", "T", None), ("N", "T", 3), [0, 0, -1]),
        (("(+ 1 N)", "T"), ("(+ 1 N)", "T"), [-1, 0]),
        ((0, 3), ("N", 3), None),
        ((None, None), ("N", 3), None),
    ],
)
def test_constant_targets(wanted: Any, dims: Any, target: list[int] | None) -> None:
    assert constant_target(wanted, dims) == target


def test_symbolic_arithmetic() -> None:
    assert (add(2, 3), add(0, "N"), add("N", 1)) == (5, "N", add(1, "N"))
    assert (subtract("N", "N"), subtract("N", 0), subtract("N", "M")) == (0, "N", "(- N M)")
    assert (multiply("N", 0), multiply(1, "N"), multiply("N", None)) == (0, "N", None)
    assert (divide(7, 2), divide(-7, 2), divide("N", 1), divide("N", 0), divide(1, 0)) == (3, None, "N", None, None)
    assert (equal("N", -1), equal("N", "N"), equal("N", 2), equal("(- N M)", -1)) == (0, 1, None, None)
    assert Ints((1, "N")).numbers is None


def test_the_idiom_of_expand_with_minus_one_is_seen_through() -> None:
    done = fold(
        """g (float[1, 4] x) => (float[A, B] y) <int64[2] w = {-1, 4}, int64[2] m = {-1, -1}> {
            s = Shape(x) e = Equal(w, m) t = Where(e, s, w) a = Expand(x, t) y = Neg(a)
        }"""
    )
    assert done.ops == {"Neg": 1}


def test_reshapes_in_a_row_become_one() -> None:
    done = fold(
        """g (float[N, 4] x) => (float[A, B, C] y) <int64[3] s = {-1, 2, 2}, int64[1] one = {1}, int64[1] three = {3}> {
            a = Reshape(x, s) b = Unsqueeze(a, three) c = Flatten<axis = 1>(b) d = Unsqueeze(c, one) y = Neg(d)
        }"""
    )
    assert done.ops == {"Reshape": 1, "Neg": 1}


def test_transposes_in_a_row_become_one_or_none() -> None:
    done = fold(
        """g (float[2, 3, 4] x) => (float[A, B, C] y, float[D, E, F] z) {
            a = Transpose<perm = [1, 2, 0]>(x) b = Transpose<perm = [0, 2, 1]>(a) y = Neg(b)
            c = Transpose(x) d = Transpose(c) z = Abs(d)
        }"""
    )
    assert done.ops == {"Transpose": 1, "Neg": 1, "Abs": 1}


def test_one_slice_and_the_axis_dropped_is_a_gather() -> None:
    text = """g (float[3, N, 4] x) => (float[A, B] y, float[C, D] z)
        <int64[1] i = {{{start}}}, int64[1] j = {{{end}}}, int64[1] k = {{0}}> {{
        a = Slice(x, i, j, k) b = Squeeze(a, k) y = Neg(b) c = Slice(x, k, j, k) z = ReduceSum<keepdims = 0>(c, k)
    }}"""
    done = fold(text.format(start=1, end=2), max_growth=16)
    assert done.ops == {"Gather": 1, "Neg": 1, "Slice": 1, "ReduceSum": 1}
    assert fold(text.format(start=1, end=2)).declined("as one Gather it would take")
    assert "Gather" not in fold(text.format(start=-1, end=3)).ops


def test_slices_of_different_axes_become_one() -> None:
    text = """g (float[5, N, 6] x) => (float[A, B, C] y)
        <int64[1] one = {{1}}, int64[1] end = {{4}}, int64[1] last = {{-1}}, int64[1] far = {{-9}},
         int64[1] axis = {{{axis}}}> {{
        a = Slice(x, one, end) b = Slice(a, last, far, axis, last) y = Neg(b)
    }}"""
    assert fold(text.format(axis=-1)).ops == {"Slice": 1, "Neg": 1}
    assert fold(text.format(axis=0)).ops == {"Slice": 2, "Neg": 1}


def test_a_transpose_of_axes_of_size_one_is_a_reshape() -> None:
    text = """g (float[N, {size}, 1, 6] x) => (float[A, B] y) <int64[2] s = {{-1, 6}}> {{
        a = Transpose<perm = [2, 0, 1, 3]>(x) b = Transpose<perm = [{perm}]>(x) c = Reshape(a, s) d = Reshape(b, s)
        y = Add(c, d)
    }}"""
    assert fold(text.format(size=2, perm="0, 1, 2, 3")).ops == {"Reshape": 1, "Add": 1}
    assert fold(text.format(size=2, perm="1, 0, 2, 3"), max_growth=16).ops == {"Transpose": 1, "Reshape": 2, "Add": 1}


def test_a_transpose_of_what_has_no_inputs_is_no_reshape() -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], value=weight("", 4, 3)),
        helper.make_node("Transpose", ["c"], ["t"]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    done = Folded(model(nodes, {"x": [2, 3]}, ["y"], [], opset=8, ir_version=3), without="constants")
    assert done.ops == {"Constant": 1, "Transpose": 1, "MatMul": 1}


def test_open_sizes_are_followed_through_reshapes_and_sums() -> None:
    done = fold(
        """g (float[N, 1, 6] x, float[1, 6] z) => (float[A, B] y)
            <int64[2] flat = {-1, 6}, int64[1] i = {0}, int64[1] six = {6}> {
            a = Reshape(x, flat) b = Add(a, z) c = Exp(b)
            s = Shape(x) d = Gather(s, i) t = Concat<axis = 0>(d, six) y = Reshape(c, t)
        }"""
    )
    assert done.ops == {"Reshape": 1, "Add": 1, "Exp": 1}


@pytest.mark.parametrize("formula", ["ConstantOfShape(n)", "Slice(w, i, j)"])
def test_states_of_zeros_are_left_out(formula: str) -> None:
    nodes = [
        helper.make_node(formula.split("(")[0], formula[formula.index("(") + 1 : -1].split(", "), ["h"]),
        helper.make_node("LSTM", ["x", "W", "R", "b", "", "h", "h"], ["y"], hidden_size=2),
    ]
    weights = [weight("W", 1, 8, 3), weight("R", 1, 8, 2), numpy_helper.from_array(np.zeros((1, 16), np.float32), "b")]
    weights += [numpy_helper.from_array(np.zeros((3, 5, 2), np.float32), "w")]
    weights += [ints("i", 1), ints("j", 2), ints("n", 1, 5, 2)]
    used = {name for node in nodes for name in node.input}
    done = Folded(model(nodes, {"x": [4, 5, 3]}, ["y"], [item for item in weights if item.name in used]))
    assert done.ops == {"LSTM": 1}
    assert list(done.after.graph.node[0].input) == ["x", "W", "R"]


@pytest.mark.parametrize("value", [1.0, -0.5])
def test_other_states_stay(value: float) -> None:
    nodes = [
        helper.make_node(
            "ConstantOfShape", ["n"], ["h"], value=helper.make_tensor("", TensorProto.FLOAT, [1], [value])
        ),
        helper.make_node("GRU", ["x", "W", "R", "", "", "h"], ["y"], hidden_size=40),
    ]
    weights = [weight("W", 1, 120, 3), weight("R", 1, 120, 40), ints("n", 1, 50, 40)]
    assert Folded(model(nodes, {"x": [4, 50, 3]}, ["y"], weights)).ops == {"ConstantOfShape": 1, "GRU": 1}


def test_biases_of_zeros_are_left_out() -> None:
    zeros = numpy_helper.from_array(np.zeros(6, np.float32), "b")
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"])]
    done = Folded(model(nodes, {"x": [2, 4, 7]}, ["y"], [weight("w", 6, 4, 3), zeros]))
    assert list(done.after.graph.node[0].input) == ["x", "w"]
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"])]
    gemm = model(nodes, {"x": [2, 4]}, ["y"], [weight("w", 4, 6), zeros], opset=9)
    assert Folded(gemm).report.changed == 0


def test_a_division_by_zero_stays_behind_a_linear_operator() -> None:
    """Scaled weights would make NaN of a product that is infinite."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Div", ["a", "d"], ["y"])]
    divisors = numpy_helper.from_array(np.array([2, 0, 4], np.float32), "d")
    read = Model.from_proto(model(nodes, {"x": [5, 4]}, ["y"], [weight("w", 4, 3), divisors]))
    report = Fold().run(read, NO_CONTEXT)
    assert [skip.reason for skip in report.skipped] == ["affine: it divides by the output, or by zero"]
    assert [node.op for node in read.graph.nodes] == ["MatMul", "Div"]


# Linear operators ----------------------------------------------------------------------------------------------------


def normalized(
    op: str, shape: tuple[int, ...], channels: int, *, kind: int = TensorProto.FLOAT, opset: int = 17, **attrs: Any
) -> onnx.ModelProto:
    """Return a linear operator with a batch normalization behind it."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    bias = attrs.pop("bias", True)
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    nodes = [
        helper.make_node(op, inputs, ["a"], **attrs),
        helper.make_node("BatchNormalization", ["a", "g", "s", "m", "v"], ["n"], epsilon=1e-3),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    weights = [weight("w", *shape, dtype=dtype), weight("b", channels, dtype=dtype, seed=1)][: 1 + bias]
    weights += [weight(name, channels, dtype=dtype, seed=i, low=0.1) for i, name in enumerate("gsmv", 2)]
    ins = shape[1] * attrs.get("group", 1) if op == "Conv" else shape[1 if attrs.get("transB") else 0]
    dims: list[int | str] = ["N", ins, *[7] * (len(shape) - 2)]
    return model(nodes, {"x": dims}, ["y"], weights, kind=kind, opset=opset)


@pytest.mark.parametrize(
    "proto",
    [
        normalized("Conv", (6, 4, 3), 6),
        normalized("Conv", (6, 4, 3, 3), 6, bias=False),
        normalized("Conv", (6, 2, 3, 3), 6, group=2, pads=[1, 1, 1, 1]),
        normalized("Conv", (6, 1, 3, 3, 3), 6, group=6),
        normalized("ConvTranspose", (4, 6, 3, 3), 6, strides=[2, 2]),
        normalized("ConvTranspose", (4, 3, 3), 6, group=2, bias=False),
        normalized("Gemm", (4, 6), 6),
        normalized("Gemm", (6, 4), 6, transB=1, alpha=0.5, beta=2.0),
        normalized("Gemm", (4, 6), 6, bias=False),
        normalized("Conv", (6, 4, 3), 6, kind=TensorProto.DOUBLE)
        if False
        else normalized("Conv", (6, 4, 3), 6, opset=9),
        normalized("Conv", (6, 4, 3), 6, opset=7),
    ],
)
def test_batch_normalization_moves_into_the_operator_before(proto: onnx.ModelProto) -> None:
    done = Folded(proto, tolerance=1e-4)
    assert done.ops == {proto.graph.node[0].op_type: 1, "Relu": 1}
    assert done.report.metrics["batch-norm"] == 1
    assert len(done.weights) == 2


def test_batch_normalization_in_half_precision() -> None:
    done = Folded(normalized("Conv", (6, 4, 3, 3), 6, kind=TensorProto.FLOAT16), tolerance=2e-2)
    assert done.ops == {"Conv": 1, "Relu": 1}
    assert {value.dtype for value in done.weights.values()} == {np.dtype(np.float16)}


def test_batch_normalization_stays_where_the_weights_would_overflow() -> None:
    proto = normalized("Conv", (6, 4, 3, 3), 6, kind=TensorProto.FLOAT16)
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.full(6, 60000, np.float16), "g"))
    proto.graph.initializer[5].CopyFrom(numpy_helper.from_array(np.zeros(6, np.float16), "v"))
    done = Folded(proto, tolerance=1e-1)
    assert "BatchNormalization" in done.ops
    assert done.declined("would not be finite")


def test_batch_normalization_stays_where_others_need_what_would_change() -> None:
    shared = normalized("Conv", (6, 4, 3), 6)
    shared.graph.node.append(helper.make_node("Conv", ["x", "w"], ["z"]))
    shared.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    done = Folded(shared)
    assert done.ops == {"Conv": 2, "BatchNormalization": 1, "Relu": 1}
    assert done.declined("its weight is used elsewhere too")

    read = normalized("Conv", (6, 4, 3), 6)
    read.graph.output.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, None))
    done = Folded(read)
    assert "BatchNormalization" in done.ops
    assert done.declined("the output of Conv is used elsewhere too")


def test_batch_normalization_stays_where_the_weight_may_be_overridden() -> None:
    proto = normalized("Conv", (6, 4, 3), 6)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [6, 4, 3]))
    done = Folded(proto)
    assert done.ops == {"Conv": 1, "BatchNormalization": 1, "Relu": 1}
    assert done.declined("its weight is computed at run time")


def test_batch_normalization_that_is_an_output_keeps_its_name() -> None:
    proto = normalized("Conv", (6, 4, 3), 6)
    del proto.graph.node[2]
    proto.graph.output[0].name = "n"
    done = Folded(proto)
    assert done.ops == {"Conv": 1}
    assert done.after.graph.node[0].output == ["n"]


@pytest.mark.parametrize(
    ("op", "shape", "constant", "fits"),
    [
        ("Mul", (6, 4, 3, 3), (6, 1, 1), True),
        ("Mul", (6, 4, 3, 3), (1, 6, 1, 1), True),
        ("Mul", (6, 4, 3, 3), (1,), True),
        ("Add", (6, 4, 3, 3), (), False),
        ("Add", (6, 4, 3, 3), (6, 1, 1), True),
        ("Sub", (6, 4, 3, 3), (6, 1, 1), True),
        ("Div", (6, 4, 3, 3), (6, 1, 1), True),
        ("Mul", (5, 4, 3, 3), (5,), False),
        ("Add", (5, 4, 3, 3), (5, 5), False),
        ("Add", (1, 4, 3, 3), (6, 1, 1), False),
        ("Add", (6, 4, 3, 3), (1, 1, 6, 1, 1), False),
    ],
)
def test_constants_move_into_the_convolution_before(
    op: str, shape: tuple[int, ...], constant: tuple[int, ...], fits: bool
) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node(op, ["a", "c"], ["y"])]
    proto = model(nodes, {"x": ["N", 4, 7, 7]}, ["y"], [weight("w", *shape), weight("c", *constant, seed=1, low=0.5)])
    done = Folded(proto, tolerance=1e-4)
    assert done.ops == ({"Conv": 1} if fits else {"Conv": 1, op: 1})


@pytest.mark.parametrize("op", ["Mul", "Add", "Sub"])
def test_the_constant_may_come_first(op: str) -> None:
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["a"]), helper.make_node(op, ["c", "a"], ["y"])]
    weights = [weight("w", 6, 4, 3, 3), weight("b", 6, seed=2), weight("c", 6, 1, 1, seed=1)]
    assert Folded(model(nodes, {"x": [2, 4, 7, 7]}, ["y"], weights), tolerance=1e-4).ops == {"Conv": 1}


def test_a_constant_divided_by_the_convolution_stays() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Div", ["c", "a"], ["y"])]
    done = Folded(
        model(nodes, {"x": [2, 4, 7, 7]}, ["y"], [weight("w", 6, 4, 3, 3), weight("c", 6, 1, 1)]), tolerance=1e-3
    )
    assert done.ops == {"Conv": 1, "Div": 1}


def test_a_shift_needs_no_constant_weight() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "c"], ["y"])]
    proto = model(nodes, {"x": [2, 4, 7, 7], "w": [6, 4, 3, 3]}, ["y"], [weight("c", 6, 1, 1)])
    assert Folded(proto, tolerance=1e-4).ops == {"Conv": 1}


def test_factors_move_into_matrix_products() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["a", "c"], ["b"]),
        helper.make_node("Div", ["b", "d"], ["y"]),
    ]
    weights = [weight("w", 4, 6), weight("c", 6), numpy_helper.from_array(np.array(8, np.float32), "d")]
    assert Folded(model(nodes, {"x": ["N", 3, 4]}, ["y"], weights), tolerance=1e-4).ops == {"MatMul": 1}


def test_a_product_of_matrices_and_its_bias_is_a_gemm() -> None:
    text = """g (float[N, 2] x) => (float[A, B] y) <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {5, 6}> {
        a = MatMul(x, w) y = Add(b, a)
    }"""
    assert fold(text).ops == {"Gemm": 1}
    assert fold(text.replace("[N, 2] x", "[N, 3, 2] x").replace("[A, B] y", "[A, B, C] y")).ops == {
        "MatMul": 1,
        "Add": 1,
    }
    assert fold(text.replace("[2] b = {5, 6}", "[1] b = {5}")).ops == {"MatMul": 1, "Add": 1}
    assert fold(text.replace("float", "int32")).ops == {"MatMul": 1, "Add": 1}


@pytest.mark.parametrize("opset", [9, 11, 18])
def test_padding_moves_into_the_convolution(opset: int) -> None:
    attrs: dict[str, Any] = {"pads": [0, 0, 1, 2, 0, 0, 3, 0]} if opset < 11 else {}
    inputs = ["x"] if opset < 11 else ["x", "p"]
    nodes = [
        helper.make_node("Pad", inputs, ["a"], **attrs),
        helper.make_node("Conv", ["a", "w"], ["y"], pads=[1, 1, 1, 1]),
    ]
    weights = [weight("w", 6, 4, 3, 3), *([] if opset < 11 else [ints("p", 0, 0, 1, 2, 0, 0, 3, 0)])]
    done = Folded(model(nodes, {"x": [2, 4, 7, 7]}, ["y"], weights, opset=opset), tolerance=1e-4)
    assert done.ops == {"Conv": 1}
    assert list(done.after.graph.node[0].attribute[0].ints) == [2, 3, 4, 1]


@pytest.mark.parametrize(
    ("pads", "value", "mode", "auto_pad"),
    [
        ([0, 0, 1, 1, 0, 0, 1, 1], 1.0, "constant", "NOTSET"),
        ([0, 1, 1, 1, 0, 0, 1, 1], 0.0, "constant", "NOTSET"),
        ([0, 0, -1, 1, 0, 0, 1, 1], 0.0, "constant", "NOTSET"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, "reflect", "NOTSET"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, "constant", "SAME_UPPER"),
    ],
)
def test_other_padding_stays(pads: list[int], value: float, mode: str, auto_pad: str) -> None:
    nodes = [
        helper.make_node("Pad", ["x", "p", "v"], ["a"], mode=mode),
        helper.make_node("Conv", ["a", "w"], ["y"], auto_pad=auto_pad),
    ]
    channels = 4 + pads[1] + pads[5]
    weights = [
        weight("w", 6, channels, 3, 3),
        ints("p", *pads),
        numpy_helper.from_array(np.array(value, np.float32), "v"),
    ]
    assert Folded(model(nodes, {"x": [2, 4, 7, 7]}, ["y"], weights), tolerance=1e-4).ops == {"Pad": 1, "Conv": 1}


NORM = """g (float[N, 8] x) => (float[N, 8] y) <float two = {2}, float eps = {0.00001},
        float[8] g = {1, 2, 3, 4, 5, 6, 7, 8}, float[8] b = {8, 7, 6, 5, 4, 3, 2, 1}> {
    m = ReduceMean<axes = [-1]>(x) c = Sub(x, m) p = Pow(c, two) v = ReduceMean<axes = [-1]>(p) e = Add(eps, v)
    s = Sqrt(e) d = Div(c, s) h = Mul(g, d) y = Add(h, b)
}"""


def test_a_written_out_normalization_becomes_the_operator() -> None:
    header = '<ir_version: 8, opset_import: ["": 17]>\n'
    done = fold(header + NORM)
    assert done.ops == {"LayerNormalization": 1}
    assert fold(header + NORM.replace("Pow(c, two)", "Mul(c, c)")).ops == {"LayerNormalization": 1}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("float two = {2}", "float two = {4}"),
        ("axes = [-1]>(p)", "axes = [0]>(p)"),
        ("Sub(x, m)", "Sub(m, x)"),
        ("Div(c, s)", "Div(x, s)"),
        ("float[8] g = {1, 2, 3, 4, 5, 6, 7, 8}", "float g = {2}"),
        ("=> (float[N, 8] y)", "=> (float[N, 8] y, float[N, 8] d)"),
    ],
)
def test_what_is_no_normalization_stays(old: str, new: str) -> None:
    text = '<ir_version: 8, opset_import: ["": 17]>\n' + NORM
    assert old in text
    assert "LayerNormalization" not in fold(text.replace(old, new), tolerance=1e-4).ops


# Structure -----------------------------------------------------------------------------------------------------------


def test_equal_nodes_become_one() -> None:
    done = fold(
        """g (float[N] x) => (float[N] y, float[N] z) <float a = {2}, float b = {2}> {
            p = Mul(x, a) q = Mul(b, x) r = Exp(p) y = Exp(q) s = Neg(r) t = Neg(y) z = Add(s, t)
        }"""
    )
    assert done.ops == {"Mul": 1, "Exp": 1, "Neg": 1, "Add": 1}


def test_equal_nodes_in_a_body_and_around_it_become_one() -> None:
    done = fold(
        """g (bool c, float[N] x) => (float[N] y, float[N] z) {
            y = If(c) <
                then_branch = t () => (float[N] a) { p = Exp(x) a = Neg(p) },
                else_branch = e () => (float[N] b) { b = Exp(x) }
            >
            e = Exp(x) z = Abs(e)
        }"""
    )
    assert done.ops == {"If": 1, "Exp": 2, "Neg": 1, "Abs": 1}


def test_nodes_that_differ_stay_apart() -> None:
    done = fold(
        """g (float[N, 2] x) => (float[N, 2] y) {
            a = Softmax<axis = 0>(x) b = Softmax<axis = 1>(x)
            c = RandomNormalLike<seed = 1.0>(x) d = RandomNormalLike<seed = 1.0>(x)
            e = Sub(c, c) f = Sub(d, d) g = Add(e, f) h = Sub(a, b) y = Add(g, h)
        }""",
        tolerance=1e-4,
    )
    assert done.ops["Softmax"] == 2
    assert done.ops["RandomNormalLike"] == 2


@pytest.mark.parametrize(("condition", "op"), [("true", "Neg"), ("false", "Exp")])
def test_a_choice_already_made_is_inlined(condition: str, op: str) -> None:
    flag = helper.make_tensor("c", TensorProto.BOOL, [], [condition == "true"])
    proto = fold_if()
    proto.graph.initializer.append(flag)
    done = Folded(proto)
    assert done.ops == {op: 1, "Abs": 1, "Add": 1}


def fold_if() -> onnx.ModelProto:
    """Return an If whose branches use the names of the graph around it."""
    bodies = [
        helper.make_graph(
            [helper.make_node(op, ["x"], ["a"]), helper.make_node("Identity", ["a"], ["o"])],
            op,
            [],
            [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
        )
        for op in ("Neg", "Exp")
    ]
    nodes = [
        helper.make_node("If", ["c"], ["r"], then_branch=bodies[0], else_branch=bodies[1]),
        helper.make_node("Abs", ["x"], ["b"]),
        helper.make_node("Add", ["r", "b"], ["y"]),
    ]
    return model(nodes, {"x": [4]}, ["y"], [])


def test_two_inlined_choices_do_not_clash() -> None:
    proto = fold_if()
    second = onnx.NodeProto()
    second.CopyFrom(proto.graph.node[0])
    second.output[0] = "r2"
    proto.graph.node.insert(1, second)
    proto.graph.node[2].input[0] = "r2"
    proto.graph.initializer.append(helper.make_tensor("c", TensorProto.BOOL, [], [True]))
    assert Folded(proto, without="equal-nodes").ops == {"Neg": 2, "Abs": 1, "Add": 1}


def test_a_branch_that_passes_on_a_value_from_outside_is_inlined() -> None:
    done = fold(
        """g (float[N] x) => (float[N] y) <bool c = {1}> {
            y = If(c) <
                then_branch = t () => (float[N] a) { a = Identity(x) },
                else_branch = e () => (float[N] b) { b = Neg(x) }
            >
        }"""
    )
    assert done.ops == {"Identity": 1}


def test_loops_keep_their_results() -> None:
    done = fold(
        """g (float[2] x) => (float[2] y) <int64 n = {3}, bool c = {1}> {
            y = Loop(n, c, x) <body = b (int64 i, bool k, float[2] u) => (bool k2, float[2] v) {
                k2 = Identity(k) w = Identity(u) one = Constant<value_float = 1.0>() s = Mul(w, one) v = Exp(s)
            }>
        }"""
    )
    assert done.ops == {"Loop": 1, "Identity": 1, "Exp": 1}
