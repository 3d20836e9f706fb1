"""What weights cost in the unit that a ratio is a fraction of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import payload
from graphopt.macs import Shape, node_macs
from graphopt.model import Model
from graphopt.passes.prune.options import Unit
from graphopt.passes.prune.weights import Weight
from graphopt.samples import Samples
from graphopt.shapes import shapes_for


def costs_of(weights: Sequence[Weight], unit: Unit, model: Model, samples: Samples | None) -> list[float]:
    """Return the cost of each weight: its elements, its bytes, or the MACs of its users.

    Args:
        weights: All of the model.
        unit: weights, bytes or macs.
        model: Stays as it is.
        samples: The first one tells the shapes that MACs are counted for; else they are as the model states them.
    """
    if unit == "weights":
        return [float(weight.size) for weight in weights]
    if unit == "bytes":
        return [float(weight.size * np.dtype(weight.constant.dtype).itemsize) for weight in weights]
    feeds = next(iter(samples)) if samples else None
    shapes = shapes_for(model, feeds)
    return [float(sum(_macs(node, shapes) for node in weight.users)) for weight in weights]


def _macs(node: gs.Node, shapes: Mapping[str, Shape]) -> int:
    """Return the MACs of a node; none where they are unknown: nothing is known to be saved there."""

    def shape_of(tensor: gs.Tensor) -> Shape | None:
        return tuple(payload(tensor).shape) if isinstance(tensor, gs.Constant) else shapes.get(tensor.name)

    macs = node_macs(node, shape_of)
    return 0 if macs is None else macs
