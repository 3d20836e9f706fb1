"""Plans: what is wanted of integers, which node runs in which form, and the plans that are tried."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal, get_args

import onnx_graphsurgeon as gs

from graphopt.passes.quant.nodes.sites import MATRICES, DynamicSite, weight_size
from graphopt.passes.quant.nodes.units import Unit, name_of
from graphopt.passes.quant.numbers.ranges import RangeMethod

Mode = Literal["auto", "static", "dynamic", "blocks"]
Fallback = Literal["dynamic", "blocks"]
FALLBACKS: tuple[Fallback, ...] = get_args(Fallback)
"""Forms that round less than fixed ranges do, the faster one first."""
_MEANING = {"dynamic": "with ranges found at run time", "blocks": "with weights in blocks"}
_BLOCKS = 2**20  # weights in matrices from which on blocks are tried
_DELICATE = frozenset({"attention", "softmax", "sigmoid"})  # their integers lose much for little time


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


@dataclass(frozen=True)
class IntegerOptions:
    """What is wanted.

    Attributes:
        mode: Form that nodes take.
        ranges: How fixed ranges are chosen.
        exclude: Nodes that stay float: names with wildcards, or operators.
    """

    mode: Mode
    ranges: RangeMethod
    exclude: tuple[str, ...]

    def excludes(self, node: gs.Node) -> bool:
        """Whether the user wants a node to stay float."""
        return any(node.op == pattern or fnmatchcase(name_of(node), pattern) for pattern in self.exclude)


def make_plans(options: IntegerOptions, units: Sequence[Unit], sites: Sequence[DynamicSite]) -> list[Plan]:
    """Return the plans to try: fixed ranges (dynamic where there are none), dynamic, one of each, and blocks."""
    weighted = frozenset(unit.position for unit in units if unit.weight is not None)
    light = frozenset(unit.position for unit in units if unit.weight is None and unit.kind not in _DELICATE)
    at_run_time = frozenset(site.position for site in sites)
    convolutions = frozenset(unit.position for unit in units if unit.kind in ("conv", "depthwise"))
    method: RangeMethod = options.ranges
    matrices = [site for site in sites if site.node.op in MATRICES]
    blocks = frozenset(site.position for site in matrices)
    plans = []
    if weighted and options.mode != "blocks":
        plans.append(Plan("static int8", weighted | light, at_run_time - weighted, method))
    if convolutions and at_run_time & weighted and options.mode == "auto":
        plans.append(Plan("static int8 for Conv, dynamic for the rest", convolutions | light, at_run_time, method))
    if at_run_time and options.mode != "blocks":
        plans.append(Plan("dynamic int8", frozenset(), at_run_time, method))
    large = sum(weight_size(site) for site in matrices) >= _BLOCKS
    if blocks and (options.mode == "blocks" or (options.mode == "auto" and large)):
        plans.append(Plan("int8 weights in blocks", frozenset(), at_run_time - blocks, method, blocks))
    return plans
