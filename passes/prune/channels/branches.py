"""Branches that can go as a whole: what is left of one is the mean of what it added.

``y = x + W f(x) + b`` with all channels of ``f(x)`` gone is ``y = x + c``. The removal of whole residual branches saves
the most time for the multiply-accumulates it saves, since no operator stays behind.

Source: Fu et al., "Practical Network Acceleration with Tiny Sets", arXiv:2202.07861: with few samples, whole blocks are
a better choice than channels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, tensor_names
from graphopt.layers import linear_layer
from graphopt.model import Model
from graphopt.observe import ChannelMean, Observer
from graphopt.passes.prune.channels.tracker import Use
from graphopt.samples import Samples

ADDS = frozenset({"Add", "Sum", "Sub"})
ShapeOf = Callable[[gs.Tensor], "tuple[int, ...] | None"]


@dataclass(frozen=True, eq=False)
class Ended:
    """A layer whose inputs have all gone.

    Attributes:
        output: Name of what it gave.
        axis: Axis of the channels in that.
        constant: What stands in its place, one value a channel that is left.
    """

    output: str
    axis: int
    constant: gs.Constant


def can_end(classes: np.ndarray, uses: Sequence[Use], shape: ShapeOf, shown: Collection[int]) -> bool:
    """Whether all channels of a group can go: the layers that read them are only added to what they come from.

    Args:
        classes: Those of the group.
        uses: Of the whole graph.
        shape: Of tensors, on one sample.
        shown: Ids of the graph's outputs.
    """
    takers = [use for use in uses if use.role == "takes" and np.isin(use.atoms, classes).any()]
    whole = all(np.isin(use.atoms, classes).all() and use.index == 1 for use in takers)
    return bool(takers) and whole and all(_is_added(use.node, shape, shown) for use in takers)


def _is_added(node: gs.Node, shape: ShapeOf, shown: Collection[int]) -> bool:
    """Whether the outputs of a layer are, after biases, only added to something of its shape that they come from."""
    size, before = shape(node.outputs[0]), _ancestors(node)
    if linear_layer(node) is None or size is None:
        return False
    pending = [node.outputs[0]]
    while pending:
        tensor = pending.pop()
        if id(tensor) in shown or not tensor.outputs:
            return False
        for reader in tensor.outputs:
            others = [item for item in reader.inputs if item is not tensor]
            if reader.op not in ADDS or len(others) != len(reader.inputs) - 1:
                return False
            if all(isinstance(item, gs.Constant) for item in others):
                pending.append(reader.outputs[0])
            elif not any(id(item) in before and shape(item) == size for item in others):
                return False
    return True


def _ancestors(node: gs.Node) -> set[int]:
    """Return the ids of all tensors that a node depends on."""
    found: set[int] = set()
    pending = list(node.inputs)
    while pending:
        tensor = pending.pop()
        if id(tensor) not in found:
            found.add(id(tensor))
            pending.extend(item for maker in tensor.inputs for item in maker.inputs)
    return found


def end_branches(model: Model, uses: Sequence[Use], gone: np.ndarray, rows: Mapping[str, np.ndarray]) -> list[Ended]:
    """Put constants in the places of layers all of whose inputs go, in place; what gave these leads to nothing then.

    Args:
        model: The model.
        uses: Of its dependencies.
        gone: Whether each class goes, bool [classes].
        rows: The channels that are left of each layer's output, by its name.
    """
    taken = tensor_names(model.graph)
    ended = []
    for use in uses:
        if use.role != "takes" or not gone[use.atoms].all():
            continue
        node, output = use.node, use.node.outputs[0]
        convolves = node.op == "Conv"
        kernel = node.inputs[1]
        count = len(rows[output.name])
        zeros = np.zeros((1, count, *(1 for _ in kernel.shape[2:])) if convolves else count, kernel.dtype)
        constant = Constant(unique_name(f"{output.name}/mean", taken), zeros)
        for reader in list(output.outputs):
            reader.inputs[next(i for i, item in enumerate(reader.inputs) if item is output)] = constant
        ended.append(Ended(output.name, 1 if convolves else -1, constant))
    return ended


def fill_means(ended: Sequence[Ended], original: Model, rows: Mapping[str, np.ndarray], samples: Samples) -> None:
    """Let what stands in the places of layers be the mean of what they gave.

    Args:
        ended: Those places.
        original: The model with the layers.
        rows: The channels that are left of each, by the name of its output.
        samples: Run once.
    """
    if not ended:
        return
    requests = {item.output: [ChannelMean(item.axis)] for item in ended}
    seen = Observer(samples).observe(original, requests)
    for item in ended:
        mean = seen.mean(item.output)
        item.constant.values = mean[rows[item.output]].reshape(item.constant.shape).astype(item.constant.dtype)
