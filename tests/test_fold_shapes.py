"""Rules about the shapes around operators: splits, reductions, axes of size 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.foldcase import Folded, fold, ints, model, weight

# Slices to a split ---------------------------------------------------------------------------------------------------

THIRDS = """g (float[N, 6] x) => (float[N, 2] a, float[N, 2] b, float[N, 2] c)
    <int64[1] o = {0}, int64[1] p = {2}, int64[1] q = {4}, int64[1] r = {-2}, int64[1] e = {9223372036854775807},
     int64[1] k = {1}, int64[1] s = {2}> {
    a = Slice(x, o, p, k) c = Slice(x, r, e, k) b = Slice(x, p, q, k)
}"""


@pytest.mark.parametrize("opset", [10, 12, 13, 18])
def test_slices_that_share_out_an_axis_become_a_split(opset: int) -> None:
    done = fold(f'<ir_version: 8, opset_import: ["": {opset}]>\n{THIRDS}')
    assert done.ops == {"Split": 1}
    assert list(done.after.graph.node[0].output) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Slice(x, p, q, k)", "Slice(x, p, e, k)"),  # overlaps
        ("int64[1] r = {-2}", "int64[1] r = {-1}"),  # leaves a gap
        ("Slice(x, p, q, k)", "Slice(x, q, q, k)"),  # is empty
        ("Slice(x, p, q, k)", "Slice(x, p, q, k, s)"),  # steps
        ("float[N, 6]", "float[N, M]"),
    ],
)
def test_other_slices_stay(old: str, new: str) -> None:
    assert old in THIRDS
    text = THIRDS.replace(old, new).replace("float[N, 2]", "float[A, B]")
    assert "Split" not in fold(text, sizes={"N": 2, "M": 6}).ops


# Convolutions over an axis of size 1 ---------------------------------------------------------------------------------


def narrow(weights: Any, axis: int = 2, **attrs: Any) -> Any:
    nodes = [
        helper.make_node("Unsqueeze", ["x", "a"], ["u"]),
        helper.make_node("Conv", ["u", "w", "b"], ["v"], **attrs),
        helper.make_node("Squeeze", ["v", "a"], ["y"]),
    ]
    return model(nodes, {"x": ["N", 4, 9]}, ["y"], [weights, weight("b", 6, seed=2), ints("a", axis)])


@pytest.mark.parametrize(
    ("weights", "axis", "attrs"),
    [
        (weight("w", 6, 4, 1, 3), 2, {"pads": [0, 1, 0, 2], "strides": [2, 1], "dilations": [1, 2]}),
        (weight("w", 6, 4, 3, 1), 3, {"pads": [1, 0, 1, 0], "kernel_shape": [3, 1]}),
        (weight("w", 6, 4, 3, 1), -1, {"auto_pad": "SAME_UPPER"}),
        (weight("w", 6, 2, 1, 3), 2, {"group": 2}),
    ],
)
def test_a_convolution_loses_the_axis_that_was_made_for_it(weights: Any, axis: int, attrs: dict[str, Any]) -> None:
    assert Folded(narrow(weights, axis, **attrs)).ops == {"Conv": 1}


@pytest.mark.parametrize(
    ("weights", "attrs"),
    [(weight("w", 6, 4, 1, 3), {"pads": [1, 0, 0, 0]}), (weight("w", 6, 4, 2, 3), {"pads": [1, 0, 1, 0]})],
)
def test_a_padded_axis_stays(weights: Any, attrs: dict[str, Any]) -> None:
    if attrs["pads"][0] and weights.dims[2] == 1:
        proto = narrow(weights, **attrs)
        del proto.graph.node[2]
        proto.graph.node[1].output[0] = "y"
        assert Folded(proto).ops == {"Unsqueeze": 1, "Conv": 1}
        return
    proto = narrow(weights, **attrs)
    proto.graph.node[2].op_type = "Identity"
    del proto.graph.node[2].input[1]
    assert "Unsqueeze" in Folded(proto).ops


def test_a_shared_weight_keeps_its_axis() -> None:
    proto = narrow(weight("w", 6, 4, 1, 3))
    proto.graph.node.append(helper.make_node("Neg", ["w"], ["z"]))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    done = Folded(proto, without="constants")
    assert done.ops["Unsqueeze"] == 1
    assert done.declined("used elsewhere too")


def test_the_axis_is_carried_past_a_transposition() -> None:
    nodes = [
        helper.make_node("Unsqueeze", ["x", "before"], ["u"]),
        helper.make_node("Transpose", ["u"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w"], ["v"]),
        helper.make_node("Squeeze", ["v", "after"], ["y"]),
    ]
    weights = [weight("w", 6, 4, 1, 3), ints("before", 1), ints("after", 2)]
    assert Folded(model(nodes, {"x": ["N", 9, 4]}, ["y"], weights)).ops == {"Transpose": 1, "Conv": 1}


# Reductions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize(
    ("nodes", "left"),
    [
        ("p = GlobalAveragePool(x) y = Flatten(p)", "ReduceMean"),
        ("p = GlobalMaxPool(x) y = Reshape(p, flat)", "ReduceMax"),
    ],
)
def test_a_pool_and_the_flattening_after_it_become_a_reduction(nodes: str, left: str, opset: int) -> None:
    text = f"g (float[N, 3, 4, 5] x) => (float[N, 3] y) <int64[2] flat = {{-1, 3}}> {{ {nodes} }}"
    assert fold(f'<ir_version: 8, opset_import: ["": {opset}]>\n{text}', max_growth=64).ops == {left: 1}


@pytest.mark.parametrize(
    ("nodes", "rank"),
    [
        ("p = ReduceMax<axes = [1], keepdims = 0>(x) y = Reshape(p, column)", 3),
        ("p = ReduceL2<axes = [2], keepdims = 0>(x) y = Unsqueeze(p, last)", 3),
        ("p = ReduceSum(x, last) y = Squeeze(p, last)", 2),
        ("p = ReduceMean<axes = [1, 2]>(x) y = Flatten<axis = 1>(p)", 2),
    ],
)
def test_a_reduction_keeps_the_axes_that_are_wanted(nodes: str, rank: int) -> None:
    text = f"""g (float[N, 3, 4] x) => ({"float[A, B, C]" if rank == 3 else "float[A, B]"} y)
        <int64[3] column = {{-1, 1, 4}}, int64[1] last = {{2}}> {{ {nodes} }}"""
    done = fold(f'<ir_version: 8, opset_import: ["": 17]>\n{text}', max_growth=64)
    assert sum(done.ops.values()) == (1 if "[1, 2]" not in nodes else 2)


def test_a_reduction_that_others_read_stays() -> None:
    text = (
        "g (float[N, 3] x) => (float[N] p, float[N, 1] y) <int64[1] last = {1}> { p = ReduceSum<keepdims = 0>(x, last)"
    )
    done = fold(f'<ir_version: 8, opset_import: ["": 17]>\n{text} y = Unsqueeze(p, last) }}')
    assert done.ops == {"ReduceSum": 1, "Unsqueeze": 1}


def test_squeezed_axes_are_reduced_away() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 1, T] x) => (float[N, 1] y) <int64[1] one = {1}> {
            r = Relu(x) s = Squeeze(r, one) m = ReduceMean<axes = [1], keepdims = 0>(s) y = Unsqueeze(m, one)
        }"""
    assert fold(text, sizes={"N": 2, "T": 5}).ops == {"Relu": 1, "ReduceMean": 1}


# Axes of size 1 in front ---------------------------------------------------------------------------------------------


def test_leading_axes_that_broadcasting_adds_go() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[S, 4] x, float[B, 2, S, 4] z) => (float[B, 2, S, 4] y) <int64[2] front = {0, 1}> {
            c = Cos(x) u = Unsqueeze(c, front) y = Mul(z, u)
        }"""
    assert fold(text).ops == {"Cos": 1, "Mul": 1}
    assert "Unsqueeze" in fold(text.replace("{0, 1}", "{0, 2}")).ops
    assert "Unsqueeze" in fold(text.replace("y = Mul(z, u)", "w = Exp(u) y = Mul(z, w)")).ops
    assert "Unsqueeze" in fold(text.replace("Mul(z, u)", "Concat<axis = 0>(u, z)").replace("B, 2", "1, 1")).ops


def test_leading_axes_that_nobody_else_adds_stay() -> None:
    """What they are added to has one axis less: the result would lose it."""
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[4] x, float[S, 4] z) => (float[1, S, 4] y) <int64[2] front = {0, 1}> {
            c = Cos(x) u = Unsqueeze(c, front) y = Mul(z, u)
        }"""
    assert fold(text).ops == {"Cos": 1, "Unsqueeze": 1, "Mul": 1}


@pytest.mark.parametrize(("index", "left"), [("int64[2] index = {0, 0}", 2), ("int64 index = {0}", 1)])
def test_gathering_along_an_axis_of_one_is_a_reshape_only_for_one_element(index: str, left: int) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[1, 6] x) => (float[A, 3] y) <{index}, int64[2] shape = {{-1, 3}}> {{
            c = Cos(x) a = Gather<axis = 0>(c, index) y = Reshape(a, shape)
        }}"""
    assert sum(fold(text).ops.values()) == 1 + left


# Softmax -------------------------------------------------------------------------------------------------------------

SOFTMAX = """<ir_version: 8, opset_import: ["": 15]>
    g (float[N, 4] x) => (float[N, 4] y) <int64[1] last = {1}, float low = {-inf}, int64[2] column = {-1, 1}> {
        m = ReduceMax<axes = [1], keepdims = 0>(x) n = Max(low, m) r = Reshape(n, column) c = Sub(x, r) e = Exp(c)
        s = ReduceSum<keepdims = 1>(e, last) y = Div(e, s)
    }"""


def test_a_written_out_softmax_becomes_the_operator() -> None:
    assert fold(SOFTMAX).ops == {"Softmax": 1}


@pytest.mark.parametrize(
    ("old", "new"),
    [("int64[1] last = {1}", "int64[1] last = {0}"), ("Sub(x, r)", "Sub(r, x)"), ("{-inf}", "{0.0}")],
)
def test_what_is_no_softmax_stays(old: str, new: str) -> None:
    assert "Softmax" not in fold(SOFTMAX.replace(old, new)).ops


@pytest.mark.parametrize(("op", "neutral"), [("Max", -np.inf), ("Min", np.inf)])
def test_infinite_bounds_go(op: str, neutral: float) -> None:
    nodes = [helper.make_node(op, ["c", "x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])]
    for value, left in ((neutral, 1), (-neutral, 2), (0.0, 2)):
        bound = numpy_helper.from_array(np.array(value, np.float32), "c")
        assert sum(Folded(model(nodes, {"x": ["N"]}, ["y"], [bound])).ops.values()) == left


# Gathering the only element ------------------------------------------------------------------------------------------


def test_the_only_element_of_a_reshaped_scalar_is_the_scalar() -> None:
    text = """g (int64 s) => (bool y) <int64[1] any = {-1}, int64 o = {0}, int64 c = {7}> {
        r = Reshape(s, any) e = Gather(r, o) y = Equal(e, c)
    }"""
    assert fold(text).ops == {"Equal": 1}
