"""Why no candidate was kept, in one line."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.passes.quant.candidates import Judged
from graphopt.passes.quant.search import Search


def why_not(judged: Sequence[Judged], search: Search, target: str) -> str:
    """Return one line with the figures of what was tried, none of which was kept.

    Args:
        judged: All of it.
        search: That judged it.
        target: Name of the target.
    """
    tried = [item for item in judged if item.candidate.changed]
    if not tried:
        return "nothing that could run in integers would have integers on both sides"
    slow = [item for item in tried if not search.pays(item)]
    lossy = [item for item in tried if item not in slow and item.drop is not None]
    larger = [item for item in slow if search.grows(item)]
    slow = [item for item in slow if item not in larger]
    reasons = []
    if larger:
        sizes = ", ".join(f"{item.candidate.plan.label} {search.nbytes(item.candidate.model)} bytes" for item in larger)
        reasons.append(f"the file would grow ({search.nbytes(search.float_model)} bytes; {sizes})")
    if lossy:
        lost = ", ".join(
            f"{item.candidate.plan.label} {item.drop.value:.2%}{' on random inputs' if item.drop.random else ''}"
            for item in lossy
            if item.drop is not None
        )
        reasons.append(f"it loses more than the limit of {search.limit:.2%} ({lost})")
    if slow:
        times = ", ".join(f"{item.candidate.plan.label} takes {item.speed:.2f} x the time" for item in slow)
        reasons.append(f"it does not pay on {target} ({times})")
    return f"int8 was not kept: {'; '.join(reasons)}"
