"""Plans: which node runs in which form."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from graphopt.passes.quant.ranges import RangeMethod

Fallback = Literal["dynamic", "blocks"]
FALLBACKS: tuple[Fallback, ...] = get_args(Fallback)
"""Forms that round less than fixed ranges do, the faster one first."""
_MEANING = {"dynamic": "with ranges found at run time", "blocks": "with weights in blocks"}


@dataclass(frozen=True)
class Plan:
    """Which nodes run in integers.

    Attributes:
        label: For the user, such as "static int8".
        static: Positions of the units with fixed ranges.
        dynamic: Positions of the sites with ranges found at run time.
        blocks: Positions of the sites with weights in blocks.
        ranges: How ranges are chosen.
    """

    label: str
    static: frozenset[int]
    dynamic: frozenset[int]
    ranges: RangeMethod
    blocks: frozenset[int] = frozenset()

    @property
    def nodes(self) -> list[int]:
        """Positions of all that run in integers, in graph order."""
        return sorted(self.static | self.dynamic | self.blocks)

    def otherwise(self, other: Plan) -> frozenset[int]:
        """Return the positions of the nodes that have another form in the other plan."""
        return (self.static ^ other.static) | (self.dynamic ^ other.dynamic) | (self.blocks ^ other.blocks)

    def of(self, form: Fallback) -> frozenset[int]:
        """Return the positions of the nodes in a form."""
        return self.dynamic if form == "dynamic" else self.blocks

    def adding(self, positions: frozenset[int], form: Fallback) -> Plan:
        """Return the plan with more nodes in a form."""
        if not positions:
            return self
        plan = replace(self, label=f"{self.label}, {len(positions)} more {_MEANING[form]}")
        if form == "dynamic":
            return replace(plan, dynamic=plan.dynamic | positions)
        return replace(plan, blocks=plan.blocks | positions)

    def without(self, positions: Iterable[int]) -> Plan:
        """Return the plan with some nodes left float."""
        gone = frozenset(positions)
        return replace(self, static=self.static - gone, dynamic=self.dynamic - gone, blocks=self.blocks - gone)

    def only(self, positions: frozenset[int]) -> Plan:
        """Return the plan with all other nodes left float."""
        static, dynamic, blocks = (part & positions for part in (self.static, self.dynamic, self.blocks))
        return replace(self, static=static, dynamic=dynamic, blocks=blocks)
