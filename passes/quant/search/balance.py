"""Which nodes to run in integers when time and bytes are gained by it and exactness is lost: a minimum cut.

A node in integers gains its seconds, and the bytes of its weight at a fixed price, and costs the error of its
roundings at a price that the search raises until the limit holds. A tensor that passes from a float to an integer node,
or back, costs a conversion; one that is stored in integers costs the error of its own rounding, whoever asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from graphopt.passes.quant.nodes.placement import Placement
from graphopt.passes.quant.nodes.units import Unit
from graphopt.passes.quant.search.costs import Costs
from graphopt.passes.quant.search.cut import IMPLIES, cheapest
from graphopt.passes.quant.search.plans import Plan
from graphopt.passes.quant.search.switchboard import Rounding

BYTES = 0.3  # of the float model's time is what all its bytes are worth
_STEPS = 40  # of bisection
_Choice = tuple[Literal["node", "stored", "kept"], int | str]


@dataclass(frozen=True)
class Balance:
    """The terms of the choice.

    Attributes:
        plan: The largest plan.
        placement: Its placement.
        outside: Names of the tensors that other nodes than integer ones may read: those see floats.
        costs: Seconds.
        sizes: Elements of a tensor, by name.
        saved: Bytes saved by each node, as a fraction of the model.
        harms: Error of each rounding.
        wanted: Whether all of the plan is known to be as fast as any part of it, so that no node gains by being float.
    """

    plan: Plan
    placement: Placement
    outside: frozenset[str]
    costs: Costs
    sizes: Mapping[str, int]
    saved: Mapping[int, float]
    harms: Mapping[Rounding, float]
    wanted: bool = False

    @property
    def seconds(self) -> float:
        """Seconds of the float model; without times one, so that only bytes count."""
        return sum(self.costs.real.values()) or 1.0

    def best(self, price: float) -> Plan:
        """Return the best plan at a price of the error, in seconds for all of it."""
        return self._plan(cheapest(*self._terms(price)))

    def quickest(self) -> tuple[Plan, float]:
        """Return the best plan whatever its error, and how much faster than all of the plan it should be.

        Returns:
            The plan, and seconds over those of the float model.
        """
        alone, pairs = self._terms(0.0)
        chosen = cheapest(alone, pairs)
        best = self._plan(chosen)
        cost = sum(alone[choice] for choice in chosen)
        cost += sum(price for first, second, price in pairs if first in chosen and second not in chosen)
        forgone = sum(self.saved.get(position, 0.0) for position in set(self.plan.nodes) - set(best.nodes))
        return best, (sum(alone.values()) - cost) / self.seconds + BYTES * forgone

    def _plan(self, chosen: frozenset[_Choice]) -> Plan:
        return self.plan.only(frozenset(int(key) for kind, key in chosen if kind == "node"))

    def _terms(self, price: float) -> tuple[dict[_Choice, float], list[tuple[_Choice, _Choice, float]]]:
        """Return the cost of each choice alone and of pairs; see `cheapest`."""
        alone: dict[_Choice, float] = {}
        pairs: list[tuple[_Choice, _Choice, float]] = []
        weights = {(item.position, item.at_run_time): harm for item, harm in self.harms.items() if not item.tensor}
        at_run_time = self.plan.dynamic | self.plan.blocks
        for position in {unit.position for unit in self.placement.units} | at_run_time:
            gain = self.costs.real.get(position, 0.0) - self.costs.integer.get(position, 0.0)
            gain = (max(gain, 0.0) if self.wanted else gain) + BYTES * self.seconds * self.saved.get(position, 0.0)
            alone["node", position] = price * weights.get((position, position in at_run_time), 0.0) - gain
        self._add_tensors(alone, pairs, price)
        return alone, pairs

    def within(self, error: float) -> Plan:
        """Return the best plan whose roundings cause no more than an error altogether."""
        low, high = 0.0, 1.0
        price = self.seconds / max(sum(self.harms.values()), 1e-300)
        if self.error_of(self.best(0.0)) <= error:
            return self.best(0.0)
        while self.error_of(self.best(high * price)) > error and high < IMPLIES:
            low, high = high, high * 4
        for _ in range(_STEPS):
            middle = (low + high) / 2
            if high - low < high / 64:
                break
            low, high = (low, middle) if self.error_of(self.best(middle * price)) <= error else (middle, high)
        return self.best(high * price)

    def error_of(self, plan: Plan) -> float:
        """Return the error that the roundings of a plan cause if they add up."""
        units = [unit for unit in self.placement.units if unit.position in plan.static]
        stored = {tensor.name for unit in units for tensor in unit.inputs}
        stored |= {unit.output.name for unit in units if not unit.kernel.float_output}
        nodes = {unit.position for unit in units}
        total = 0.0
        for item, harm in self.harms.items():
            on = (
                item.tensor in stored
                if item.tensor
                else item.position in (plan.dynamic | plan.blocks if item.at_run_time else nodes)
            )
            total += harm if on else 0.0
        return total

    def _add_tensors(
        self, alone: dict[_Choice, float], pairs: list[tuple[_Choice, _Choice, float]], price: float
    ) -> None:
        harm = {item.tensor: value for item, value in self.harms.items() if item.tensor}
        made = {unit.output.name: unit for unit in self.placement.units}
        readers: dict[str, list[Unit]] = {}
        for unit in self.placement.units:
            for tensor in unit.inputs:
                readers.setdefault(tensor.name, []).append(unit)
        for name in self.placement.stored:
            size, stored = self.sizes.get(name, 0), _stored(name)
            alone[stored] = price * harm.get(name, 0.0)
            pairs += [(_node(unit), stored, IMPLIES) for unit in readers.get(name, ())]
            maker = made.get(name)
            if maker is None:
                alone[stored] += self.costs.quantize * size
                continue
            pairs.append((stored, _node(maker), self.costs.quantize * size))
            if maker.kernel.float_output:
                continue
            pairs.append((_node(maker), stored, IMPLIES))
            back = self.costs.dequantize * size
            if name in self.outside:
                alone[_node(maker)] += back
                continue
            kept: _Choice = ("kept", name)  # all who read it do so in integers
            alone[kept] = 0.0
            pairs.append((_node(maker), kept, back))
            pairs += [(kept, _node(unit), IMPLIES) for unit in readers.get(name, ())]


def _node(unit: Unit) -> _Choice:
    return "node", unit.position


def _stored(tensor: str) -> _Choice:
    return "stored", tensor


def read_outside(units: Iterable[Unit], handed_out: set[int]) -> frozenset[str]:
    """Return the names of the outputs of units that something else than these units reads.

    Args:
        units: Integer units.
        handed_out: Ids of the tensors that a graph or body hands out.
    """
    units = list(units)
    inside = {id(unit.node) for unit in units}
    return frozenset(
        unit.output.name
        for unit in units
        if id(unit.output) in handed_out or any(id(reader) not in inside for reader in unit.output.outputs)
    )


def saved_bytes(units: Iterable[Unit], matrices: Mapping[int, int], whole: int) -> dict[int, float]:
    """Return what each node's weight saves, as a fraction of the model: three of four bytes.

    Args:
        units: With fixed ranges.
        matrices: Weights of the sites, by position.
        whole: Bytes of all weights of the model.
    """
    counts = {unit.position: int(np.prod(unit.weight.shape)) for unit in units if unit.weight is not None}
    return {position: 3 * count / max(whole, 1) for position, count in {**counts, **matrices}.items()}
