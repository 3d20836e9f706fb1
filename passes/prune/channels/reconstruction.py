"""Fitting the layers of a pruned model to the outputs that the original gives in their places.

Front to back, each layer ``y = W x + b`` is fitted by least squares to the outputs of the same layer in the original
model, while x is what the pruned and already fitted layers before it give. So a layer makes up for what its own inputs
lost and for what went wrong before it. This replaces training: it needs samples but neither labels nor gradients.

Source: He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", arXiv:1707.06168, section 3.1, with the
asymmetric target of its section 4.1.2, for all layers instead of those after removed channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from graphopt.base import Skip
from graphopt.biases import Bias, find_bias
from graphopt.compensate.ridge import Problem, judged_ridge
from graphopt.ir.graph import Constant
from graphopt.layers import LinearLayer, linear_layers
from graphopt.model import Model
from graphopt.moments import Pair, PairedMoments, merged, paired_moments
from graphopt.passes.prune.channels.tracker import label
from graphopt.progress import Progress
from graphopt.samples import Samples

_FOLDS = 4  # shares of the samples; one of them judges how strongly weights are held to what they were


@dataclass(frozen=True, eq=False)
class Refit:
    """What a reconstruction did.

    Attributes:
        fitted: Number of layers.
        skips: Layers that were left alone, and why.
    """

    fitted: int
    skips: tuple[Skip, ...]


def reconstruct(
    original: Model, pruned: Model, rows: Mapping[str, np.ndarray], samples: Samples, progress: Progress
) -> Refit:
    """Fit the layers of a pruned model in place.

    Args:
        original: Gives the targets; its tensors have the same names.
        pruned: What is fitted.
        rows: For each layer, by the name of its output, the channels that are left of the original's, int [rows].
        samples: Run once for each layer, up to the layer.
        progress: Where it reports.
    """
    shown = {id(tensor) for tensor in pruned.graph.outputs}
    layers, skips = _fittable(pruned)
    for layer in progress.track(layers, "reconstruct", len(layers)):
        name = layer.node.outputs[0].name
        pair = Pair(layer, name, rows.get(name, np.arange(layer.groups * layer.rows)))
        (moments,) = paired_moments(original, pruned, [pair], samples, folds=_FOLDS)
        _fit(layer, moments, find_bias(layer, shown))
    return Refit(len(layers), tuple(skips))


def _fittable(model: Model) -> tuple[list[LinearLayer], list[Skip]]:
    layers, skips = [], []
    for layer in linear_layers(model):
        plain = layer.node.attrs.get("alpha", 1.0) == layer.node.attrs.get("beta", 1.0) == 1.0
        if len(layer.weight.outputs) != 1:
            skips.append(Skip(label(layer.node), "its weight is shared, so it is not fitted to one layer's inputs"))
        elif not plain:
            skips.append(Skip(label(layer.node), "a Gemm with factors is not fitted"))
        else:
            layers.append(layer)
    return layers, skips


def _fit(layer: LinearLayer, moments: PairedMoments, bias: Bias | None) -> None:
    """Put the best weights and, where the layer has one, the best bias in their places."""
    shares = moments.folds
    fitted, unseen = (merged(shares[:-1]), shares[-1]) if len(shares) == _FOLDS else (None, None)
    parts = [None if part is None else _problem(part, centred=bias is not None) for part in (moments, fitted, unseen)]
    whole = parts[0]
    assert whole is not None
    prior = layer.matrix()
    weight = judged_ridge(whole, parts[1], parts[2], prior)
    if bias is not None:
        bias.shift(_needed_shift(layer, moments, weight))
    layer.node.inputs[1] = Constant(layer.weight.name, layer.stored(weight))


def _problem(moments: PairedMoments, *, centred: bool) -> Problem:
    seen = moments.centred if centred else moments
    return Problem(seen.second, seen.cross, seen.energy)


def _needed_shift(layer: LinearLayer, moments: PairedMoments, weight: np.ndarray) -> np.ndarray:
    """Return what the bias must gain so that the mean of the outputs is right, [groups * rows]."""
    wanted = moments.target_mean - np.einsum("grk,gk->gr", weight, moments.mean)
    own = layer.node.inputs[2].values if len(layer.node.inputs) > 2 and layer.node.op != "MatMul" else 0.0
    return np.asarray(wanted.ravel() - np.asarray(own, np.float64).ravel())
