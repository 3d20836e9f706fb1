"""What channels cost: multiply-accumulates, weights, bytes or time of a model as a function of how many are left."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import constants, payload_bytes
from graphopt.macs import Shape, node_macs
from graphopt.model import Model
from graphopt.passes.prune.channels.dependencies import Dependencies
from graphopt.runtime.trace import nodes_of, own_seconds, trace
from graphopt.samples import Feeds

_RUNS = 11  # that times are the medians of


@dataclass(frozen=True, eq=False)
class Costs:
    """Cost as a sum of products: each term is proportional to the channels left along each of its factors.

    Attributes:
        fixed: Cost that no channel changes.
        base: Cost of each term with all channels, [terms].
        shares: Which part of a factor belongs to each group, [terms, factors, groups]; the rest of a factor stays, and
            unused factors are all rest.
    """

    fixed: float
    base: np.ndarray
    shares: np.ndarray

    def total(self, left: np.ndarray) -> np.ndarray:
        """Return the cost once a part of each group is left, [...], for fractions [..., groups]."""
        factors = 1.0 - np.tensordot(1.0 - left, self.shares, axes=([-1], [2]))  # [..., terms, factors]
        return self.fixed + np.asarray(np.prod(factors, axis=-1) @ self.base)


def mac_costs(model: Model, dependencies: Dependencies, shapes: Mapping[str, Shape]) -> Costs:
    """Return multiply-accumulates on one sample; nodes whose work is not known count nothing."""

    def shape_of(tensor: gs.Tensor) -> Shape | None:
        return tuple(tensor.shape) if isinstance(tensor, gs.Constant) else shapes.get(tensor.name)

    work = {id(node): float(node_macs(node, shape_of) or 0) for node in model.graph.nodes}
    return work_costs(dependencies, work)


def time_costs(model: Model, dependencies: Dependencies, feeds: Feeds) -> Costs:
    """Return seconds of one run on this machine's CPU, taken to be proportional to the channels of each node.

    Raises:
        ModelError: The model does not run.
    """
    seconds, rest = own_seconds(model, trace(model, feeds, runs=_RUNS))
    work = {id(node): time for node, time in zip(nodes_of(model), seconds, strict=True)}
    costs = work_costs(dependencies, work)
    return replace(costs, fixed=costs.fixed + rest)


def work_costs(dependencies: Dependencies, work: Mapping[int, float]) -> Costs:
    """Return the cost of work that is given per node, by `id`."""
    terms = [(work[id(item.node)], item.factors) for item in dependencies.works]
    return _costs(dependencies, terms, math.fsum(work.values()))


def weight_costs(model: Model, dependencies: Dependencies, *, in_bytes: bool) -> Costs:
    """Return elements, or bytes, of all constants."""
    axes: dict[int, dict[int, np.ndarray]] = {}
    size = {
        id(item): float(payload_bytes(item) if in_bytes else math.prod(item.shape)) for item in constants(model.graph)
    }
    for use in dependencies.uses:
        axes.setdefault(id(use.node.inputs[use.index]), {})[use.axis] = use.atoms
    terms = [(size[key], tuple(found.values())) for key, found in axes.items()]
    return _costs(dependencies, terms, math.fsum(size.values()))


def _costs(dependencies: Dependencies, terms: Iterable[tuple[float, tuple[np.ndarray, ...]]], total: float) -> Costs:
    group_of = np.full(dependencies.size, len(dependencies.groups))
    for index, group in enumerate(dependencies.groups):
        group_of[group.classes] = index
    listed = list(terms)
    width = max((len(factors) for _, factors in listed), default=0)
    shares = np.zeros((len(listed), width, len(dependencies.groups)))
    for term, (_, factors) in enumerate(listed):
        for place, atoms in enumerate(factors):
            counts = np.bincount(group_of[atoms], minlength=len(dependencies.groups) + 1)
            shares[term, place] = counts[:-1] / len(atoms)
    base = np.array([cost for cost, _ in listed])
    return Costs(total - float(base.sum()), base, shares)
