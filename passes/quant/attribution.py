"""Which nodes the error at the outputs comes from, by measurement.

The errors that single layers cause at the outputs of a network add up closely when each is small (measured: the sum
over all layers of a text recognizer is within 15 % of the error of all together). So the error of a part of the nodes,
with all others in float, tells what leaving that part float would save. Halving the worst part again and again finds
the few nodes that most of the error comes from in a number of runs that grows with their logarithm.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from graphopt.model import Model
from graphopt.runtime.compare import leaves
from graphopt.runtime.session import Outputs, open_session
from graphopt.samples import Feeds, Samples

_MOST = 64  # measurements; after that parts are given up as a whole


class OutputError:
    """Relative squared error of a model's float outputs, the worst output counting.

    Args:
        original: What is compared with.
        samples: Few samples; they are held, with the outputs of the original.
    """

    def __init__(self, original: Model, samples: Samples) -> None:
        self._feeds: list[Feeds] = list(samples)
        with open_session(original) as session:
            self._expected: list[Outputs] = [session.run(feeds) for feeds in self._feeds]

    def __call__(self, model: Model) -> float:
        """Return the error, 0 for equal outputs; infinity if an output has another shape or is not finite.

        Raises:
            ModelError: The model does not run.
        """
        squares: dict[str, float] = {}
        energies: dict[str, float] = {}
        with open_session(model) as session:
            for feeds, expected in zip(self._feeds, self._expected, strict=True):
                found = dict(leaves(session.run(feeds)))
                for name, wanted in leaves(expected):
                    if wanted is None or wanted.dtype.kind != "f":
                        continue
                    value = found.get(name)
                    if value is None or value.shape != wanted.shape:
                        return float("inf")
                    difference = np.asarray(value, np.float64) - wanted
                    squares[name] = squares.get(name, 0.0) + float(np.sum(difference**2))
                    energies[name] = energies.get(name, 0.0) + float(np.sum(np.asarray(wanted, np.float64) ** 2))
        losses = [squares[name] / max(energies[name], np.finfo(np.float64).tiny) for name in squares]
        return float(np.nan_to_num(max(losses, default=0.0), nan=np.inf, posinf=np.inf))


def most_harmful(
    nodes: Sequence[int], error: Callable[[frozenset[int]], float]
) -> Iterator[tuple[tuple[int, ...], float]]:
    """Yield nodes in order of the error they cause, with that error.

    Args:
        nodes: Nodes in graph order; neighbours are tried together.
        error: Error with only these nodes in integers.

    Yields:
        Mostly one node at a time; several where measuring further would take too long.
    """
    parts: list[tuple[float, int, tuple[int, ...]]] = []
    measured = 0

    def push(part: tuple[int, ...]) -> None:
        nonlocal measured
        if part:
            measured += 1
            heapq.heappush(parts, (-error(frozenset(part)), part[0], part))

    push(tuple(nodes))
    while parts:
        negative, _, part = heapq.heappop(parts)
        if len(part) == 1 or measured >= _MOST:
            yield part, -negative
            continue
        push(part[: len(part) // 2])
        push(part[len(part) // 2 :])
