"""Which weights a pattern fits."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.base import Skip
from graphopt.compensate import Blocks, NofM, Pattern
from graphopt.passes.prune.weights import Weight


def fitting(weights: Sequence[Weight], pattern: Pattern) -> tuple[list[Weight], list[Skip]]:
    """Return the weights that a pattern can be laid on, and why the others cannot."""
    fit, skipped = [], []
    for weight in weights:
        reason = _misfit(weight, pattern)
        if reason:
            skipped.append(Skip(weight.name, reason))
        else:
            fit.append(weight)
    return fit, skipped


def _misfit(weight: Weight, pattern: Pattern) -> str:
    """Return why a pattern does not fit a weight, or an empty text."""
    if weight.size == 0:
        return "it has no elements"
    if not isinstance(pattern, Blocks | NofM):
        return ""
    layout = weight.layout
    if layout is None:
        return "its users do not agree on which axis the inputs are, or do not see it as it is stored; run fold first"
    if isinstance(pattern, NofM) and layout.channels % pattern.among:
        return f"its {layout.channels} input channels are no whole number of groups of {pattern.among}"
    if isinstance(pattern, Blocks) and (layout.channels % pattern.width or layout.outputs % pattern.height):
        size = f"{layout.outputs} outputs and {layout.channels} input channels"
        return f"its {size} are no whole number of blocks of {pattern.height}x{pattern.width}"
    return ""
