"""Constants, options and the promises of fold; `test_fold_rules.py` has the rules."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import SpecError
from graphopt.model import Model
from graphopt.passes.fold import Fold
from graphopt.spec import parse_pass
from tests.foldcase import NO_CONTEXT, Folded, fold, ints, model, weight
from tests.helpers import parse

# Options --------------------------------------------------------------------------------------------------------------


def test_unknown_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no rule 'nope'.*constants, functions, equal-nodes, .*batch-norm"):
        Fold(without="no-op+nope")
    with pytest.raises(SpecError, match="no rule 'nope'"):
        parse_pass("fold:without=nope")
    with pytest.raises(ValueError, match="max-growth is -1"):
        Fold(max_growth=-1)


def test_rules_can_be_switched_off() -> None:
    text = "g (float[N] x) => (float[N] y) { a = Identity(x) b = Constant<value_float = 2.0>() y = Mul(a, b) }"
    assert fold(text).ops == {"Mul": 1}
    assert fold(text, without="no-op").ops == {"Identity": 1, "Mul": 1}
    assert fold(text, without="no-op+lift-constant").report.changed == 0


def test_nothing_to_do_leaves_the_model_as_it_is() -> None:
    done = fold("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    assert (done.report.changed, dict(done.report.metrics)) == (0, {})


# Constants ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "constant",
    [
        "Constant<value = float[2] {1, 2}>()",
        "Constant<value_floats = [1.0, 2.0]>()",
        "Constant<value_float = 3.0>()",
    ],
)
def test_float_constants_become_initializers(constant: str) -> None:
    done = fold(f"g (float[N, 2] x) => (float[N, 2] y) {{ c = {constant} y = Mul(x, c) }}")
    assert done.ops == {"Mul": 1}
    assert [tensor.name for tensor in done.after.graph.initializer] == ["c"]


@pytest.mark.parametrize("constant", ["<value_int = 3>", "<value_ints = [3, 4]>", "<value = int64[2] {3, 4}>"])
def test_integer_constants_become_initializers(constant: str) -> None:
    done = fold(f"g (int64[N, 2] x) => (int64[N, 2] y) {{ c = Constant{constant}() y = Mul(x, c) }}")
    assert done.ops == {"Mul": 1}


def test_sparse_and_text_constants_become_initializers() -> None:
    values = numpy_helper.from_array(np.array([5, 6], np.float32), "v")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([1, 3], np.int64), "i"), [4])
    nodes = [
        helper.make_node("Constant", [], ["c"], sparse_value=sparse),
        helper.make_node("Mul", ["x", "c"], ["y"]),
    ]
    assert Folded(model(nodes, {"x": ["N", 4]}, ["y"], [])).ops == {"Mul": 1}


def test_a_constant_that_is_an_output_stays_a_node() -> None:
    done = fold("g (float[N] x) => (float[N] y, float c) { c = Constant<value = float {2}>() y = Mul(x, c) }")
    assert done.ops == {"Constant": 1, "Mul": 1}


def test_up_to_ir_version_3_no_initializer_appears() -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], value=weight("", 4)),
        helper.make_node("Neg", ["c"], ["d"]),
        helper.make_node("Add", ["x", "d"], ["y"]),
    ]
    done = Folded(model(nodes, {"x": ["N", 4]}, ["y"], [], opset=8, ir_version=3))
    assert done.ops == {"Constant": 1, "Add": 1}
    assert not done.after.graph.initializer
    assert done.declined("up to IR version 3")


def test_subgraphs_of_constants_are_computed() -> None:
    done = fold(
        """g (float[N, 4] x) => (float[N, 4] y)
            <float[2, 2] a = {1, 2, 3, 4}, int64[1] shape = {4}, float[4] b = {1, 1, 1, 2}> {
            t = Transpose(a)
            r = Reshape(t, shape)
            s = Add(r, b)
            y = Mul(x, s)
        }"""
    )
    assert done.ops == {"Mul": 1}
    assert done.report.metrics == {"constants": 1.0}
    assert [tensor.name for tensor in done.after.graph.initializer] == ["s"]


def test_constants_in_bodies_are_computed_in_the_same_session() -> None:
    done = fold(
        """g (bool c, float[4] x) => (float[4] y) <float[4] w = {1, 2, 3, 4}> {
            y = If(c) <
                then_branch = t () => (float[4] a) { n = Neg(w) a = Mul(x, n) },
                else_branch = e () => (float[4] b) { n = Constant<value_float = 2.0>() m = Sqrt(n) b = Mul(x, m) }
            >
        }"""
    )
    assert done.ops == {"If": 1, "Mul": 2}


def test_constants_in_functions_are_computed() -> None:
    done = fold(
        """<ir_version: 10, opset_import: ["": 21, "local": 1]>
        g (float[4] x) => (float[4] y) { y = local.f(x) }
        <domain: "local", opset_import: ["": 21]>
        f (x) => (y) { c = Constant<value_float = 4.0>() d = Sqrt(c) e = Identity(x) y = Mul(e, d) }""",
        without="functions",
    )
    assert done.ops == {"f": 1, "Mul": 1}
    assert [node.op_type for node in done.after.functions[0].node] == ["Constant", "Mul"]


def test_outputs_that_are_constant_keep_their_name() -> None:
    done = fold(
        """g (float[N] x) => (float[2] y, float[N] z) <float[2] a = {1, 2}, float[2] b = {3, 4}> {
            t = Add(a, b) y = Mul(t, b) z = Neg(x)
        }"""
    )
    assert done.ops == {"Constant": 1, "Neg": 1}


@pytest.mark.parametrize(
    "formula",
    [
        "big = Expand(one, shape)",
        "big = ConstantOfShape(shape)",
        "big = Tile(row, times)",
    ],
)
def test_what_is_small_as_a_formula_stays_a_formula(formula: str) -> None:
    done = fold(
        f"""g (float[64, 64] x) => (float[64, 64] y)
            <float[1] one = {{1.5}}, int64[2] shape = {{64, 64}}, float[1, 64] row = {{{", ".join(["1"] * 64)}}},
             int64[2] times = {{64, 1}}> {{
            {formula} y = Add(x, big)
        }}"""
    )
    assert done.report.changed >= 1  # the weights that this formula does not use
    assert formula.split(" = ")[1].split("(")[0] in done.ops
    assert done.declined("bytes more than what it is computed from")


def test_what_goes_into_a_formula_is_computed() -> None:
    done = fold(
        """g (float[64, 64] x) => (float[64, 64] y) <float[1] one = {1.5}, int64[1] n = {64}> {
            shape = Concat<axis = 0>(n, n) big = Expand(one, shape) y = Add(x, big)
        }"""
    )
    assert done.ops == {"Expand": 1, "Add": 1}


def test_a_tied_weight_is_not_stored_twice() -> None:
    nodes = [
        helper.make_node("Gather", ["w", "i"], ["e"]),
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["e", "t"], ["y"]),
    ]
    proto = model(nodes, {}, ["y"], [weight("w", 64, 32)])
    proto.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, ["N"]))
    done = Folded(proto, tolerance=1e-4)
    assert done.ops == {"Gather": 1, "Transpose": 1, "MatMul": 1}
    assert done.declined("bytes more than what it is computed from")
    grown = Folded(proto, tolerance=1e-4, max_growth=1 << 20)
    assert grown.ops == {"Gather": 1, "Transpose": 1, "MatMul": 1}  # no single result may take a kilobyte more


def test_results_that_share_a_weight_are_judged_together() -> None:
    nodes = [
        helper.make_node("Slice", ["w", "s0", "s1", "s0"], ["a"]),
        helper.make_node("Slice", ["w", "s1", "s2", "s0"], ["b"]),
        helper.make_node("MatMul", ["x", "a"], ["p"]),
        helper.make_node("MatMul", ["x", "b"], ["q"]),
        helper.make_node("Add", ["p", "q"], ["y"]),
    ]
    bounds = [ints("s0", 0), ints("s1", 16), ints("s2", 32)]
    done = Folded(model(nodes, {"x": ["N", 16]}, ["y"], [weight("w", 32, 16), *bounds]), tolerance=1e-4)
    assert done.ops == {"MatMul": 2, "Add": 1}


def test_quantized_weights_stay_quantized() -> None:
    done = fold(
        """g (float[N, 2] x) => (float[N, 2] y) <int8[2, 2] q = {1, 2, 3, 4}, float s = {0.5}> {
            w = DequantizeLinear(q, s) y = MatMul(x, w)
        }"""
    )
    assert done.report.changed == 0


def test_packed_weights_stay_packed() -> None:
    codes = numpy_helper.from_array(np.arange(4096, dtype=np.uint8).reshape(64, 64), "codes")
    nodes = [
        helper.make_node("Cast", ["codes"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    done = Folded(model(nodes, {"x": ["N", 64]}, ["y"], [codes]))
    assert done.ops == {"Cast": 1, "MatMul": 1}


def test_random_operators_are_not_computed() -> None:
    proto = parse("g (float[4] x) => (float[4] y) { r = RandomNormal<shape = [4]>() z = Sub(r, r) y = Add(x, z) }")
    done = Fold().run(Model.from_proto(proto), NO_CONTEXT)
    assert done.changed == 0


def test_weights_that_a_caller_may_override_are_no_constants() -> None:
    proto = parse("g (float[4] x, float[4] w) => (float[4] y) <float[4] w = {1, 2, 3, 4}> { n = Neg(w) y = Add(x, n) }")
    assert Folded(proto).ops == {"Neg": 1, "Add": 1}


def test_an_operator_that_the_runtime_refuses_is_named_and_the_rest_is_computed() -> None:
    nodes = [
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Add", ["x", "b"], ["u"]),
        helper.make_node("Reshape", ["k", "wrong"], ["c"], name="culprit"),
        helper.make_node("Shape", ["c"], ["n"]),
        helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["f"], ["d"]),
        helper.make_node("Add", ["u", "d"], ["y"]),
    ]
    loaded = Model.from_proto(model(nodes, {"x": [4]}, ["y"], [weight("a", 4), weight("k", 4), ints("wrong", 3, -1)]))
    report = Fold().run(loaded, NO_CONTEXT)
    assert report.metrics["constants"] == 1
    assert any("'culprit' (Reshape)" in skip.reason for skip in report.skipped)


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_constants_of_other_float_types(kind: int) -> None:
    nodes = [
        helper.make_node("Cast", ["a"], ["b"], to=kind),
        helper.make_node("Transpose", ["b"], ["t"]),
        helper.make_node("Cast", ["x"], ["u"], to=kind),
        helper.make_node("Concat", ["u", "t"], ["v"], axis=0),
        helper.make_node("Cast", ["v"], ["y"], to=TensorProto.FLOAT),
    ]
    done = Folded(model(nodes, {"x": [2, 3]}, ["y"], [weight("a", 3, 2, dtype=np.float64)]))
    assert done.ops == {"Cast": 2, "Concat": 1}
    assert [tensor.data_type for tensor in done.after.graph.initializer] == [kind]


def test_ranges_get_scalars_where_their_bounds_become_known() -> None:
    """A vector of one element is no valid input of Range, but ONNX Runtime takes it until all three are constants."""
    done = fold(
        """<ir_version: 8, opset_import: ["": 17]>
        g (bool c, int64[1] n) => (int64[K] y, int64[M] z)
            <int64 zero = {0}, int64 one = {1}, int64[1] three = {3}, bool yes = {1}> {
            a = If(yes) <then_branch = t () => (int64[A] p) { p = Identity(three) },
                         else_branch = e () => (int64[B] q) { q = Identity(zero) }>
            b = If(yes) <then_branch = u () => (int64[D] r) { r = Abs(n) },
                         else_branch = f () => (int64[E] s) { s = Identity(zero) }>
            y = Range(zero, a, one) z = Range(zero, b, one)
        }"""
    )
    assert done.ops == {"Abs": 1, "Range": 1, "Constant": 1}


def test_an_output_is_weighed_with_the_node_that_makes_it() -> None:
    """A weight plus itself takes as much room as the weight, and 10 bytes more in a Constant node than in an Add."""
    proto = parse('<ir_version: 10, opset_import: ["": 21]> g () => (float[1000] y) {}')
    proto.graph.node.append(helper.make_node("Add", ["w", "w"], ["y"]))
    proto.graph.initializer.append(numpy_helper.from_array(np.arange(1000, dtype=np.float32), "w"))
    read = Model.from_proto(proto)
    report = Fold().run(read, NO_CONTEXT)
    assert report.changed == 0
    assert [skip.where for skip in report.skipped] == ["y"]
    grown = Model.from_proto(proto)
    Fold(max_growth=100).run(grown, NO_CONTEXT)
    growth = grown.to_proto().ByteSize() - proto.ByteSize()
    assert report.skipped[0].reason == f"its value would take {growth} bytes more than what it is computed from"
