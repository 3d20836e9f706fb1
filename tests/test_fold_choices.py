"""Choices that are made, or that leave only one way to go on."""

from __future__ import annotations

import pytest

from graphopt.passes.fold.ints import both, either
from tests.foldcase import Folded, fold
from tests.helpers import parse

HEADER = '<ir_version: 8, opset_import: ["": 17]>\n'
# A squeeze where the last axis has one element, as exporters write it, before an operator that takes matrices only.
SQUEEZE = """g (float[N, 4, T] x) => (float[A, B] y)
    <int64 two = {2}, int64[1] axis = {2}, int64 one = {1}, float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> {
    r = Relu(x) s = Shape(r) n = Gather(s, two) c = Equal(n, one)
    b = If(c) <then_branch = t () => (float[J, K] p) { p = Squeeze(r, axis) },
               else_branch = f () => (float[J, K, L] q) { q = Identity(r) }>
    y = Gemm(b, w)
}"""


def test_the_branch_that_cannot_go_on_is_dropped() -> None:
    done = fold(HEADER + SQUEEZE, sizes={"N": 3, "T": 1})
    assert done.ops == {"Relu": 1, "Squeeze": 1, "Gemm": 1}
    assert done.report.metrics["only-branch"] == 1


def test_both_branches_stay_where_both_can_go_on() -> None:
    done = fold(HEADER + SQUEEZE.replace("y = Gemm(b, w)", "y = Exp(b)"), sizes={"N": 3, "T": 1})
    assert done.ops["If"] == 1
    assert done.declined("both may be right")


def test_what_may_never_run_decides_nothing() -> None:
    """The Gemm stands in a branch of its own, or its result goes nowhere."""
    guarded = """y = If(d) <then_branch = u () => (float[G, H] v) { v = Gemm(b, w) },
                            else_branch = k () => (float[I] z) { z = Exp(b) }>"""
    text = SQUEEZE.replace("y = Gemm(b, w)", guarded).replace("float[N, 4, T] x)", "float[N, 4, T] x, bool d)")
    proto = parse(HEADER + text)
    assert Folded(proto, sizes={"N": 3, "T": 1}, without="inline-if").ops["If"] == 2
    unread = fold(HEADER + SQUEEZE.replace("y = Gemm(b, w)", "v = Gemm(b, w) y = Exp(b)"), sizes={"N": 3, "T": 1})
    assert unread.ops["If"] == 1


def test_choices_that_follow_from_the_rank_are_carried_through() -> None:
    """The second choice, by the rank of what the first gives out, decides whether the Gemm can run."""
    later = """h = Shape(b) k = Size(h) e = Equal(k, two) o = Not(e)
        m = If(o) <then_branch = u () => (float[J2, K2, L2, M2] v) { v = Unsqueeze(b, axis) },
                   else_branch = k2 () => (float[J3, K3] z) { z = Identity(b) }>
        y = Gemm(m, w)"""
    done = fold(HEADER + SQUEEZE.replace("y = Gemm(b, w)", later), sizes={"N": 3, "T": 1})
    assert done.ops == {"Relu": 1, "Squeeze": 1, "Gemm": 1}


def test_a_dropped_branch_may_be_the_first() -> None:
    text = SQUEEZE.replace("then_branch", "LATER").replace("else_branch", "then_branch").replace("LATER", "else_branch")
    done = fold(HEADER + text.replace("c = Equal(n, one)", "e = Equal(n, one) c = Not(e)"), sizes={"N": 3, "T": 1})
    assert done.ops == {"Relu": 1, "Squeeze": 1, "Gemm": 1}


@pytest.mark.parametrize(("a", "b", "conjunction", "disjunction"), [
    (1, 1, 1, 1), (1, 0, 0, 1), (0, 0, 0, 0), (None, 0, 0, None), (None, 1, None, 1), ("s", 0, 0, None),
])  # fmt: skip
def test_logic_of_what_is_known_in_part(
    a: int | str | None, b: int, conjunction: int | None, disjunction: int | None
) -> None:
    assert (both(a, b), both(b, a)) == (conjunction, conjunction)
    assert (either(a, b), either(b, a)) == (disjunction, disjunction)


# Loops ---------------------------------------------------------------------------------------------------------------

LOOP = """g (float[2] x, float[2] w) => (float[2] y, float[A, B] all)
    <int64 one = {1}, bool yes = {1}> {
    y, all = Loop(one, yes, x) <body = b (int64 i, bool c, float[2] v) => (bool d, float[2] u, float[2] s) {
        f = Cast<to = 1>(i) a = Add(v, f) u = Mul(a, w) s = Neg(u) d = Identity(c)
    }>
}"""


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_a_loop_that_runs_once_is_inlined(opset: int) -> None:
    done = fold(f'<ir_version: 8, opset_import: ["": {opset}]>\n{LOOP}', max_growth=64)
    assert done.report.metrics["inline-loop"] == 1
    assert done.ops == {"Mul": 1, "Neg": 1, "Unsqueeze": 1, "Add": 1} or "Loop" not in done.ops


@pytest.mark.parametrize(("old", "new"), [("one = {1}", "one = {2}"), ("yes = {1}", "yes = {0}")])
def test_other_loops_stay(old: str, new: str) -> None:
    assert fold(HEADER + LOOP.replace(old, new)).ops["Loop"] == 1


def test_a_loop_may_give_out_its_state_and_outer_values() -> None:
    text = """g (float[2] x, float[2] w) => (float[2] y, float[2] z) <int64 one = {1}> {
        p = Relu(w)
        q, r, s = Loop(one, , x, x) <body = b (int64 i, bool c, float[2] v, float[2] t)
            => (bool d, float[2] v, float[2] p, float[2] v) { d = Identity(c) }>
        y = Neg(q) z = Add(r, r)
    }"""
    proto = parse(HEADER + text)
    body = proto.graph.node[1].attribute[0].g
    body.node.add(op_type="Identity", input=["p"], output=["outer"])
    body.output[2].name = "outer"
    body.node.add(op_type="Identity", input=["v"], output=["seen"])
    body.output[3].name = "seen"
    body.node.add(op_type="Identity", input=["t"], output=["kept"])
    body.output[1].name = "kept"
    assert "Loop" not in Folded(proto).ops
