"""Integers that came out twice, of a weight that is read with fixed ranges here and with ranges of its inputs there.

Both forms round a matrix the same way unless it was fitted or smoothed, but each writes its integers in a layout and
under a name of its own; a layer and the body of a Loop may read the same weight.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import constants, walk_graphs
from graphopt.model import Model
from graphopt.passes.quant.units import outputs_of_scopes

_LEAST = 1024  # bytes


def share_integers(model: Model) -> int:
    """Let all readers of equal integers read the same ones; return how many constants became free.

    Args:
        model: Edited in place.
    """
    handed_out = outputs_of_scopes(model.graph)
    alike: dict[tuple[np.dtype, tuple[int, ...]], list[gs.Constant]] = defaultdict(list)
    for constant in constants(model.graph):
        kind, size = np.dtype(constant.dtype), int(np.prod(constant.shape))
        if kind in (np.int8, np.uint8) and size >= _LEAST and id(constant) not in handed_out:
            alike[kind, tuple(constant.shape)].append(constant)
    instead: dict[int, gs.Constant] = {}
    for group in alike.values():
        first: dict[bytes, gs.Constant] = {}
        for constant in group if len(group) > 1 else ():
            kept = first.setdefault(np.ascontiguousarray(constant.values).tobytes(), constant)
            if kept is not constant:
                instead[id(constant)] = kept
    for scope in walk_graphs(model.graph) if instead else ():
        for node in scope.nodes:
            for index, tensor in enumerate(node.inputs):
                if id(tensor) in instead:
                    node.inputs[index] = instead[id(tensor)]
    return len(instead)
