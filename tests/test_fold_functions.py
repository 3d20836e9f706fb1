"""Functions of the model that move to the one place they are called from."""

from __future__ import annotations

import pytest

from tests.foldcase import Folded, fold

HEADER = '<ir_version: 10, opset_import: ["": 21, "local": 1, "other": 2]>'


def called(graph: str, *functions: str) -> Folded:
    """Fold a graph with functions of the domain `local`."""
    heads = (f'<domain: "local", opset_import: ["": 21, "local": 1]> {function}' for function in functions)
    return fold("\n".join([HEADER, graph, *heads]))


def test_shapes_inside_of_a_function_are_known_once_it_is_inlined() -> None:
    done = called(
        "g (float[N, 3, 4] x) => (float[a, b] y) { y = local.flat(x) }",
        """flat (v) => (w) { s = Shape(v) zero = Constant<value_ints = [0]>() n = Gather(s, zero)
            rest = Constant<value_ints = [-1]>() t = Concat<axis = 0>(n, rest) w = Reshape(v, t) }""",
    )
    assert done.ops == {"Flatten": 1} or done.ops == {"Reshape": 1}
    assert not done.after.functions
    assert done.report.metrics["functions"] == 1


def test_attributes_are_those_of_the_call_or_the_defaults() -> None:
    done = called(
        "g (float[2, 3] x) => (float[2, 3] y) { y = local.f<axis = 0>(x) }",
        "f <axis, alpha: float = 0.25> (v) => (w) "
        "{ a = Softmax<axis: int = @axis>(v) w = LeakyRelu<alpha: float = @alpha>(a) }",
    )
    assert done.ops == {"Softmax": 1, "LeakyRelu": 1}
    attributes = {a.name: a.i or a.f for node in done.after.graph.node for a in node.attribute}
    assert attributes == {"axis": 0, "alpha": 0.25}


def test_attributes_that_neither_has_are_left_out() -> None:
    done = called(
        "g (float[2, 3] x) => (float[2, 3] y) { y = local.f(x) }",
        "f <alpha> (v) => (w) { w = LeakyRelu<alpha: float = @alpha>(v) }",
    )
    assert [list(node.attribute) for node in done.after.graph.node] == [[]]


@pytest.mark.parametrize(
    ("graph", "function", "left"),
    [
        ("y = local.f(x)", "f (v, low) => (w) { w = Clip(v, low) }", {"Clip": 1}),
        ("y = local.f(x, x)", "f (v, u) => (w) { w = Sub(v, u) unused = Neg(u) }", {"Sub": 1}),
        ("y, z = local.f(x)", "f (v) => (a, b) { b = Neg(v) a = Abs(b) }", {"Neg": 1, "Abs": 1}),
        ("z, y = local.f(x)", "f (v) => (a, b) { a = Identity(v) b = Neg(v) }", {"Identity": 1, "Neg": 1}),
        ("x1 = Abs(x) y = local.f(x1)", "f (v) => (x1) { x = Neg(v) x1 = Exp(x) }", {"Abs": 1, "Neg": 1, "Exp": 1}),
    ],
)
def test_inputs_outputs_and_names_meet(graph: str, function: str, left: dict[str, int]) -> None:
    outputs = "float[2, 3] y" + (", float[2, 3] z" if "z" in graph else "")
    assert called(f"g (float[2, 3] x) => ({outputs}) {{ {graph} }}", function).ops == left


def test_bodies_inside_of_a_function_read_what_the_call_gives() -> None:
    done = called(
        "g (float[2] x, bool c) => (float[2] y) { t = Exp(x) u = Abs(t) y = local.f(u, c) }",
        """f (v, d) => (w) { t = Neg(v) w = If(d) <
            then_branch = a () => (p) { u = Add(v, t) p = Cos(u) },
            else_branch = b () => (q) { q = Sin(v) }> }""",
    )
    assert done.ops == {"Exp": 1, "Abs": 1, "Neg": 1, "If": 1, "Add": 1, "Cos": 1, "Sin": 1}


def test_a_call_in_a_body_and_a_function_that_calls_another() -> None:
    done = called(
        """g (float[2] x, bool c) => (float[2] y) { y = If(c) <
            then_branch = a () => (float[2] p) { p = local.f(x) },
            else_branch = b () => (float[2] q) { q = Abs(x) }> }""",
        "f (v) => (w) { t = local.h(v) w = Exp(t) }",
        "h (v) => (w) { w = Neg(v) }",
    )
    assert done.ops == {"If": 1, "Neg": 1, "Exp": 1, "Abs": 1}
    assert not done.after.functions


def test_functions_that_are_called_again_stay() -> None:
    done = called("g (float[2] x) => (float[2] y) { a = local.f(x) y = local.f(a) }", "f (v) => (w) { w = Neg(v) }")
    assert done.ops == {"f": 2, "Neg": 1}
    assert done.declined("called from 2 places")


def test_functions_with_operators_of_another_version_stay() -> None:
    done = fold(
        f"""{HEADER} g (float[2] x) => (float[2] y) {{ y = local.f(x) }}
        <domain: "local", opset_import: ["": 17]> f (v) => (w) {{ w = Neg(v) }}"""
    )
    assert done.ops == {"f": 1, "Neg": 1}
    assert done.declined("another version of the operators of 'ai.onnx'")
