"""Pruning that looks at what layers read: second-order masks, and least squares for what stays.

Layers are taken front to back. Each is fitted to what the model gave in its place before the pass, from what it reads
now, so that it makes up for the layers before it as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from graphopt.biases import Bias, find_bias, fixed_bias
from graphopt.compensate import Pattern, damped
from graphopt.compensate.problem import SparseProblem
from graphopt.context import Context
from graphopt.layers import LinearLayer
from graphopt.model import Model
from graphopt.moments import Pair, PairedMoments, layer_moments, paired_moments
from graphopt.passes.prune.levels import levels
from graphopt.passes.prune.scores import score_of
from graphopt.passes.prune.weights import Weight
from graphopt.samples import Samples
from graphopt.walk import Walk

_SAMPLES = 64  # that moments rest on
_TRIAL_SAMPLES = 32  # that moments rest on in trials, and the comparison of layers
_EVIDENCE = 64  # positions for each input of a layer, about


@dataclass(frozen=True)
class Method:
    """How a layer is pruned.

    Attributes:
        pattern: Where zeros may stand.
        criterion: Its name.
        reconstruct: Whether what stays is fitted to the original outputs.
        rng: Returns the generator for a weight's name.
        rough: Whether it is a trial: in one stage, on fewer samples, and without the last step of the fit.
    """

    pattern: Pattern
    criterion: str
    reconstruct: bool
    rng: Callable[[str], np.random.Generator]
    rough: bool = False

    def solve(self, problem: SparseProblem, ratio: float, name: str) -> np.ndarray:
        """Return the sparse weights of a layer, [groups, rows, inputs]; the name is the weight's."""
        if self.criterion == "obs" and self.reconstruct:
            return problem.fit(ratio, refit=not self.rough)
        score = score_of(self.criterion, self.pattern, self.rng(name))
        return problem.masked(ratio, score, refit=self.reconstruct and not self.rough)


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


def problem_of(site: Site, found: Sequence[PairedMoments], pattern: Pattern, *, inherited: bool) -> SparseProblem:
    """Return what a site's weight should come close to, its inputs in the order of `Site.columns`.

    Args:
        site: Place.
        found: Moments of its layers.
        pattern: Where zeros may stand.
        inherited: Whether the layer makes up for the error of the layers before it too. The weights wanted are then
            ``W + (C - W H) H^-1``, with the cross moment C of inputs and targets; else they are the present ones.
    """
    order = site.columns
    present = site.layers[0].matrix()
    seen = [moments.centred if site.bias is not None else moments for moments in found]
    second = np.sum([moments.second for moments in seen], axis=0)
    moment, trust = _known(second, sum(moments.count for moments in found))
    wanted = present
    if inherited:
        pairs = zip(site.layers, seen, strict=True)
        lack = np.sum([_cross(layer, moments) - present @ moments.second for layer, moments in pairs], axis=0)
        wanted = present + trust * np.linalg.solve(moment, np.swapaxes(lack, -1, -2)).swapaxes(-1, -2)
    return SparseProblem(wanted[..., order], moment[..., order[:, None], order], pattern)


def _known(second: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return moments shrunk and damped, so that they can be inverted, and the trust in them, [groups, 1, 1]."""
    trust = 1 - shrinkage(second, count)[:, None, None]
    return damped(trust * second + (1 - trust) * second * np.eye(second.shape[-1])), trust


def _cross(layer: LinearLayer, moments: PairedMoments) -> np.ndarray:
    """Return the cross moment of a layer's inputs with what its matrix alone should give, [groups, rows, inputs]."""
    added = fixed_bias(layer)
    assert added is not None, "only layers whose bias is known inherit"
    return np.asarray(moments.cross - added[:, :, None] * moments.mean[:, None, :])  # about the means, it falls out


def fit_sites(
    original: Model,
    model: Model,
    work: Sequence[tuple[Site, float]],
    method: Method,
    context: Context,
) -> int:
    """Prune the sites, in place and front to back, each by its ratio; return how many samples could not be used.

    Args:
        original: The model before the pass.
        model: A copy of it, edited.
        work: Sites with their ratios, in any order.
        method: How.
        context: Samples and progress.
    """
    assert context.samples is not None
    samples = context.samples.take(min(_TRIAL_SAMPLES if method.rough else _SAMPLES, len(context.samples)))
    if method.rough:
        stream = _moments(original, model, [site for site, _ in work], samples, context)
        return _fit_all(work, stream, method, inherited=False)
    left_out = 0
    with Walk(original, model, samples, context.progress) as walk:
        for stage in _in_stages(model, work):
            shared = [(site, ratio) for site, ratio in stage if len(site.layers) > 1]
            single = [(site, ratio) for site, ratio in stage if len(site.layers) == 1]
            near = ([found] for found in walk.moments([site.layers[0] for site, _ in single]))
            far = _moments(original, model, [site for site, _ in shared], samples, context)
            for part, stream in ((single, near), (shared, far)):
                left_out = max(left_out, _fit_all(part, stream, method, inherited=True))
    return left_out


def _fit_all(
    work: Sequence[tuple[Site, float]], stream: Iterator[list[PairedMoments]], method: Method, *, inherited: bool
) -> int:
    """Prune sites by the moments of their layers, in place; return how many samples no moment holds."""
    left_out = 0
    for (site, ratio), found in zip(work, stream, strict=True):
        _fit(site, ratio, found, method, inherited=inherited)
        left_out = max(left_out, *(moments.left_out for moments in found))
    return left_out


def _moments(
    original: Model, model: Model, sites: Sequence[Site], samples: Samples, context: Context
) -> Iterator[list[PairedMoments]]:
    """Yield the moments of each site's layers, wherever these are."""
    pairs = [Pair.same(layer) for site in sites for layer in site.layers]
    stream = paired_moments(original, model, pairs, samples, progress=context.progress)
    return ([next(stream) for _ in site.layers] for site in sites)


def _fit(site: Site, ratio: float, found: Sequence[PairedMoments], method: Method, *, inherited: bool) -> None:
    """Prune one site, in place."""
    known = site.knows_biases and all(moments.count for moments in found)
    inherited = inherited and method.reconstruct and known
    problem = problem_of(site, found, method.pattern, inherited=inherited)
    _write(site, method.solve(problem, ratio, site.weight.name), found[0], inherited=inherited)


def site_losses(
    model: Model, sites: Iterable[Site], method: Method, ratios: Sequence[float], context: Context
) -> dict[int, tuple[list[float], float]]:
    """Return what each site loses at each ratio, with the energy of its outputs, by id of its constant."""
    assert context.samples is not None
    samples = context.samples.take(min(_TRIAL_SAMPLES, len(context.samples)))
    first = {id(site.layers[0].node): site for site in sites}
    found = {}
    for moments in layer_moments(
        model, [site.layers[0] for site in first.values()], samples, progress=context.progress
    ):
        site = first[id(moments.layer.node)]
        second = moments.second if site.bias is None else moments.covariance
        moment, _ = _known(second, _EVIDENCE * site.layers[0].inputs)
        order = site.columns
        target = site.layers[0].matrix()[..., order]
        problem = SparseProblem(target, moment[..., order[:, None], order], method.pattern)
        energy = problem.loss(np.zeros_like(problem.target))
        found[id(site.weight.constant)] = problem.losses(ratios), energy
    return found


def _in_stages(model: Model, work: Sequence[tuple[Site, float]]) -> list[list[tuple[Site, float]]]:
    """Return the work front to back; what is in one stage, of a row of nodes, does not read each other's results."""
    nodes = {id(layer.node) for site, _ in work for layer in site.layers}
    level = levels(model.graph, nodes)
    place = {id(node): position for position, node in enumerate(model.graph.nodes)}
    ordered = sorted(work, key=lambda item: place[id(item[0].layers[0].node)])
    return [list(stage) for _, stage in groupby(ordered, key=lambda item: level[id(item[0].layers[0].node)])]


def _write(site: Site, solved: np.ndarray, moments: PairedMoments, *, inherited: bool) -> None:
    """Store a solved matrix and let the bias take up the mean."""
    layer = site.layers[0]
    matrix = np.empty_like(solved)
    matrix[..., site.columns] = solved
    if site.bias is not None:
        lost = np.einsum("grk,gk->gr", layer.matrix() - matrix, moments.mean)
        if inherited:
            lost += moments.target_mean - np.einsum("grk,gk->gr", layer.matrix(), moments.mean)
            lost -= fixed_bias(layer)
        site.bias.shift(lost.ravel())
    site.weight.constant.values = layer.stored(matrix)


def shrinkage(second: np.ndarray, count: int) -> np.ndarray:
    """Return how far each moment should go toward its diagonal, [groups], in [0, 1]: the less is known, the further.

    Source: Chen et al., "Shrinkage Algorithms for MMSE Covariance Estimation" (OAS), arXiv:0907.4698, equation 23, of
    the correlations.

    Args:
        second: Second moments, [groups, inputs, inputs].
        count: Observations that they rest on.
    """
    inputs = second.shape[-1]
    diagonal = np.maximum(np.einsum("gkk->gk", second), 0)  # of a constant input, rounding may leave less
    scale = np.divide(1, np.sqrt(diagonal), out=np.zeros_like(diagonal), where=diagonal > 0)
    square = np.square(second * scale[:, :, None] * scale[:, None, :]).sum(axis=(1, 2))
    above = (1 - 2 / inputs) * square + inputs**2
    below = (count + 1 - 2 / inputs) * np.maximum(square - inputs, 0)
    return np.asarray(np.minimum(1.0, np.divide(above, below, out=np.ones_like(above), where=below > 0)))
