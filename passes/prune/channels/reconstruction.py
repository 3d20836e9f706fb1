"""Fitting the layers of a pruned model to the outputs that the original gives in their places.

Front to back, each layer ``y = W x + b`` is fitted by least squares to the outputs of the same layer in the original
model, while x is what the pruned and already fitted layers before it give. So a layer makes up for what its own inputs
lost and for what went wrong before it. This replaces training: it needs samples but neither labels nor gradients.

Source: He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", arXiv:1707.06168, section 3.1, with the
asymmetric target of its section 4.1.2, for all layers instead of those after removed channels, and with the error of a
shortcut left to its branch (section 4.1.3 there).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.base import Skip
from graphopt.biases import Bias, find_bias
from graphopt.compensate.ridge import Problem, judged_ridge
from graphopt.ir.graph import Constant
from graphopt.layers import LinearLayer, linear_layers
from graphopt.model import Model
from graphopt.moments import Pair, PairedMoments
from graphopt.passes.prune.channels.tracker import captured, label
from graphopt.passes.prune.shares import SHARES
from graphopt.passes.prune.variety import Varied
from graphopt.progress import Progress
from graphopt.samples import Samples
from graphopt.shapes import shapes_for
from graphopt.walk import Walk

_SCALE = 2.0  # by which a layer that is not fitted is scaled at most
_ROWS = 1  # observations for each input of a layer; from fewer, such as pooled values, no fit holds for other samples


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
        original: Gives the targets; has the same nodes, and its tensors have the same names.
        pruned: What is fitted.
        rows: For each layer, by the name of its output, the channels that are left of the original's, int [rows].
        samples: What both run on, also in variants of pictures.
        progress: Where it reports.
    """
    shown = {id(tensor) for tensor in pruned.graph.outputs}
    shapes = shapes_for(pruned, next(iter(samples)))
    layers, skips = _fittable(pruned)
    fitted = 0
    with Walk(original, pruned, Varied(samples), progress) as walk:
        for layer in progress.track(layers, "reconstruct", len(layers)):
            site = _site(layer, pruned, shapes, shown)
            every = np.arange(layer.groups * layer.rows)
            pair = Pair(layer, site.target, rows.get(layer.node.outputs[0].name, every), site.besides)
            (moments,) = walk.paired([pair], apart=SHARES)
            if moments.count < _ROWS * layer.inputs:
                seen = f"{moments.count} observations of its {layer.inputs} inputs"
                skips.append(Skip(label(layer.node), f"the samples have {seen}: it is not fitted, only scaled"))
                _scale(site, moments)
                continue
            _fit(site, moments)
            fitted += 1
    return Refit(fitted, tuple(skips))


@dataclass(frozen=True, eq=False)
class Site:
    """A layer with what it should give.

    Attributes:
        layer: The layer.
        bias: Its bias, if it has one that may change.
        target: Name of what the original gives in its place: in a residual branch, of the sum with the shortcut, so
            that the branch makes up for the error of the shortcut.
        besides: Name of the shortcut, or empty.
    """

    layer: LinearLayer
    bias: Bias | None
    target: str
    besides: str

    @property
    def added(self) -> np.ndarray | float:
        """What the bias adds to the layer's matrix in the target, [rows]."""
        if self.bias is not None and (self.besides or self.layer.node.op != "MatMul"):
            return np.asarray(self.bias.constant.values, np.float64).ravel()
        return 0.0


def _site(layer: LinearLayer, model: Model, shapes: Mapping[str, tuple[int, ...]], shown: set[int]) -> Site:
    bias, output = find_bias(layer, shown), layer.node.outputs[0]
    own = Site(layer, bias, output.name, "")
    given = output.outputs[0].outputs[0] if layer.node.op == "MatMul" and bias is not None else output
    if id(given) in shown or len(given.outputs) != 1 or given.outputs[0].op != "Add":
        return own
    added = given.outputs[0]
    others = [tensor for tensor in added.inputs if tensor is not given]
    if len(others) != 1 or isinstance(others[0], gs.Constant):
        return own
    if given.name not in shapes or shapes.get(others[0].name) != shapes[given.name]:
        return own
    known = [*model.graph.inputs]
    for node in model.graph.nodes:
        if node is layer.node:
            break
        known.extend(node.outputs)
    if not any(tensor is others[0] for tensor in known):
        return own  # the other side comes later, and will make up for this one
    return Site(layer, bias, added.outputs[0].name, others[0].name)


def _fittable(model: Model) -> tuple[list[LinearLayer], list[Skip]]:
    layers, skips = [], []
    needed = _needed(model)
    for layer in linear_layers(model):
        plain = layer.node.attrs.get("alpha", 1.0) == layer.node.attrs.get("beta", 1.0) == 1.0
        if id(layer.node) not in needed:
            continue
        if len(layer.weight.outputs) != 1:
            skips.append(Skip(label(layer.node), "its weight is shared, so it is not fitted to one layer's inputs"))
        elif not plain:
            skips.append(Skip(label(layer.node), "a Gemm with factors is not fitted"))
        else:
            layers.append(layer)
    return layers, skips


def _needed(model: Model) -> set[int]:
    """Return the ids of the nodes that lead to an output."""
    found: set[int] = set()
    pending = list(model.graph.outputs)
    while pending:
        for node in pending.pop().inputs:
            if id(node) not in found:
                found.add(id(node))
                pending.extend([*node.inputs, *captured(node)])
    return found


def _fit(site: Site, moments: PairedMoments) -> None:
    """Put the best weights and, where the layer has one, the best bias in their places."""
    fitted, unseen = moments.split or (None, None)
    parts = [None if part is None else _problem(site, part) for part in (moments, fitted, unseen)]
    whole = parts[0]
    assert whole is not None
    _put(site, judged_ridge(whole, parts[1], parts[2], site.layer.matrix()), moments)


def _scale(site: Site, moments: PairedMoments) -> None:
    """Scale the weights so that what the layer gives varies as much as what it should give.

    What layers before it no longer tell is missing in its inputs, so that they vary less than they did. Scores that are
    too close to each other are wrong by more than their squared error tells.

    Source: Jordan et al., "REPAIR: REnormalizing Permuted Activations for Interpolation Repair", arXiv:2211.08403.
    """
    problem, weight = _problem(site, moments), site.layer.matrix()
    given = float(np.vdot(weight @ problem.second, weight))
    if given > 0 and problem.energy.sum() > 0:
        _put(site, weight * np.clip(np.sqrt(problem.energy.sum() / given), 1 / _SCALE, _SCALE), moments)


def _put(site: Site, weight: np.ndarray, moments: PairedMoments) -> None:
    """Give a layer its weights, [groups, rows, inputs], and the bias that takes up the means."""
    if site.bias is not None:
        wanted = moments.target_mean - np.einsum("grk,gk->gr", weight, moments.mean)
        site.bias.shift(wanted.ravel() - site.added)
    site.layer.node.inputs[1] = Constant(site.layer.weight.name, site.layer.stored(weight))


def _problem(site: Site, moments: PairedMoments) -> Problem:
    seen = moments.centred if site.bias is not None else moments
    return Problem(seen.second, seen.cross, seen.energy)
