"""Paired timing by processor time: for machines that do other work at the same time.

With one thread a session computes in the thread that calls it, and the time that thread computed is, on an idle
machine, the wall time. Other processes then only matter as far as they share caches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from graphopt.runtime.session import Session
from graphopt.runtime.timing import Ratio, median_interval
from graphopt.samples import Feeds

_SHORTEST = 2_000_000  # nanoseconds of one timing; quicker runs are repeated
_FEWEST, _MOST = 11, 401  # pairs


def paired_cpu_ratio(before: Session, after: Session, feeds: Sequence[Feeds], *, seconds: float) -> Ratio:
    """Return time(after) / time(before), medians over interleaved pairs, in processor time of this thread.

    Args:
        before: What is compared with; opened with one thread.
        after: Opened with one thread.
        feeds: Inputs, used in turn.
        seconds: Processor time to spend, about.
    """
    for feed in feeds:
        before.run(feed)
        after.run(feed)
    quickest = min(_timed(session, feeds[0], 1) for session in (before, after))
    repeats = max(1, _SHORTEST // max(quickest, 1))
    ratios: list[float] = []
    until = time.thread_time() + seconds
    while len(ratios) < _FEWEST or (len(ratios) < _MOST and time.thread_time() < until):
        feed = feeds[len(ratios) // 2 % len(feeds)]  # twice each, once in either order
        order = (before, after) if len(ratios) % 2 else (after, before)
        taken = {id(session): _timed(session, feed, repeats) for session in order}
        ratios.append(taken[id(after)] / taken[id(before)])
    return Ratio(statistics.median(ratios), *median_interval(ratios), len(ratios))


def _timed(session: Session, feed: Feeds, repeats: int) -> int:
    start = time.thread_time_ns()
    for _ in range(repeats):
        session.run(feed)
    return time.thread_time_ns() - start
