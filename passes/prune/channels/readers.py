"""The layers that read the channels of a group, and what they know of their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.biases import find_bias
from graphopt.compensate.gptq import damped
from graphopt.compensate.removal import Reader
from graphopt.layers import LinearLayer, linear_layer
from graphopt.moments import LayerMoments
from graphopt.passes.prune.channels.dependencies import Dependencies, Group
from graphopt.passes.prune.channels.tracker import Use


@dataclass(frozen=True, eq=False)
class Taker:
    """A weight that sums over channels of a group.

    Attributes:
        use: Where it is.
        layer: Its node as a linear layer, or None (recurrent layers, transposed convolutions).
        biased: Whether the layer has a bias that can make up for the mean of what goes.
        columns: For each class of the group the inputs of the weight's matrix, int [classes, width].
    """

    use: Use
    layer: LinearLayer | None
    biased: bool
    columns: np.ndarray

    @property
    def key(self) -> int:
        """What identifies the node."""
        return id(self.use.node)

    @property
    def groups(self) -> int:
        """Groups of the weight's matrix."""
        return self.layer.groups if self.layer is not None else 1

    @property
    def inputs(self) -> int:
        """Inputs of each group of the weight's matrix."""
        return self.layer.inputs if self.layer is not None else len(self.use.atoms)

    def matrix(self) -> np.ndarray:
        """Return the weights as [groups, rows, inputs], in float64."""
        if self.layer is not None:
            return self.layer.matrix()
        values = self.use.node.inputs[self.use.index].values
        moved = np.moveaxis(values, self.use.axis, -1)
        return np.asarray(moved.reshape(1, -1, moved.shape[-1]), np.float64)

    def stored(self, matrix: np.ndarray) -> np.ndarray:
        """Return a matrix [groups, rows, inputs] in shape and type of the weight; the inverse of `matrix`."""
        if self.layer is not None:
            return self.layer.stored(matrix)
        values = self.use.node.inputs[self.use.index].values
        moved = np.moveaxis(values, self.use.axis, -1).shape
        return np.ascontiguousarray(np.moveaxis(matrix.reshape(moved), -1, self.use.axis), values.dtype)


def takers_of(group: Group, dependencies: Dependencies, shown: set[int]) -> list[Taker]:
    """Return the weights that sum over the channels of a group, in graph order.

    Args:
        group: The group.
        dependencies: What it is a group of.
        shown: Ids of the graph's outputs.
    """
    found = []
    for use in dependencies.uses:
        if use.role == "takes" and np.isin(group.classes, use.atoms).all():
            layer = _layer(use)
            biased = layer is not None and find_bias(layer, shown) is not None
            found.append(Taker(use, layer, biased, _columns(use, group, layer)))
    return found


def moment_bytes(takers: Sequence[Taker]) -> int:
    """Return what the second moments of all inputs of some weights take, in bytes."""
    return sum(8 * taker.groups * taker.inputs**2 for taker in takers)


def _layer(use: Use) -> LinearLayer | None:
    return linear_layer(use.node) if use.index == 1 else None


def _columns(use: Use, group: Group, layer: LinearLayer | None) -> np.ndarray:
    """Return which inputs of the matrix each class of the group stands for, int [classes, width]."""
    order = np.argsort(use.atoms, kind="stable")
    first = np.searchsorted(use.atoms[order], group.classes)
    width = np.count_nonzero(use.atoms == group.classes[0])
    places = order[first[:, None] + np.arange(width)]
    area = layer.inputs // len(use.atoms) if layer is not None else 1
    return np.asarray((places[:, :, None] * area + np.arange(area)).reshape(len(places), -1))


def readers_of(taker: Taker, moments: LayerMoments | None, criterion: str) -> list[Reader]:
    """Return what the removal of channels does to a weight, for each of its groups.

    Losses are relative to the variance of the layer's output, so that those of several layers can be added.

    Args:
        taker: The weight.
        moments: What it sees; without, all its inputs are taken to be alike and independent.
        criterion: obs lets the inputs that stay make up for those that go; wanda takes their energy and fluctuation
            their variance, and each input for itself.
    """
    matrix = taker.matrix()
    groups, _, inputs = matrix.shape
    second = np.broadcast_to(np.eye(inputs), (groups, inputs, inputs))
    if moments is not None:
        second = moments.covariance if taker.biased and criterion != "wanda" else moments.second
    scale = max(float(np.einsum("grk,gkl,grl->", matrix, second, matrix, optimize=True)), np.finfo(np.float64).tiny)
    trust = moments.count / (moments.count + inputs) if moments is not None and criterion == "obs" else 0.0
    inverse = np.linalg.inv(damped(shrunk(second, trust)))
    return [Reader(weight, part, taker.columns, 1 / scale) for weight, part in zip(matrix, inverse, strict=True)]


def layers_in_order(takers: Sequence[Sequence[Taker]], nodes: Sequence[gs.Node]) -> list[LinearLayer]:
    """Return the linear layers among the takers of all groups, each once, in graph order."""
    layers = {taker.key: taker.layer for group in takers for taker in group}
    return [layer for node in nodes if (layer := layers.get(id(node))) is not None]


def shrunk(second: np.ndarray, trust: float) -> np.ndarray:
    """Return moments with everything off the diagonal reduced to a part, [..., inputs, inputs].

    Correlations of n inputs that were seen at few more than n positions are mostly chance, and would promise that the
    inputs that stay make up for all that go.

    Args:
        second: Moments, [..., inputs, inputs].
        trust: Part that stays, in [0, 1].
    """
    diagonal = np.eye(second.shape[-1])
    return np.asarray(second * (trust + (1 - trust) * diagonal))
