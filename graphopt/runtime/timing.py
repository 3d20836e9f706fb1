"""Paired timing: how much faster or slower one session is than another, on a machine that others use too.

Absolute times on a shared machine drift by tens of percent within seconds; the ratio of two runs that follow each other
does not. So both sessions live in one process and are timed in turn, before-after, after-before, and so on, on the same
input: whatever is slow for a while is slow for both, and what running second does to caches cancels out. Each pair
gives one ratio. The median of the ratios ignores pairs that something else broke into, and its interval comes from
order statistics (the sign test), which assumes nothing about how the noise is distributed.

Two sessions of one and the same model still differ, because their buffers lie at different addresses: by up to 2 % on
ordinary models, by up to 12 % on one whose weights are read once a run (200 MB in four MatMuls). So `reopened_ratio`
opens both several times, and its interval spans what the openings gave; see also `Ratio.slower`.

Timing ends before its time is up once it has told what it can: the interval is narrower than what openings differ by
(a fixed-width interval; Chow and Robbins, Annals of Mathematical Statistics 36, 1965), or, where only that is asked,
it is beyond doubt that the second model is not slower.

Models that would not fit into memory together are opened one after the other, `successive_ratio`: what is slow for a
while may then be slow for one of them only, and the interval is as wide as that makes it.

Where many models are to be told apart, `quickest_ratio` does it in a fraction of the runs: what breaks in only ever
makes a run slower, so the quickest of a few runs is steadier than their median.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from graphopt.runtime.session import Session

if TYPE_CHECKING:
    from graphopt.samples import Feeds

ItemT = TypeVar("ItemT")

_FEW, _ENOUGH, _MOST = 5, 10, 1000  # pairs: where one run takes long, at least, at most
_ROUNDS, _FEWEST_ROUNDS = 3, 2  # openings of both sessions; fewer once the time is spent
_PLACEMENT = 0.02  # how much two sessions of the same ordinary model differ
_NARROW = _PLACEMENT  # width of an interval, in times of the first model, that is narrow enough
_AGAIN = 2  # runs on each feed, at least, of a race in another opening than the first
_BRIEF = 0.04  # seconds that an opening races at least: what breaks in may last longer than a few quick runs
_SETTLED = 0.005  # gain of a few more runs on each feed that is not worth waiting for
_SHORTEST = 5e-4  # seconds; quicker runs are timed several at once, so that the clock and Python do not matter


@dataclass(frozen=True)
class Ratio:
    """Time after over time before.

    Attributes:
        median: Median over pairs; below 1 is faster.
        low: Lower end of its 95 % interval (94 % for five pairs).
        high: Upper end.
        pairs: How many pairs of runs.
    """

    median: float
    low: float
    high: float
    pairs: int

    @property
    def slower(self) -> bool:
        """Whether `after` is slower beyond doubt and by more than sessions of the same model may differ."""
        return self.low > 1 + _PLACEMENT


def paired_ratio(
    before: Session, after: Session, feeds: Sequence[Feeds], *, seconds: float = 2.0, only_slower: bool = False
) -> Ratio:
    """Time two sessions against each other; see the top of this module for the method.

    Args:
        before: What `after` is compared with.
        after: Must take the same feeds.
        feeds: Inputs, used in turn; the ratio is that of the typical one.
        seconds: Wall time to spend at most, less where the interval is narrow before. At least 10 pairs are run
            whatever it takes, or 5 if a run takes more than a quarter of it.
        only_slower: Whether all that is asked is if `after` is slower: timing ends once it is faster beyond doubt.

    Raises:
        ModelError: A session cannot run a feed.
        ValueError: There are no feeds.
    """
    if not feeds:
        raise ValueError("paired_ratio needs at least one feed")
    started = time.perf_counter()
    longest = max(_warm_up(session, feeds, started + seconds / 4) for session in (before, after))
    repeats = max(1, math.ceil(_SHORTEST / longest))
    needed = _FEW if longest > seconds / 4 else _ENOUGH
    ratios: list[float] = []
    with _no_garbage_collection():
        while len(ratios) < needed or (len(ratios) < _MOST and time.perf_counter() < started + seconds):
            if len(ratios) >= 2 * len(feeds) and len(ratios) % _ENOUGH == 0 and _is_told(ratios, only_slower):
                break
            feed = feeds[len(ratios) // 2 % len(feeds)]  # twice each, once in either order
            ratios.append(_pair(before, after, feed, repeats, reverse=len(ratios) % 2 == 1))
    low, high = median_interval(ratios)
    return Ratio(statistics.median(ratios), low, high, len(ratios))


def reopened_ratio(
    open_before: Callable[[], Session],
    open_after: Callable[[], Session],
    feeds: Sequence[Feeds],
    *,
    seconds: float = 2.0,
    only_slower: bool = False,
) -> Ratio:
    """Time two models against each other over several openings, so that chance in memory placement shows.

    Args:
        open_before: Opens what is compared with.
        open_after: Opens what is judged.
        feeds: As in `paired_ratio`.
        seconds: Wall time to spend over all rounds at most; at least two are run whatever they take.
        only_slower: As in `paired_ratio`; two rounds in both of which it is faster beyond doubt are enough.

    Returns:
        The median of the rounds' medians, with an interval that spans the rounds' intervals.

    Raises:
        ModelError: A model does not open or run.
        ValueError: There are no feeds.
    """
    rounds: list[Ratio] = []
    until = time.perf_counter() + seconds
    for index in range(_ROUNDS):
        told = only_slower and all(ratio.high < 1 for ratio in rounds)
        if index >= _FEWEST_ROUNDS and (told or time.perf_counter() > until):
            break
        with _opened(open_before, open_after, index) as (before, after):
            rounds.append(paired_ratio(before, after, feeds, seconds=seconds / _ROUNDS, only_slower=only_slower))
    return Ratio(
        statistics.median(ratio.median for ratio in rounds),
        min(ratio.low for ratio in rounds),
        max(ratio.high for ratio in rounds),
        sum(ratio.pairs for ratio in rounds),
    )


def successive_ratio(
    open_before: Callable[[], Session],
    open_after: Callable[[], Session],
    feeds: Sequence[Feeds],
    *,
    seconds: float = 2.0,
) -> Ratio:
    """Time two models against each other that are never open together, in five rounds.

    Args:
        open_before: Opens what is compared with.
        open_after: Opens what is judged.
        feeds: Inputs, used in turn.
        seconds: Wall time to spend on runs at most, beside the ten openings; each opening runs twice whatever it takes.

    Returns:
        The median of the rounds' ratios, each of the median runs, with its interval.

    Raises:
        ModelError: A model does not open or run.
        ValueError: There are no feeds.
    """
    if not feeds:
        raise ValueError("successive_ratio needs at least one feed")
    ratios = []
    for index in range(_FEW):
        found = []
        for opener in _turned((open_before, open_after), index):
            with opener() as session:
                found.append(_median_run(session, feeds, seconds / (2 * _FEW)))
        before, after = _turned(found, index)
        ratios.append(after / before)
    low, high = median_interval(ratios)
    return Ratio(statistics.median(ratios), low, high, len(ratios))


def quickest_ratio(
    open_before: Callable[[], Session],
    open_after: Callable[[], Session],
    feeds: Sequence[Feeds],
    *,
    seconds: float = 0.4,
) -> Ratio:
    """Time two models in turn and compare the quickest run of each on every feed, added up over the feeds.

    Args:
        open_before: Opens what is compared with.
        open_after: Opens what is judged.
        feeds: Inputs, used in turn.
        seconds: Wall time to spend at most. At least five runs on each feed are made whatever they take; of models that
            leave time for it both are opened several times.

    Returns:
        The ratio, with an interval that is what two sessions of one model may differ by.

    Raises:
        ModelError: A model does not open, or cannot run a feed.
        ValueError: There are no feeds.
    """
    if not feeds:
        raise ValueError("quickest_ratio needs at least one feed")
    started = time.perf_counter()
    best = [[math.inf] * len(feeds) for _ in range(2)]
    runs = 0
    for index in range(_ROUNDS):
        if index and time.perf_counter() > started + seconds:
            break
        with _opened(open_before, open_after, index) as opened:
            few, until = _AGAIN if index else _FEW, started + seconds * (index + 1) / _ROUNDS
            runs += _quickest(opened, feeds, best, few, until)
    ratio = sum(best[1]) / sum(best[0])
    return Ratio(ratio, ratio / (1 + _PLACEMENT), ratio * (1 + _PLACEMENT), runs * len(feeds))


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median: the narrowest pair of order statistics that is sure to cover it.

    The number of values below the median is binomial with probability 1/2 (Conover, Practical Nonparametric Statistics,
    section 3.2). Five values and fewer cannot reach 95 %; their extremes are returned.
    """
    ordered, count = sorted(values), len(values)
    rank, ways = 0, 0  # ways / 2^count is the probability that at most `index` values are below the median
    for index in range(count):
        ways += math.comb(count, index)
        if 40 * ways > 2**count:
            break
        rank = index
    return ordered[rank], ordered[count - 1 - rank]


@contextmanager
def _opened(
    open_before: Callable[[], Session], open_after: Callable[[], Session], index: int
) -> Iterator[tuple[Session, Session]]:
    """Open both models, the second one first in every other round."""
    with ExitStack() as stack:
        opened = [stack.enter_context(opener()) for opener in _turned((open_before, open_after), index)]
        before, after = _turned(opened, index)
        yield before, after


def _turned(pair: Sequence[ItemT], index: int) -> Sequence[ItemT]:
    """Return the pair, in reverse order in every other round."""
    return pair[::-1] if index % 2 else pair


def _warm_up(session: Session, feeds: Sequence[Feeds], until: float) -> float:
    """Run each feed once (the first one twice), for as long as there is time; return the seconds of the last run."""
    session.run(feeds[0])
    last = 0.0
    for feed in feeds:
        start = time.perf_counter()
        session.run(feed)
        last = time.perf_counter() - start
        if time.perf_counter() > until:
            break
    return last


def _median_run(session: Session, feeds: Sequence[Feeds], seconds: float) -> float:
    """Return the median time of a run, over at least two of them after one that warms up."""
    until = time.perf_counter() + seconds
    _warm_up(session, feeds[:1], until)
    runs: list[int] = []
    with _no_garbage_collection():
        while len(runs) < 2 or (len(runs) < _MOST and time.perf_counter() < until):
            runs.append(_timed(session, feeds[len(runs) % len(feeds)], 1))
    return statistics.median(runs)


def _quickest(
    sessions: Sequence[Session], feeds: Sequence[Feeds], best: list[list[float]], few: int, until: float
) -> int:
    """Run two sessions in turn, a few times on each feed and on until a time or they get no quicker; return how often.

    Args:
        sessions: Two.
        feeds: Inputs.
        best: Nanoseconds of the quickest run by session and feed; brought up to date.
        few: Runs on each feed, at least, and those among which none is quicker at the end; quick models run more often.
        until: When to end.
    """
    longest = max(_warm_up(session, feeds[:1], until) for session in sessions)
    repeats = max(1, math.ceil(_SHORTEST / longest))
    count, known, least = 0, math.inf, min(time.perf_counter() + _BRIEF, until)
    with _no_garbage_collection():
        while count < few or (count < _MOST and time.perf_counter() < until):
            if count % few == 0 and time.perf_counter() >= least:
                before, known = known, sum(map(sum, best))
                if count and known >= before * (1 - _SETTLED):
                    break
            for index, feed in enumerate(feeds):
                for which in _turned((0, 1), count + index):
                    took = _timed(sessions[which], feed, repeats) / repeats
                    best[which][index] = min(best[which][index], took)
            count += 1
    return count


def _is_told(values: Sequence[float], only_slower: bool) -> bool:
    low, high = median_interval(values)
    return high - low <= _NARROW * max(statistics.median(values), 1.0) or (only_slower and high < 1)


def _pair(before: Session, after: Session, feed: Feeds, repeats: int, *, reverse: bool) -> float:
    if reverse:
        late = _timed(after, feed, repeats)
        return late / _timed(before, feed, repeats)
    early = _timed(before, feed, repeats)
    return _timed(after, feed, repeats) / early


def _timed(session: Session, feed: Feeds, repeats: int) -> int:
    start = time.perf_counter_ns()
    for _ in range(repeats):
        session.run(feed)
    return time.perf_counter_ns() - start


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collections take milliseconds and would fall into one of the two timings."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
