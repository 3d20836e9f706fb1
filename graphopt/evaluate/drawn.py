"""Made-up inputs of sizes that a model runs on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from graphopt.errors import ModelError
from graphopt.model import Model
from graphopt.runtime.session import open_session

if TYPE_CHECKING:
    from graphopt.samples import Samples

_GROWTHS = 1, 4, 16, 64  # a window of a sound has 400 elements, and attention to 1024 of them still fits into memory
_ELEMENTS = 2**22  # of the largest input

Run = Callable[[Mapping[str, Any]], Any]


def drawn_samples(model: Model, run: Run | None = None, *, seed: int = 0, count: int = 8, threads: int = 1) -> Samples:
    """Return random samples of the smallest sizes that the model runs on, or of small ones if it runs on none.

    A model of sounds takes no sixteen samples of one: it cuts windows. Where no dimension is open nothing is run.

    Args:
        model: Stays as it is.
        run: Runs it, raising ModelError where it cannot; None: it is opened for that.
        seed: Root of the randomness.
        count: Number of samples.
        threads: Threads inside an operator.

    Raises:
        SampleError: An input is no tensor or does not state how many axes it has.
    """
    from graphopt.samples import random_samples

    optional = frozenset(model.graph.defaults)
    grown = [
        random_samples(model.interface, seed=seed, count=count, optional=optional, growth=growth) for growth in _GROWTHS
    ]
    if len({_shapes(samples) for samples in grown}) == 1:
        return grown[0]
    if run is not None:
        return _smallest(grown, run)
    try:
        with open_session(model, threads=threads, optimize=False) as session:
            return _smallest(grown, session.run)
    except ModelError:  # it does not even open; whoever needs it open tells
        return grown[0]


def _smallest(grown: list[Samples], run: Run) -> Samples:
    for samples in grown:
        feeds = next(iter(samples))
        if max(value.size for value in feeds.values()) > _ELEMENTS:
            break
        if runs(run, feeds):
            return samples
    return grown[0]


def runs(run: Run, feeds: Mapping[str, Any]) -> bool:
    """Whether a model runs on an input."""
    try:
        run(feeds)
    except ModelError:
        return False
    return True


def _shapes(samples: Samples) -> tuple[tuple[int, ...], ...]:
    return tuple(value.shape for value in next(iter(samples)).values())
