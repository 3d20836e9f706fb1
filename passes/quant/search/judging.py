"""Judging candidates by measurement: what they take, what they lose, whether that pays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from graphopt.evaluate import Drop
from graphopt.filesize import Scale
from graphopt.model import Model
from graphopt.passes.quant.search.balance import Balance
from graphopt.passes.quant.search.candidates import EQUAL, Candidate, Judged
from graphopt.passes.quant.search.errors import OutputError
from graphopt.passes.quant.search.plans import Plan
from graphopt.passes.quant.search.switchboard import Rounding
from graphopt.passes.quant.search.workshop import Workshop
from graphopt.runtime.profile import NodeTime
from graphopt.runtime.timing import Ratio

_FELT = EQUAL / 2  # of the float model's time; a plan that should gain less than that is not tried
_GAIN = 0.05  # of the float model's time is what integers must save: their bytes are saved by storing weights as well


@dataclass(frozen=True)
class Judge:
    """Makes candidates and measures them.

    Attributes:
        workshop: Makes the models.
        float_model: What latency is compared with.
        measure_drop: Loss of a model against the original.
        measure_latency: Time of the second model over that of the first.
        measure_nodes: Time of each node of a model; None where the target is not this machine.
        error: Error at the outputs on the samples that a candidate does worst on; None without samples.
        limit: Largest loss allowed.
        asked_for: Whether the user chose the form, so that it only must not be slower beyond doubt.
    """

    workshop: Workshop
    float_model: Model
    measure_drop: Callable[[Model], Drop | None]
    measure_latency: Callable[[Model, Model], Ratio | None]
    measure_nodes: Callable[[Model], list[NodeTime]] | None
    error: Callable[[Model], OutputError | None]
    limit: float
    asked_for: bool = False
    _scale: Scale = field(default_factory=lambda: Scale(None), repr=False)

    def made(self, plan: Plan, left: dict[int, float | None] | None = None) -> Judged:
        """Make a plan and time it.

        Args:
            plan: The plan.
            left: Nodes that it leaves float, see `Judged`.
        """
        candidate = self.workshop.make(plan)
        latency = self.measure_latency(self.float_model, candidate.model) if candidate.changed else None
        return Judged(candidate, None, latency, left or {})

    def holds(self, drop: Drop | None) -> bool:
        """Whether a loss, if there is one, is within the limit."""
        return drop is None or drop.within(self.limit)

    def slimmed(self, item: Judged) -> Judged:
        """Leave the nodes float that integers slow down by more than their bytes are worth, if that is about as fast.

        What an integer node takes depends on its neighbours: a MaxPool is quick among convolutions in integers, and
        slower than in float by far between float ones. So this is asked again when others have become float.
        """
        if self.measure_nodes is None or not item.candidate.changed or self.asked_for:
            return item
        slim, gain = self.balance(item.candidate, {}).quickest()
        gone = self.workshop.placed(item.candidate.plan) - frozenset(slim.nodes)
        if not gone or gain < _FELT:
            return item
        other = self.made(slim, {**item.left, **dict.fromkeys(gone)})
        return other if other.candidate.changed and other.speed <= item.speed + EQUAL else item

    def pays(self, item: Judged) -> bool:
        """Whether a candidate is worth what it loses: clearly faster than the float model, and no larger."""
        if self.asked_for:
            return item.latency is None or not item.latency.slower
        return not self.grows(item) and (item.latency is None or item.latency.median <= 1 - _GAIN)

    def grows(self, item: Judged) -> bool:
        """Whether the file would be larger: of a small model scales, zero points and conversions outweigh the rest."""
        return not self.asked_for and self.nbytes(item.candidate.model) > self.nbytes(self.float_model)

    def nbytes(self, model: Model) -> int:
        """Return the size of a model's file."""
        return self._scale.weigh(model).nbytes

    def balance(self, candidate: Candidate, harms: dict[Rounding, float]) -> Balance:
        """Return the terms of the choice; without times, nodes count by their bytes only."""
        times: tuple[list[NodeTime], list[NodeTime]] = ([], [])
        if self.measure_nodes is not None:
            times = self.measure_nodes(self.workshop.model), self.measure_nodes(candidate.model)
        return self.workshop.balance(candidate.plan, times, harms)
