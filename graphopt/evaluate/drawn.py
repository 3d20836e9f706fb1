"""Made-up inputs of sizes that a model runs on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from graphopt.errors import ModelError
from graphopt.model import Interface, Model
from graphopt.runtime.session import open_session

if TYPE_CHECKING:
    from graphopt.samples import Samples

_SIZES: tuple[dict[str, int], ...] = (
    *({"growth": growth} for growth in (1, 4, 16, 64)),  # a window of a sound has 400 elements; attention to 1024 fits
    {"rows": 16},  # atoms of a graph: their numbers, 0 and 1, must be those of atoms
)
_ELEMENTS = 2**22  # of the largest input

Run = Callable[[Mapping[str, Any]], Any]


def drawn_samples(
    model: Model,
    run: Run | None = None,
    *,
    interface: Interface | None = None,
    seed: int = 0,
    count: int = 8,
    threads: int = 1,
) -> Samples:
    """Return random samples of the smallest sizes that the model runs on, or of small ones if it runs on none.

    A model of sounds takes no sixteen samples of one: it cuts windows. A model of graphs takes no single atom. Where no
    dimension is open nothing is run.

    Args:
        model: Stays as it is.
        run: Runs it, raising ModelError where it cannot; None: it is opened for that.
        interface: Its inputs with sizes that are wanted; by default as the model has them.
        seed: Root of the randomness.
        count: Number of samples.
        threads: Threads inside an operator.

    Raises:
        SampleError: An input is no tensor or does not state how many axes it has.
    """
    from graphopt.samples import random_samples

    optional = frozenset(model.graph.defaults)
    wanted = interface or model.interface
    tries = [random_samples(wanted, seed=seed, count=count, optional=optional, **sizes) for sizes in _SIZES]
    if len({_shapes(samples) for samples in tries}) == 1:
        return tries[0]
    if run is not None:
        return _first(tries, run)
    try:
        with open_session(model, threads=threads, optimize=False) as session:
            return _first(tries, session.run)
    except ModelError:  # it does not even open; whoever needs it open tells
        return tries[0]


def _first(tries: list[Samples], run: Run) -> Samples:
    for samples in tries:
        feeds = next(iter(samples))
        if max(value.size for value in feeds.values()) > _ELEMENTS:
            continue
        if runs(run, feeds):
            return samples
    return tries[0]


def runs(run: Run, feeds: Mapping[str, Any]) -> bool:
    """Whether a model runs on an input."""
    try:
        run(feeds)
    except ModelError:
        return False
    return True


def _shapes(samples: Samples) -> tuple[tuple[int, ...], ...]:
    return tuple(value.shape for value in next(iter(samples)).values())
