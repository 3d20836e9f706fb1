"""Pruning that looks at what layers read: second-order masks, and least squares for what stays.

Layers are taken front to back. Each is fitted to what the model gave in its place before the pass, from what it reads
now, so that it makes up for the layers before it as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.compensate import Pattern
from graphopt.compensate.problem import SparseProblem
from graphopt.ir.graph import Payload
from graphopt.model import Model
from graphopt.moments import Pair, PairedMoments, Stream, layer_moments, paired_moments
from graphopt.passes.prune.levels import levels
from graphopt.passes.prune.regularize import judged_problem, problem_of
from graphopt.passes.prune.scores import score_of
from graphopt.passes.prune.search import Snapshot
from graphopt.passes.prune.shares import SHARES, Shares
from graphopt.passes.prune.sites import Evidence, Site, evidence_of
from graphopt.passes.prune.variety import Varied
from graphopt.progress import Progress
from graphopt.walk import Walk

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
    """

    pattern: Pattern
    criterion: str
    reconstruct: bool
    rng: Callable[[str], np.random.Generator]

    def solve(self, problem: SparseProblem, ratio: float, name: str, *, rough: bool = False) -> np.ndarray:
        """Return the sparse weights of a layer, [groups, rows, inputs].

        Args:
            problem: The layer.
            ratio: Fraction that goes.
            name: Of the weight.
            rough: Whether the last step of the fit is left out, as in trials.
        """
        if self.criterion == "obs" and self.reconstruct:
            return problem.fit(ratio, refit=not rough)
        score = score_of(self.criterion, self.pattern, self.rng(name))
        return problem.masked(ratio, score, refit=self.reconstruct and not rough)


def fit_sites(
    original: Model,
    model: Model,
    work: Sequence[tuple[Site, float]],
    method: Method,
    shares: Shares,
    progress: Progress,
) -> int:
    """Prune the sites, in place and front to back, each by its ratio; return how many samples could not be used.

    Args:
        original: The model before the pass.
        model: A copy of it, edited.
        work: Sites with their ratios, in any order.
        method: How.
        shares: What both run on, also in variants of pictures.
        progress: Where it reports.
    """
    left_out = 0
    varied = Varied(shares)
    with Walk(original, model, varied, progress) as walk:
        for stage in _in_stages(model, work):
            shared = [(site, ratio) for site, ratio in stage if len(site.layers) > 1]
            single = [(site, ratio) for site, ratio in stage if len(site.layers) == 1]
            near = ([found] for found in walk.paired([Pair.same(site.layers[0]) for site, _ in single], apart=SHARES))
            far = _moments(original, model, [site for site, _ in shared], varied, progress)
            for part, stream in ((single, near), (shared, far)):
                for (site, ratio), found in zip(part, stream, strict=True):
                    _fit(site, ratio, found, method)
                    left_out = max(left_out, *(moments.left_out for moments in found))
    return left_out


def _moments(
    original: Model, model: Model, sites: Sequence[Site], samples: Stream, progress: Progress
) -> Iterator[list[PairedMoments]]:
    """Yield the moments of each site's layers, wherever these are."""
    pairs = [Pair.same(layer) for site in sites for layer in site.layers]
    stream = paired_moments(original, model, pairs, samples, apart=SHARES, progress=progress)
    return ([next(stream) for _ in site.layers] for site in sites)


def _fit(site: Site, ratio: float, found: Sequence[PairedMoments], method: Method) -> None:
    """Prune one site, in place; it makes up for what it inherits where that can be told."""
    known = site.knows_biases and all(moments.count for moments in found)
    inherited = method.reconstruct and known
    whole = evidence_of(site, found, inherited=inherited)
    shares = list(zip(*(moments.split for moments in found), strict=True))
    if shares and all(moments.count for share in shares for moments in share):
        fitted, unseen = (evidence_of(site, share, inherited=inherited) for share in shares)
        problem = judged_problem(site.present(), whole, fitted, unseen, method.pattern, ratio)
    else:
        problem = problem_of(site.present(), whole, method.pattern)
    solved = method.solve(problem, ratio, site.weight.name)
    site.write(solved, found[0].mean, found[0].target_mean if inherited else None)


@dataclass(frozen=True, eq=False)
class Alone:
    """A site by itself, as trials see it.

    Attributes:
        site: The site.
        problem: What its weight should come close to: what it is.
        mean: Of what its first layer reads, [groups, inputs].
    """

    site: Site
    problem: SparseProblem
    mean: np.ndarray


def alone(model: Model, sites: Iterable[Site], pattern: Pattern, shares: Shares, progress: Progress) -> Iterator[Alone]:
    """Yield each site by itself, by what its first layer reads on samples that do not judge trials."""
    samples = shares.fitted.take(min(_TRIAL_SAMPLES, len(shares.fitted)))
    first = {id(site.layers[0].node): site for site in sites}
    layers = [site.layers[0] for site in first.values()]
    for moments in layer_moments(model, layers, samples, progress=progress):
        site = first[id(moments.layer.node)]
        second = moments.second if site.bias is None else moments.covariance
        order, present = site.columns, site.present()
        evidence = Evidence(second[..., order[:, None], order], np.zeros(present.shape), _EVIDENCE * len(order))
        yield Alone(site, problem_of(present, evidence, pattern), moments.mean)


def site_losses(known: Iterable[Alone], ratios: Sequence[float]) -> dict[int, tuple[list[float], float]]:
    """Return what each site loses at each ratio, with the energy of its outputs, by id of its constant."""
    return {
        id(each.site.weight.constant): (
            each.problem.losses(ratios),
            each.problem.loss(np.zeros_like(each.problem.target)),
        )
        for each in known
    }


def trials(known: Iterable[Alone], ratios: Mapping[int, Sequence[float]], method: Method) -> list[Snapshot]:
    """Return weights pruned roughly, each site by itself, as snapshots that can be put into the model.

    Args:
        known: Sites with the weights that the model has.
        ratios: Of each in every trial, by the site's id; 0 leaves it as it is.
        method: How.
    """
    held: list[list[tuple[gs.Constant, Payload]]] = [[] for _ in next(iter(ratios.values()))]
    for each in known:
        site = each.site
        before = Snapshot.of(site.constants)
        for trial, ratio in zip(held, ratios[id(site)], strict=True):
            if ratio > 0:
                site.write(method.solve(each.problem, ratio, site.weight.name, rough=True), each.mean)
                trial.extend(Snapshot.of(site.constants).held)
                before.restore()
    return [Snapshot(tuple(trial)) for trial in held]


def _in_stages(model: Model, work: Sequence[tuple[Site, float]]) -> list[list[tuple[Site, float]]]:
    """Return the work front to back; what is in one stage, of a row of nodes, does not read each other's results."""
    nodes = {id(layer.node) for site, _ in work for layer in site.layers}
    level = levels(model.graph, nodes)
    place = {id(node): position for position, node in enumerate(model.graph.nodes)}
    ordered = sorted(work, key=lambda item: place[id(item[0].layers[0].node)])
    return [list(stage) for _, stage in groupby(ordered, key=lambda item: level[id(item[0].layers[0].node)])]
