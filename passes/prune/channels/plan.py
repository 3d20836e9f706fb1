"""What can be removed from a model, in which order, and what that saves and loses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from graphopt.base import Skip
from graphopt.context import Context
from graphopt.model import Model
from graphopt.passes.prune.channels.allocation import Curve, allocate, curve, pinned, uniform
from graphopt.passes.prune.channels.costs import Costs, mac_costs, time_costs, weight_costs
from graphopt.passes.prune.channels.dependencies import Dependencies, Group, find_dependencies
from graphopt.passes.prune.channels.ranking import Ranking, rank_by_reader, rank_by_weight
from graphopt.passes.prune.channels.readers import moment_bytes, takers_of
from graphopt.passes.prune.channels.rotation import turn, turnings
from graphopt.passes.prune.channels.sensitivity import Meter
from graphopt.passes.prune.channels.tracker import label
from graphopt.shapes import shapes_for

if TYPE_CHECKING:
    from graphopt.passes.prune.prune import Prune

_BY_READER = frozenset({"obs", "wanda", "fluctuation"})
_FEW = 16  # samples that coordinates are chosen by: of few channels, at many positions
_HELD = 2**30  # bytes of second moments at most of the layers that read a group: they are compared, so all are held
_LANES = 8  # floats that kernels take at once; a convolution with a rest pays for a whole block


@dataclass(frozen=True, eq=False)
class Plan:
    """What can be removed from a model, and in which order.

    Attributes:
        model: The model.
        shapes: Shapes of its tensors on one sample.
        found: Its dependencies.
        turns: Coordinates of groups in which the rankings are, by the number of the group; see `rotation`.
        rankings: One a group.
        curves: Likewise.
        costs: What the ratio is a fraction of.
        even: Whether all groups give up the same fraction, as plain filter pruning does.
        by_reader: Whether channels are ranked by the layers that read them.
        unknown: Layers that the user named and that do not exist, or give no channels that can be removed.
    """

    model: Model
    shapes: Mapping[str, tuple[int, ...]]
    found: Dependencies
    turns: Mapping[int, np.ndarray]
    rankings: tuple[Ranking, ...]
    curves: tuple[Curve, ...]
    costs: Costs
    even: bool
    by_reader: bool
    unknown: tuple[Skip, ...] = ()

    def of(self, model: Model) -> Plan:
        """Return the plan for a copy of its model."""
        if model is self.model:
            return self
        return replace(self, model=model, found=_removable(model, self.shapes, self.by_reader))

    def gone(self, ratio: float) -> np.ndarray:
        """Return which classes go so that the cost falls by a ratio, bool [classes]."""
        share = uniform if self.even else allocate
        gone = np.zeros(self.found.size, bool)
        for ranking, count in zip(self.rankings, share(self.curves, self.costs, ratio), strict=True):
            gone[ranking.order[:count]] = True
        return gone


def make_plan(model: Model, context: Context, options: Prune) -> Plan:
    """Find, rank and weigh what can be removed.

    Args:
        model: Stays as it is.
        context: Its samples, if there are any, give shapes, moments and what is measured.
        options: `of`, `criterion`, `scope` and `layers` count.
    """
    shapes = shapes_for(model, context.evaluator.inputs.example())
    criterion = "obs" if options.criterion == "auto" else options.criterion
    by_reader = criterion in _BY_READER
    found = _removable(model, shapes, by_reader)
    turns: Mapping[int, np.ndarray] = {}
    if criterion == "obs" and context.samples is not None:
        turns = turnings(model, found, context.samples.take(_FEW), context.progress)
    even = not by_reader and options.scope == "layer"
    ranked = _ranked(model, found, turns, criterion, shapes, context)
    curves = [curve(len(item.group.classes), 1 if even else _multiple(item.group), losses) for item, losses in ranked]
    unknown = _pin(curves, found, options.stated_layers)
    rankings = tuple(replace(item, trials=()) for item, _ in ranked)
    costs = _costs(model, found, shapes, options.of, context)
    return Plan(model, shapes, found, turns, rankings, tuple(curves), costs, even, by_reader, unknown)


def _removable(model: Model, shapes: Mapping[str, tuple[int, ...]], by_reader: bool) -> Dependencies:
    """Return the dependencies; to be ranked by its readers, a group must not have too large ones."""
    found = find_dependencies(model, shapes)
    if not by_reader:
        return found
    shown = {id(tensor) for tensor in model.graph.outputs}
    sizes = [moment_bytes(takers_of(group, found, shown)) for group in found.groups]
    kept = tuple(group for group, size in zip(found.groups, sizes, strict=True) if size <= _HELD)
    skips = (
        Skip(
            group.name,
            f"ranking its channels by the layers that read them takes {size / 1e9:.1f} GB of second moments, and "
            f"{_HELD / 1e9:.1f} GB are held at most; criterion=l2 needs none",
        )
        for group, size in zip(found.groups, sizes, strict=True)
        if size > _HELD
    )
    return replace(found, groups=kept, skips=(*found.skips, *skips))


def _pin(curves: list[Curve], found: Dependencies, stated: Mapping[str, float]) -> tuple[Skip, ...]:
    """Leave the groups that the user named no choice, in place; return the names that no group has."""
    unknown = []
    for pattern, ratio in stated.items():
        matched = [index for index, group in enumerate(found.groups) if _called(group, found, pattern)]
        for index in matched:
            curves[index] = pinned(curves[index], ratio)
        if not matched:
            unknown.append(Skip(pattern, "no layer of that name gives channels that can be removed"))
    return tuple(unknown)


def _called(group: Group, found: Dependencies, pattern: str) -> bool:
    """Whether the name of a layer that gives the channels of a group fits a pattern."""
    givers = (use for use in found.uses if use.role == "gives" and np.isin(use.atoms, group.classes).any())
    return any(fnmatchcase(label(use.node), pattern) for use in givers)


def _ranked(
    model: Model,
    found: Dependencies,
    turns: Mapping[int, np.ndarray],
    criterion: str,
    shapes: Mapping[str, tuple[int, ...]],
    context: Context,
) -> list[tuple[Ranking, np.ndarray]]:
    """Return the ranking of each group, in their order, in the coordinates that they are turned to, with its losses."""
    if criterion not in _BY_READER:
        by_weight = rank_by_weight(found, criterion, context.rng("prune/channels"))
        return [(item, item.losses) for item in by_weight]
    turned = model.copy()
    there = _removable(turned, shapes, by_reader=True)
    turn(turned, there, turns)
    place = {id(group): index for index, group in enumerate(there.groups)}
    return sorted(_measured(turned, there, criterion, context), key=lambda pair: place[id(pair[0].group)])


def _measured(
    model: Model, found: Dependencies, criterion: str, context: Context
) -> Iterator[tuple[Ranking, np.ndarray]]:
    """Yield each ranking with its losses; where there are samples, half of them rank and the others measure."""
    if context.samples is None:
        yield from ((item, item.losses) for item in rank_by_reader(model, found, None, criterion, context.progress))
        return
    fitted, unseen = context.samples.halves()
    meter = Meter(model, unseen)
    for item in rank_by_reader(model, found, fitted, criterion, context.progress):
        yield item, meter.losses(item)


def _costs(model: Model, found: Dependencies, shapes: dict[str, tuple[int, ...]], unit: str, context: Context) -> Costs:
    if unit in ("weights", "bytes"):
        return weight_costs(model, found, in_bytes=unit == "bytes")
    if unit == "latency":
        return time_costs(model, found, next(iter(context.samples or context.evaluator.inputs.made_up())))
    return mac_costs(model, found, shapes)


def _multiple(group: Group) -> int:
    """Return of how many classes of a group a multiple stays: heads are whole blocks already."""
    return _LANES if group.width == 1 else 1
