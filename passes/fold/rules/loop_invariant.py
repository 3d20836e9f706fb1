"""What a loop hands on unchanged."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.ir.graph import Node
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.workbench import Workbench, is_standard

_STATELESS = 11  # first operator set in which a Loop needs no state
_FIXED = 2  # inputs before the state: trip count and condition


class LoopInvariant(Rule):
    """``Loop(n, go, w)`` whose body gives back the ``w`` that it got ``-> Loop(n, go)``, whose body reads ``w`` itself.

    Converters hand the weights of a recurrent cell through the loop, as parts of its state, where nothing tells that
    they are constants. What came out of the loop is what went in, also if it never runs. A loop of which nothing is
    left goes.

    Left alone: a value that the body gives out elsewhere too.
    """

    name = "loop-invariant"
    ops = frozenset({"Loop"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Let the body read what does not change from around the loop."""
        body = node.attrs.get("body")
        states = len(node.inputs) - _FIXED
        if not isinstance(body, gs.Graph) or len(body.inputs) != _FIXED + states:
            return False
        if len(body.outputs) != 1 + len(node.outputs) or len(node.outputs) < states:
            return False
        unchanged = [index for index in range(states) if _is_handed_on(body, index, bench)]
        if bench.opset(node) < _STATELESS and len(unchanged) == states:
            unchanged = unchanged[1:]
        obstacles = {index: _obstacle(node, body, index) for index in unchanged}
        lifted = [index for index in unchanged if not obstacles[index]]
        if not lifted:
            return next(iter(obstacles.values()), False)
        for index in reversed(lifted):
            _lift(node, body, index, bench)
        if not node.outputs:
            bench.remove(node)
        return True


def _is_handed_on(body: gs.Graph, index: int, bench: Workbench) -> bool:
    source, inner = body.outputs[1 + index], body.inputs[_FIXED + index]
    while source is not inner:
        producer = bench.producer(source)
        if producer is None or producer.op != "Identity" or not is_standard(producer):
            return False
        source = producer.inputs[0]
    return True


def _obstacle(node: gs.Node, body: gs.Graph, index: int) -> str:
    """Return why a state must stay one, or an empty text."""
    inner = body.inputs[_FIXED + index]
    if node.inputs[_FIXED + index].is_empty():
        return "a part of its state is left out"
    if any(tensor is inner for place, tensor in enumerate(body.outputs) if place != 1 + index):
        return "its body gives one value out twice"
    return ""


def _lift(node: gs.Node, body: gs.Graph, index: int, bench: Workbench) -> None:
    """Let everybody read the initial value of a state instead, and take the state away."""
    initial, result = node.inputs[_FIXED + index], node.outputs[index]
    bench.redirect(body.inputs[_FIXED + index], initial)
    bench.drop_output(body, 1 + index)
    del body.inputs[_FIXED + index]
    del node.outputs[index]
    del node.inputs[_FIXED + index]
    bench.redirect(result, initial)
    if bench.is_result(result):
        bench.put(Node("Identity", "", {}, [initial], [result]), bench.graph_of(node))
