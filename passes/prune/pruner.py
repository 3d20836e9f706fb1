"""One run of pruning by masks: how much of which weight, by which method, and trials of that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from graphopt.compensate import NofM, Pattern
from graphopt.compensate.patterns import fraction
from graphopt.context import Context
from graphopt.evaluate.error import OutputError
from graphopt.gradients.tuning import tune
from graphopt.ir.graph import constants
from graphopt.layers import linear_layers
from graphopt.model import Model
from graphopt.passes.prune.allocate import RATIOS, Curve, energy_curve, share_out
from graphopt.passes.prune.costs import costs_of
from graphopt.passes.prune.fitted import Alone, Method, alone, fit_sites, site_losses, trials
from graphopt.passes.prune.options import NEED_SAMPLES
from graphopt.passes.prune.plain import Scorer, count_zeros, zero_all_but, zero_below, zero_smallest
from graphopt.passes.prune.search import Snapshot, furthest
from graphopt.passes.prune.shares import SHARES, Shares
from graphopt.passes.prune.sites import Site, sites_of
from graphopt.passes.prune.variety import Varied
from graphopt.passes.prune.weights import Weight

if TYPE_CHECKING:
    from graphopt.passes.prune.prune import Prune

_KEPT, _COPIES = 2**28, 3  # bytes of moments that are kept between trials, and how many copies of them solving makes
_SAMPLES = 128  # that weights are fitted to
_JUDGES = 16  # samples on which ways to share out a ratio are compared
_BLENDS = (1.0, 0.75, 0.5, 0.25, 0.0)  # of ratios by loss with equal ones: what layers lose themselves is not all
_FEW = 8  # weights; where there are fewer, blends are not worth their time


@dataclass(eq=False)
class Pruner:
    """One run of the pass over its weights.

    Attributes:
        model: What is pruned, in place.
        original: What it was before; the model itself if nothing is fitted to it.
        context: Surroundings.
        options: Of the pass.
        pattern: Where zeros may stand.
        weights: Weights that the pattern fits.
        sites: Those among them that are fitted to what their layers read, by id of the constant.
        left_out: Samples that could not be used, as not all that they give is finite.
        tuned: Weights and biases that were tuned by gradients in the end.
        untuned: Why none were, if any could have been.
    """

    model: Model
    original: Model
    context: Context
    options: Prune
    pattern: Pattern
    weights: Sequence[Weight]
    sites: dict[int, Site]
    left_out: int = 0
    tuned: int = 0
    untuned: str = ""
    _known: dict[int, Alone] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model, context: Context, options: Prune, pattern: Pattern, weights: Sequence[Weight]) -> Pruner:
        """Return what is needed to prune a model in place."""
        fitted = bool(context.samples) and _looks_at_inputs(options)
        sites = sites_of(model, weights, linear_layers(model)) if fitted else {}
        return cls(model, model.copy() if fitted else model, context, options, pattern, weights, sites)

    def run(self) -> tuple[str, ...]:
        """Prune in place; return what the user should know."""
        if self.options.threshold is not None:
            for weight in self.weights:
                zero_below(weight, self.options.threshold, self._scorer)
            return ()
        if self.options.ratio == "auto":
            search = (self._attempt, self.model, self._snapshot(), self._sparsity(), self.context, self.options.budget)
            return furthest(*search)
        if self.options.scope == "layer" or self._sparsity() < self.options.ratio:
            self.prune(self.options.ratio, self._best_blend(self.options.ratio))
        return ()

    def prune(self, ratio: float, blend: float) -> None:
        """Prune all weights together by a ratio, in place."""
        if self._is_global:
            zero_smallest(self.weights, ratio, self._scorer)
            return
        work, rest = self._work(ratio, blend)
        self._zero(rest)
        if work:
            left_out = fit_sites(self.original, self.model, work, self._method, self._shares, self.context.progress)
            self.left_out = max(self.left_out, left_out)
            self._tune()

    def _tune(self) -> None:
        """Tune what is not zero together, towards the outputs of the original."""
        if not self.options.reconstruct:
            return
        samples = Varied(self._shares)
        found = tune(self.original, self.model, samples, self.context.progress, self._rng("tune"), apart=SHARES)
        self.tuned, self.untuned = found

    def try_out(self, ratio: float, blends: Sequence[float]) -> Iterator[float]:
        """Put the weights of each blend, pruned roughly, into the model, and yield the blend; the last ones stay."""
        if self._is_global or not self.sites:
            for blend in blends:
                self.prune(ratio, blend)
                yield blend
            return
        works = [self._work(ratio, blend) for blend in blends]
        sites = {id(site): site for work, _ in works for site, _ in work}
        parts = [{id(site): part for site, part in work} for work, _ in works]
        ratios = {key: [part.get(key, 0.0) for part in parts] for key in sites}
        known = self._alone(list(sites.values()))
        found = trials(known, ratios, self._method) if sites else [Snapshot(())] * len(blends)
        for blend, trial, (_, rest) in zip(blends, found, works, strict=True):
            trial.restore()
            self._zero(rest)
            yield blend

    def _alone(self, sites: Sequence[Site]) -> Iterable[Alone]:
        """Return sites by themselves, as the model is before it is pruned; they are kept if they are small enough."""
        size = sum(8 * site.layers[0].groups * site.layers[0].inputs ** 2 for site in self.sites.values())
        if _COPIES * size > _KEPT:
            return alone(self.model, sites, self.pattern, self._shares, self.context.progress)
        if not self._known:
            found = alone(self.model, self.sites.values(), self.pattern, self._shares, self.context.progress)
            self._known.update((id(each.site), each) for each in found)
        return [self._known[id(site)] for site in sites]

    def _work(self, ratio: float, blend: float) -> tuple[list[tuple[Site, float]], list[tuple[Weight, float]]]:
        """Return what is to be pruned by which ratio: the sites, and the other weights."""
        work, rest = [], []
        for weight, part in zip(self.weights, self._ratios(ratio, blend), strict=True):
            part = self.pattern.ratio if isinstance(self.pattern, NofM) and part > 0 else part
            site = self.sites.get(id(weight.constant))
            if count_zeros(weight) >= fraction(part, weight.size):
                continue
            if site is not None:
                work.append((site, part))
            else:
                rest.append((weight, part))
        return work, rest

    def _zero(self, rest: Sequence[tuple[Weight, float]]) -> None:
        """Zero what is small in weights that are not fitted, in place."""
        for weight, part in rest:
            if isinstance(self.pattern, NofM):
                zero_all_but(weight, self.pattern, self._scorer)
            else:
                zero_smallest([weight], part, self._scorer)

    def _attempt(self, ratio: float, *, final: bool) -> None:
        """Prune as a search asks for: roughly while it looks around."""
        if final:
            self.prune(ratio, self._best_blend(ratio))
        else:
            list(self.try_out(ratio, _BLENDS[:1]))

    def _ratios(self, ratio: float, blend: float) -> list[float]:
        """Return the ratio of each weight: shared out by loss, blended with equal ones."""
        if self.options.scope == "layer":
            return [ratio] * len(self.weights)
        if isinstance(self.pattern, NofM):
            return share_out(self._curves, ratio)
        return [blend * own + (1 - blend) * ratio for own in share_out(self._curves, ratio)]

    def _best_blend(self, ratio: float) -> float:
        """Return the blend whose model, pruned roughly, comes closest to the original's outputs."""
        single = len(self.weights) < _FEW or isinstance(self.pattern, NofM)
        if not self.sites or self.options.scope != "adaptive" or single:
            return 1.0
        unseen = self._shares.unseen
        judge = OutputError(self.original, unseen.take(min(_JUDGES, len(unseen))))
        snapshot = self._snapshot()
        errors = {}
        for blend in self.try_out(ratio, _BLENDS):
            errors[blend] = judge(self.model)
            snapshot.restore()
        return min(errors, key=lambda blend: errors[blend])

    def _snapshot(self) -> Snapshot:
        return Snapshot.of((*constants(self.model.graph), *(weight.constant for weight in self.weights)))

    def _sparsity(self) -> float:
        """Return which part of the cost is zero already; where weights share a ratio, so are the remainders."""
        left = 1 if len(self.weights) > 1 and self.options.scope != "layer" else 0
        zeros = [(count + left if count else 0) / weight.size for weight, count in self._zeros()]
        costs = self._costs
        return float(np.dot(costs, np.minimum(zeros, 1)) / max(sum(costs), 1.0))

    def _zeros(self) -> Iterator[tuple[Weight, int]]:
        return ((weight, count_zeros(weight)) for weight in self.weights)

    @cached_property
    def _curves(self) -> list[Curve]:
        """What each weight loses by its ratio."""
        steps = (0.0, self.pattern.ratio) if isinstance(self.pattern, NofM) else RATIOS
        whole, relative = isinstance(self.pattern, NofM), self.options.scope == "adaptive"
        wanted = self.options.scope != "layer"
        known = site_losses(self._alone(list(self.sites.values())), steps) if wanted and self.sites else {}
        curves = []
        for weight, cost in zip(self.weights, self._costs, strict=True):
            found = known.get(id(weight.constant))
            if found is None:
                curves.append(energy_curve(weight, cost, steps, relative=relative, whole=whole))
                continue
            losses, energy = found
            scale = energy if relative and energy > 0 else 1.0
            curves.append(Curve(steps, tuple(loss / scale for loss in losses), cost, whole))
        return curves

    @cached_property
    def _shares(self) -> Shares:
        """What is fitted to, and what judges it."""
        assert self.context.samples is not None
        return Shares.of(self.context.samples.take(_SAMPLES), self.original)

    @cached_property
    def _costs(self) -> list[float]:
        """What each weight costs in the unit of the ratio."""
        return costs_of(self.weights, self.options.of, self.model, self.context.samples)

    @property
    def _is_global(self) -> bool:
        """Whether all weights are compared with each other, which needs no ratio for each."""
        plain = not self.sites and not isinstance(self.pattern, NofM)
        return plain and self.options.scope == "global" and self.options.of == "weights"

    @property
    def _method(self) -> Method:
        criterion = "obs" if self.options.criterion == "auto" else self.options.criterion
        return Method(self.pattern, criterion, self.options.reconstruct, self._rng)

    @property
    def _scorer(self) -> Scorer:
        named = "l1" if self.options.criterion in (*NEED_SAMPLES, "auto") else self.options.criterion
        return Scorer(self.pattern, named, self._rng)

    def _rng(self, name: str) -> np.random.Generator:
        return self.context.rng(f"prune/{name}")


def _looks_at_inputs(options: Prune) -> bool:
    """Whether samples would change anything."""
    return options.threshold is None and (options.reconstruct or options.criterion in NEED_SAMPLES)
