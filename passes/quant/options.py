"""What is wanted of integers for weights and activations, and the plans that are tried for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import onnx_graphsurgeon as gs

from graphopt.passes.quant.forms import Plan
from graphopt.passes.quant.ranges import RangeMethod
from graphopt.passes.quant.sites import MATRICES, DynamicSite, weight_size
from graphopt.passes.quant.units import Unit, name_of

Mode = Literal["auto", "static", "dynamic", "blocks"]
_BLOCKS = 2**20  # weights in matrices from which on blocks are tried
_DELICATE = frozenset({"attention", "softmax", "sigmoid"})  # their integers lose much for little time


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
