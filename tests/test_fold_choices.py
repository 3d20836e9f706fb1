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
