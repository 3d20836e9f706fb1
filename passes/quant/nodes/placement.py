"""Which units run in integers together, and which tensors between them are stored in integers.

An integer kernel pays only in company: what comes in must be in integers already, and what goes out must be read in
integers. Weighted units (Conv, MatMul, Gemm) are worth a conversion; all others join only where the largest input comes
from an integer unit and some integer unit reads the output.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from graphopt.passes.quant.nodes.units import Unit


@dataclass(frozen=True)
class Placement:
    """What runs in integers.

    Attributes:
        units: The integer units in graph order.
        stored: Names of the tensors that are stored in integers.
        groups: For each stored tensor the name of the one whose parameters it shares (its own for most).
    """

    units: tuple[Unit, ...]
    stored: frozenset[str]
    groups: Mapping[str, str]

    def of_group(self, name: str) -> Placement:
        """Return the placement with those stored tensors only that share the parameters of one."""
        groups = {tensor: root for tensor, root in self.groups.items() if root == self.groups[name]}
        return Placement(self.units, frozenset(groups), groups)


def place(units: Sequence[Unit], sizes: Mapping[str, int], allowed: Collection[int] | None = None) -> Placement:
    """Return the largest placement in which every unit is in company.

    Args:
        units: All units of the graph.
        sizes: Elements of each tensor in a sample, by name, as far as known.
        allowed: Positions of the units that may run in integers; all by default.
    """
    chosen = [unit for unit in units if allowed is None or unit.position in allowed]
    while True:
        view = _View(chosen)
        kept = [unit for unit in chosen if unit.weight is not None or view.pays(unit, sizes)]
        if len(kept) == len(chosen):
            return Placement(tuple(kept), frozenset(view.stored), _groups(kept, view.stored))
        chosen = kept


def joinable(units: Sequence[Unit]) -> list[Unit]:
    """Return the units that may be in company under some choice of units, whatever the sizes of tensors."""
    kept = list(units)
    while True:
        view = _View(kept)
        found = [unit for unit in kept if unit.weight is not None or view.pays(unit, None)]
        if len(found) == len(kept):
            return kept
        kept = found


class _View:
    """Who makes and who reads integers under a choice of units."""

    def __init__(self, chosen: Iterable[Unit]) -> None:
        chosen = list(chosen)
        self._heads = {id(unit.node) for unit in chosen}
        self._made = {id(unit.output): unit for unit in chosen}
        self._read_by_weighted = {id(tensor) for unit in chosen if unit.weight is not None for tensor in unit.inputs}
        self._read = {id(tensor) for unit in chosen for tensor in unit.inputs}
        self.stored = {tensor.name for unit in chosen for tensor in unit.inputs}
        self.stored |= {unit.output.name for unit in chosen if self.stores_output(unit)}

    def stores_output(self, unit: Unit) -> bool:
        """A kernel that may leave its output float does so unless an integer unit reads it."""
        return not unit.kernel.float_output or id(unit.output) in self._read

    def pays(self, unit: Unit, sizes: Mapping[str, int] | None) -> bool:
        """Whether a unit without weight has integers on both sides; without sizes, whether it may have."""
        if unit.kind == "attention":
            return True
        size = [0 if sizes is None else sizes.get(tensor.name, 0) for tensor in unit.inputs]
        main = [tensor for tensor, count in zip(unit.inputs, size, strict=True) if count == max(size)]
        integers = [id(tensor) in self._made or id(tensor) in self._read_by_weighted for tensor in main]
        ready = any(integers) if sizes is None else all(integers)
        return ready and (unit.kernel.float_output or id(unit.output) in self._read)


def stored_output(unit: Unit, placement: Placement) -> bool:
    """Whether the output of an integer unit is stored in integers."""
    return unit.output.name in placement.stored


def _groups(units: Iterable[Unit], stored: Iterable[str]) -> dict[str, str]:
    """Join the tensors that must have equal parameters: what moves keeps them."""
    parent = {name: name for name in stored}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for unit in units:
        if unit.moves:
            parent[root(unit.output.name)] = root(unit.inputs[0].name)
    return {name: root(name) for name in parent}


def shared_parameters(placement: Placement, own: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Return the range of each stored tensor: the hull of the ranges of all that share it.

    Args:
        placement: What is stored.
        own: Range by tensor name.
    """
    hull: dict[str, tuple[float, float]] = {}
    for name, root in placement.groups.items():
        low, high = own[name]
        known = hull.get(root, (low, high))
        hull[root] = min(low, known[0]), max(high, known[1])
    return {name: hull[root] for name, root in placement.groups.items()}
