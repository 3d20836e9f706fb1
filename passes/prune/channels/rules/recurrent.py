"""Recurrent layers: what they read is summed over, and their hidden state can shrink."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.prune.channels.tracker import Tracker

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(node: gs.Node, tracker: Tracker) -> None:
    """Follow LSTM, GRU and RNN: ``h = f(W x + R h + b)`` with W of [directions, gates * hidden, in].

    A unit of the hidden state is cut from every gate, from both sides of R, and from both directions at once, since one
    attribute states the size for all.
    """
    given, shape = tracker.layout(node.inputs[0]), tracker.shape(node.inputs[0])
    constant = all(isinstance(tensor, gs.Constant) for tensor in node.inputs[1:3])
    if not constant or node.attrs.get("layout", 0) or shape is None or (given is not None and given.axis != 2):
        return tracker.stop(node, "its weights are computed, or its batch comes first")
    if given is not None:
        tracker.cut(node, 1, 2, given.atoms, "takes")
    hidden, gates = node.inputs[2].shape[2], _GATES[node.op]
    units = tracker.fresh(hidden)
    tracker.cut(node, 1, 1, np.tile(units, gates), "gives")
    tracker.cut(node, 2, 1, np.tile(units, gates), "gives")
    tracker.cut(node, 2, 2, units, "takes")
    tracker.cut(node, 3, 1, np.tile(units, 2 * gates))
    tracker.cut(node, 5, 2, units)
    tracker.cut(node, 6, 2, units)
    tracker.cut(node, 7, 1, np.tile(units, 3))
    tracker.count(node, units, lambda cut, kept: cut.attrs.update(hidden_size=kept))
    tracker.work(node, units)
    for output, axis in zip(node.outputs, (3, 2, 2), strict=False):
        if output.name:
            tracker.follow(output, axis, units)
