"""One node in the place of several, unless that would make the file larger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Node
from graphopt.passes.fold.rules.match import fuse
from graphopt.passes.fold.rules.rule import Outcome
from graphopt.passes.fold.sizes import array_cost, constant_cost, named_node_cost, node_cost
from graphopt.passes.fold.workbench import Workbench

_MARGIN = 4  # bytes of lengths that may take one byte more


@dataclass(frozen=True)
class Sketch:
    """A node to be made.

    Attributes:
        op: Its operator.
        inputs: Tensors, and values that become constants.
        kind: What the constants are, for their names.
        attrs: Its attributes.
    """

    op: str
    inputs: Sequence[gs.Tensor | np.ndarray]
    kind: str = ""
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def constants(self) -> list[np.ndarray]:
        """The values that become constants."""
        return [item for item in self.inputs if isinstance(item, np.ndarray)]

    def node(self, like: gs.Node, bench: Workbench) -> gs.Node:
        """Return the node, without outputs, under the name of another one."""
        inputs = [
            bench.new_constant(self.kind, item, like) if isinstance(item, np.ndarray) else item for item in self.inputs
        ]
        return Node(self.op, like.name, dict(self.attrs), inputs, [])


def merge(gone: Sequence[gs.Node], sketch: Sketch, bench: Workbench) -> Outcome:
    """Put a node in the place of several, the last one first, whose output it makes.

    Returns:
        True, or why it was not done.
    """
    reason = grows(gone, sketch, gone[0].outputs, bench)
    if reason:
        return reason
    fuse(gone, sketch.node(gone[0], bench), bench)
    return True


def grows(gone: Sequence[gs.Node], sketch: Sketch, outputs: Sequence[gs.Tensor], bench: Workbench) -> str:
    """Return by how much the file would become larger than rewrites so far have made it smaller, or an empty text."""
    name = bench.constant_name(sketch.kind)
    fresh = {(values.shape, values.tobytes()): values for values in sketch.constants}
    cost = sum(array_cost(name, values) for values in fresh.values() if not bench.holds(sketch.kind, values, gone[0]))
    names = [name if isinstance(item, np.ndarray) else str(item.name) for item in sketch.inputs]
    names += [str(tensor.name) for tensor in outputs]
    cost += named_node_cost(sketch.op, gone[0].name, names, sketch.attrs) + _MARGIN
    growth = cost - sum(map(node_cost, gone)) - sum(map(constant_cost, _own_constants(gone, bench)))
    return f"as one {sketch.op} it would take {growth} bytes more" if growth > max(bench.budget, 0) else ""


def _own_constants(nodes: Sequence[gs.Node], bench: Workbench) -> list[gs.Constant]:
    """Return the initializers that only these nodes read."""
    tensors = {id(tensor): tensor for node in nodes for tensor in node.inputs if isinstance(tensor, gs.Constant)}
    times = Counter(id(tensor) for node in nodes for tensor in node.inputs)
    return [tensor for key, tensor in tensors.items() if bench.uses(tensor) == times[key]]
