"""How a tensor of a model changes with one of its inputs, as a model of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.gradients.backward import OPSET, add_gradients
from graphopt.gradients.tape import Tape
from graphopt.model import Model
from graphopt.samples import Feeds
from graphopt.shapes import infer_shapes, shapes_for


@dataclass(frozen=True, eq=False)
class Slope:
    """The gradient of a weighted sum of a tensor's elements with respect to an input.

    Attributes:
        model: Its one output is the gradient, in the shape of the input.
        worth: Name of the input that takes the weight of each element, float32 in the tensor's shape.
    """

    model: Model
    worth: str


def slope(model: Model, tensor: str, source: str, feeds: Feeds) -> Slope | None:
    """Return the slope of a tensor along an input, or None if no gradient is known all the way.

    Args:
        model: Stays as it is.
        tensor: Name of a float32 tensor that a node of its main graph gives.
        source: Name of one of its float32 inputs.
        feeds: One sample, for the shapes.
    """
    if model.graph.opset < OPSET:
        return None
    copy = model.copy()
    infer_shapes(copy)
    graph = copy.graph
    given = next(item for item in graph.inputs if item.name == source)
    wanted = next(item for node in graph.nodes for item in node.outputs if item.name == tensor)
    tape = Tape(graph, shapes_for(copy, feeds))
    worth = tape.input("worth")
    found = add_gradients(tape, [(wanted, worth)], [given]).of
    if source not in found:
        return None
    graph.outputs = [found[source]]
    graph.outputs[0].dtype, graph.outputs[0].shape = np.float32, None
    return Slope(copy, str(worth.name))
