"""Weights that are the matrices of linear layers, and what is known of what these read and should give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.biases import Bias, find_bias, fixed_bias
from graphopt.layers import LinearLayer
from graphopt.model import Model
from graphopt.moments import PairedMoments
from graphopt.passes.prune.weights import Weight


@dataclass(frozen=True, eq=False)
class Site:
    """A weight with the linear layers that it is all of.

    Attributes:
        weight: The weight.
        layers: Its layers, in graph order; there are several if it is shared.
        bias: What takes up the mean of the error, or None.
    """

    weight: Weight
    layers: tuple[LinearLayer, ...]
    bias: Bias | None

    @property
    def knows_biases(self) -> bool:
        """Whether what each layer adds is known, so that what its matrix should give can be told from its outputs."""
        return all(fixed_bias(layer) is not None for layer in self.layers)

    @property
    def columns(self) -> np.ndarray:
        """Order of the matrix's inputs in which input channels are next to each other."""
        layer = self.layers[0]
        area = int(np.prod(layer.weight.shape[2:])) if layer.node.op == "Conv" else 1
        return np.arange(layer.inputs).reshape(-1, area).T.ravel()

    def present(self) -> np.ndarray:
        """Return the weights that are there, [groups, rows, inputs] in the order of `columns`."""
        ordered: np.ndarray = self.layers[0].matrix()[..., self.columns]
        return ordered

    @property
    def constants(self) -> tuple[gs.Constant, ...]:
        """What `write` replaces."""
        return (self.weight.constant, *(() if self.bias is None else (self.bias.constant,)))

    def write(self, solved: np.ndarray, mean: np.ndarray, wanted: np.ndarray | None = None) -> None:
        """Store weights, and let the bias take up the mean.

        Args:
            solved: [groups, rows, inputs] in the order of `columns`.
            mean: Of what the first layer reads, [groups, inputs] in the order of the layer.
            wanted: Mean of what the layer should give, [groups, rows]; None for the mean of what it gives.
        """
        layer = self.layers[0]
        matrix = np.empty_like(solved)
        matrix[..., self.columns] = solved
        if self.bias is not None:
            lost = np.einsum("grk,gk->gr", layer.matrix() - matrix, mean)
            if wanted is not None:
                lost += wanted - np.einsum("grk,gk->gr", layer.matrix(), mean) - fixed_bias(layer)
            self.bias.shift(lost.ravel())
        self.weight.constant.values = layer.stored(matrix)


def sites_of(model: Model, weights: Sequence[Weight], layers: Sequence[LinearLayer]) -> dict[int, Site]:
    """Return the weights that are matrices of linear layers for all of their users, by id of their constant."""
    shown = {id(tensor) for tensor in model.graph.outputs}
    users: dict[int, list[LinearLayer]] = {}
    for layer in layers:
        users.setdefault(id(layer.weight), []).append(layer)
    found = {}
    for weight in weights:
        mine = users.get(id(weight.constant), [])
        if mine and len(mine) == len(weight.users) and len({layer.groups for layer in mine}) == 1:
            bias = find_bias(mine[0], shown) if len(mine) == 1 else None
            found[id(weight.constant)] = Site(weight, tuple(mine), bias)
    return found


@dataclass(frozen=True, eq=False)
class Evidence:
    """What samples tell about a site, its inputs x in the order of `Site.columns`.

    Attributes:
        second: ``E x x^T``, float64 [groups, inputs, inputs]; about the means where a bias takes these up.
        lack: ``E (t - W x) x^T`` with the targets t and the present weights W, [groups, rows, inputs]; zero where only
            the layer itself is looked at.
        count: Positions that these are the means over.
    """

    second: np.ndarray
    lack: np.ndarray
    count: int


def evidence_of(site: Site, found: Sequence[PairedMoments], *, inherited: bool) -> Evidence:
    """Return what is known of a site.

    Args:
        site: Place.
        found: Moments of its layers.
        inherited: Whether it makes up for the error of the layers before it too.
    """
    order, present = site.columns, site.layers[0].matrix()
    seen = [moments.centred if site.bias is not None else moments for moments in found]
    second = np.sum([moments.second for moments in seen], axis=0)
    lack = np.zeros(present.shape)
    if inherited:
        lack = np.sum([_cross(each) - present @ each.second for each in seen], axis=0)
    return Evidence(second[..., order[:, None], order], lack[..., order], sum(moments.count for moments in found))


def _cross(moments: PairedMoments) -> np.ndarray:
    """Return the cross moment of a layer's inputs with what its matrix alone should give, [groups, rows, inputs]."""
    added = fixed_bias(moments.layer)
    assert added is not None, "only layers whose bias is known inherit"
    return np.asarray(moments.cross - added[:, :, None] * moments.mean[:, None, :])  # about the means, it falls out
