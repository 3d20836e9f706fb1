"""Loops that hand on what never changes."""

from __future__ import annotations

import onnx
import pytest

from tests.foldcase import Folded, weight
from tests.helpers import parse

NEXT = "next = MatMul(state, kept)"


def loop(
    nodes: str = NEXT,
    *,
    given: str = "x, w",
    states: str = "float[2, 2] state, float[2, 2] kept",
    handed_on: str = "float[2, 2] next, float[2, 2] kept",
    results: str = "last, out",
    after: str = "y = Relu(last)",
    trips: int = 3,
    opset: int = 17,
) -> onnx.ModelProto:
    """A loop whose body multiplies a state by a weight that it gets and gives back as another state."""
    proto = parse(
        f"""<ir_version: 8, opset_import: ["": {opset}]>
        g (float[2, 2] x) => (float[2, 2] y) <int64 trips = {{{trips}}}, bool go = {{1}}> {{
          {results} = Loop(trips, go, {given}) <
            body = step (int64 i, bool on, {states}) => (bool still, {handed_on})
            {{ still = Identity(on) {nodes} }}
          >
          {after}
        }}"""
    )
    proto.graph.initializer.append(weight("w", 2, 2))
    return proto


def body_of(proto: onnx.ModelProto) -> onnx.GraphProto:
    (node,) = (node for node in proto.graph.node if node.op_type == "Loop")
    body: onnx.GraphProto = node.attribute[0].g
    return body


@pytest.mark.parametrize(
    ("nodes", "handed_on"),
    [
        (NEXT, "float[2, 2] next, float[2, 2] kept"),
        (f"{NEXT} same = Identity(kept)", "float[2, 2] next, float[2, 2] same"),
    ],
)
@pytest.mark.parametrize("trips", [0, 3])
@pytest.mark.parametrize("opset", [10, 13, 17])
def test_a_weight_that_goes_through_a_loop_is_read_in_its_body(
    nodes: str, handed_on: str, trips: int, opset: int
) -> None:
    done = Folded(loop(nodes, handed_on=handed_on, trips=trips, opset=opset))
    assert done.report.metrics["loop-invariant"] == 1
    body = body_of(done.after)
    assert (len(body.input), len(body.output)) == (3, 2)
    assert [list(node.input) for node in body.node if node.op_type == "MatMul"] == [["state", "w"]]


def test_what_comes_out_of_the_loop_is_what_went_in() -> None:
    done = Folded(loop(after="r = Relu(last) y = Add(r, out)"))
    (add,) = (node for node in done.after.graph.node if node.op_type == "Add")
    assert list(add.input)[1] == "w"


def test_an_output_of_the_model_keeps_its_name() -> None:
    proto = loop(given="w, x", results="last, y", after="unused = Relu(last)", nodes=NEXT)
    assert Folded(proto).ops == {"Identity": 1}


def test_a_loop_that_only_hands_on_goes() -> None:
    proto = loop(
        "", given="x", states="float[2, 2] kept", handed_on="float[2, 2] kept", results="out", after="y = Relu(out)"
    )
    assert Folded(proto).ops == {"Relu": 1}


def test_before_opset_11_a_loop_keeps_a_state() -> None:
    scanned = {"nodes": "row = Relu(kept)", "given": "x", "states": "float[2, 2] kept", "results": "out, rows"}
    rest = {"handed_on": "float[2, 2] kept, float[2, 2] row", "after": "y = ReduceMax<axes = [0], keepdims = 0>(rows)"}
    assert "loop-invariant" not in Folded(loop(**scanned, **rest, opset=10)).report.metrics  # type: ignore[arg-type]
    assert Folded(loop(**scanned, **rest, opset=11)).report.metrics["loop-invariant"] == 1  # type: ignore[arg-type]


def test_states_that_change_places_are_not_constant() -> None:
    proto = loop(handed_on="float[2, 2] kept, float[2, 2] state", nodes="")
    assert "loop-invariant" not in Folded(proto).report.metrics


def test_a_value_that_is_given_out_twice_stays() -> None:
    done = Folded(loop("", handed_on="float[2, 2] kept, float[2, 2] kept"))
    assert done.declined("its body gives one value out twice")


def test_a_weight_goes_through_nested_loops() -> None:
    proto = parse(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[2, 2] x) => (float[2, 2] y) <int64 trips = {2}, bool go = {1}> {
          y, out = Loop(trips, go, x, w) <
            body = step (int64 i, bool on, float[2, 2] state, float[2, 2] kept)
                => (bool still, float[2, 2] next, float[2, 2] kept) {
              still = Identity(on)
              next, held = Loop(trips, go, state, kept) <
                body = deep (int64 j, bool off, float[2, 2] inside, float[2, 2] deeper)
                    => (bool more, float[2, 2] made, float[2, 2] deeper)
                { more = Identity(off) made = MatMul(inside, deeper) }
              >
            }
          >
        }"""
    )
    proto.graph.initializer.append(weight("w", 2, 2))
    done = Folded(proto)
    assert done.report.metrics["loop-invariant"] == 2
    deep = next(item.g for node in body_of(done.after).node for item in node.attribute if item.name == "body")
    assert [list(node.input) for node in deep.node if node.op_type == "MatMul"] == [["inside", "w"]]
