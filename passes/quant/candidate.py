"""Models made after plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from graphopt.model import Model
from graphopt.passes.quant.audit import Audit
from graphopt.passes.quant.forms import Plan
from graphopt.passes.quant.placement import Placement


@dataclass(frozen=True)
class Candidate:
    """A model made after a plan.

    Attributes:
        plan: The plan, less what did not fuse.
        model: The model.
        changed: Nodes that run in integers.
        audit: What the runtime made of it.
        smoothings: How many tensors had been smoothed when it was made.
        unfused: Positions of the units that were taken back because they did not fuse, with the rule that failed.
    """

    plan: Plan
    model: Model
    changed: int
    audit: Audit
    smoothings: int = 0
    unfused: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """A model made after a plan, before anybody looked at it.

    Attributes:
        model: The model.
        placement: What runs in integers with fixed ranges.
        changed: Nodes that run in integers.
    """

    model: Model
    placement: Placement
    changed: int
