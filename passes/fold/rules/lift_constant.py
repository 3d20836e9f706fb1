"""Constant nodes become initializers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Constant, OpaqueAttribute, Payload, payload
from graphopt.ir.payload import StoredSparseTensor
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.workbench import LISTED_INITIALIZERS, Workbench


class LiftConstant(Rule):
    """``Constant(value) -> initializer`` of the same name, for each way the operator has to state a value.

    Left alone where the value is a graph output (an initializer cannot be one everywhere), in functions (which have no
    initializers), and up to IR version 3 (where an initializer is an input).
    """

    name = "lift-constant"
    ops = frozenset({"Constant"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Replace the node's output by a constant."""
        output = node.outputs[0]
        if bench.is_result(output) or bench.in_function(node):
            return False
        if (bench.model.graph.ir_version or 0) <= LISTED_INITIALIZERS:
            return "up to IR version 3 an initializer must be a graph input"
        held = stated_value(node.attrs)
        if held is None:
            return "it states its value in a way that graphopt does not know"
        constant = Constant(output.name, held)
        bench.remove(node)
        bench.redirect(output, constant)
        return True


def stated_value(attrs: dict[str, Any]) -> Payload | None:
    """Return the value that the attributes of a Constant node state."""
    if len(attrs) != 1:
        return None
    ((name, value),) = attrs.items()
    if name == "value" and isinstance(value, gs.Constant):
        return payload(value)
    if name == "sparse_value" and isinstance(value, OpaqueAttribute):
        return StoredSparseTensor(value.proto.sparse_tensor)
    kinds: dict[str, Any] = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
        "value_string": object,
        "value_strings": object,
    }
    return np.array(value, kinds[name]) if name in kinds and isinstance(value, (int, float, str, bytes, list)) else None
