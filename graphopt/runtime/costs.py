"""Multiply-accumulate operations as ONNX Runtime executes them.

Shape inference does not follow every computed shape, nor does it know which branch of an If runs or how often a Loop
does. ONNX Runtime's profile does: it records every executed node with the shapes of its inputs and outputs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import onnx_graphsurgeon as gs

from graphopt.cost import Figures, figures
from graphopt.filesize import Scale
from graphopt.ir.graph import bodies
from graphopt.macs import Shape, counts, node_macs
from graphopt.model import Model
from graphopt.runtime.trace import Execution, nodes_of, trace
from graphopt.shapes import shapes_for

if TYPE_CHECKING:
    from graphopt.samples import Feeds


def figures_on(model: Model, feeds: Feeds | None, *, scale: Scale | None = None) -> Figures:
    """Return size and cost of a model for one sample.

    Where the work depends on values (control flow, shapes that are computed), the model runs once, so that versions of
    it are counted alike, however much of it can be told from shapes.

    Args:
        model: Stays as it is.
        feeds: The sample; without one, MACs are those of the declared shapes, or unknown.
        scale: Remembers the weights that versions of a model have in common; see `graphopt.filesize`.

    Raises:
        ModelError: MACs have to be counted in a run, and ONNX Runtime cannot run the model.
    """
    found = figures(model, shapes_for(model, feeds), scale=scale)
    if feeds is None or (found.macs is not None and not _has_bodies(model)):
        return found
    return replace(found, macs=executed_macs(model, feeds))


def _has_bodies(model: Model) -> bool:
    return next((body for node in model.graph.nodes for body in bodies(node)), None) is not None


def executed_macs(model: Model, feeds: Feeds) -> int | None:
    """Run the model once on the CPU, without optimizations, and return the MACs of the nodes that were executed.

    Returns:
        The sum; None if a node's work cannot be told from its shapes (an Einsum inside a function).

    Raises:
        ModelError: ONNX Runtime cannot run the model.
    """
    nodes = nodes_of(model)
    (executions,) = trace(model, feeds, optimize=False)
    total = 0
    for execution in executions:
        attributes = {} if execution.node is None else nodes[execution.node].attrs
        macs = _macs(execution, attributes) if counts(execution.kernel) else 0
        if macs is None:
            return None
        total += macs
    return total


def _macs(execution: Execution, attributes: dict[str, Any]) -> int | None:
    if execution.kernel == "Einsum" and "equation" not in attributes:
        return None
    node = gs.Node(execution.kernel, attrs=attributes)
    shapes: dict[int, Shape] = {}
    for listed, recorded in ((node.inputs, execution.inputs), (node.outputs, execution.outputs)):
        for shape in recorded:
            tensor = gs.Variable(f"{len(shapes)}")
            shapes[id(tensor)] = shape
            listed.append(tensor)
    return node_macs(node, lambda tensor: shapes.get(id(tensor)))
