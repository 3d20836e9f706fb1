"""What was decided, in words: why no candidate was kept, or why some nodes of the best stayed float."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from graphopt.base import Skip
from graphopt.passes.quant.nodes.units import name_of
from graphopt.passes.quant.search.candidates import Judged
from graphopt.passes.quant.search.judging import Judge
from graphopt.passes.quant.search.workshop import Workshop

_TOLD = 0.001  # of the error; nodes without weights that cause less are left float for want of company


def why_not(judged: Sequence[Judged], judge: Judge, target: str) -> str:
    """Return one line with the figures of what was tried, none of which was kept.

    Args:
        judged: All of it.
        judge: Who judged it.
        target: Name of the target.
    """
    tried = [item for item in judged if item.candidate.changed]
    if not tried:
        return "nothing that could run in integers would have integers on both sides"
    slow = [item for item in tried if not judge.pays(item)]
    lossy = [item for item in tried if item not in slow and item.drop is not None]
    larger = [item for item in slow if judge.grows(item)]
    slow = [item for item in slow if item not in larger]
    reasons = []
    if larger:
        sizes = ", ".join(f"{item.candidate.plan.label} {judge.nbytes(item.candidate.model)} bytes" for item in larger)
        reasons.append(f"the file would grow ({judge.nbytes(judge.float_model)} bytes; {sizes})")
    if lossy:
        lost = ", ".join(
            f"{item.candidate.plan.label} {item.drop.value:.2%}{' on random inputs' if item.drop.random else ''}"
            for item in lossy
            if item.drop is not None
        )
        reasons.append(f"it loses more than the limit of {judge.limit:.2%} ({lost})")
    if slow:
        times = ", ".join(f"{item.candidate.plan.label} takes {item.speed:.2f} x the time" for item in slow)
        reasons.append(f"it does not pay on {target} ({times})")
    return f"int8 was not kept: {'; '.join(reasons)}"


def left_float(workshop: Workshop, best: Judged, limit: float) -> Iterator[Skip]:
    """Yield why nodes of a candidate stayed float, those first that cause most of the error.

    Args:
        workshop: That made it.
        best: The candidate.
        limit: Largest loss allowed, a fraction.
    """
    names = {unit.position: unit.name for unit in workshop.units}
    names.update({site.position: name_of(site.node) for site in workshop.sites})
    weighted = {unit.position for unit in workshop.units if unit.weight is not None}
    weighted |= {site.position for site in workshop.sites}
    for position, share in sorted(best.left.items(), key=lambda pair: -(pair[1] or 0.0)):
        if share is not None and (position in weighted or share >= _TOLD):
            reason = f"left float to stay within {limit:.2%}: it causes {share:.1%} of the error of int8"
            yield Skip(names[position], reason)
    for position, share in sorted(best.left.items()):
        if share is None and position in weighted:
            reason = "its integer form, with its conversions, takes longer here than its bytes are worth"
            yield Skip(names[position], reason)
    for position, rule in sorted(best.candidate.unfused.items()):
        yield Skip(names[position], f"ONNX Runtime does not fuse it into an integer kernel ({rule})")


def describe(workshop: Workshop, best: Judged) -> Iterator[str]:
    """Yield what was done to a candidate, and how long it takes."""
    nodes, made = frozenset(best.candidate.plan.nodes), workshop.smoothings[: best.candidate.smoothings]
    smoothed = sum(not nodes.isdisjoint(item.readers) for item in made)
    if smoothed:
        yield f"channels that reach far were divided, weights behind multiplied: {smoothed} tensors"
    timed = f"{best.latency.median:.2f} x the time" if best.latency is not None else "time not measured here"
    yield f"{best.candidate.plan.label}: {timed}"
