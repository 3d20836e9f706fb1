"""How far the outputs of a model are off, as one number, and which roundings that comes from.

Outputs that are probabilities are compared by their logarithms. In the probabilities themselves the error of single
roundings does not add up: most rows are as good as certain and show none, and a few near ties show nothing else
(measured on a text recognizer: the nodes left float for them cost 6 % more time for the same loss).

The errors that single roundings cause at the outputs of a network add up closely when each is small (measured: the sum
over all layers of a text recognizer is within 15 % of the error of all together). So a part of them can be measured
with all others off. Halving the worst part again and again finds the few that most of the error comes from in a number
of runs that grows with their logarithm; the others share what their part causes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from graphopt.evaluate.fixed import with_fixed_numbers
from graphopt.model import Model
from graphopt.runtime.compare import leaves
from graphopt.runtime.session import Outputs, Session, open_session
from graphopt.samples import Feeds, Samples

RoundingT = TypeVar("RoundingT")
_EXACT = 0.002  # of the whole error; parts that cause less are not split
_LEAST = float(np.finfo(np.float64).tiny)
_RARE = np.float32(1e-12)  # probabilities below are as good as none
_WHOLE = 1e-2  # how far the sum of probabilities may be off 1


class OutputError:
    """Relative squared error of a model's float outputs, the worst output counting.

    Args:
        original: What is compared with.
        feeds: Few samples; they are held, with the outputs of the original.

    Raises:
        ModelError: The original does not run.
    """

    def __init__(self, original: Model, feeds: Sequence[Feeds]) -> None:
        self._feeds = feeds
        with open_session(with_fixed_numbers(original)) as session:
            self._expected: list[Outputs] = [session.run(feeds) for feeds in self._feeds]

    def __call__(self, model: Model) -> float:
        """Return the error of a model; see `of`."""
        with open_session(with_fixed_numbers(model)) as session:
            return self.of(session)

    def of(self, session: Session, state: Mapping[str, np.ndarray] | None = None) -> float:
        """Return the error, 0 for equal outputs; infinity if an output has another shape or is not finite.

        Args:
            session: The model, open.
            state: Fed besides the samples.

        Raises:
            ModelError: The model does not run.
        """
        squares: dict[str, float] = {}
        energies: dict[str, float] = {}
        for feeds, expected in zip(self._feeds, self._expected, strict=True):
            found = squared_errors(expected, session.run({**feeds, **(state or {})}))
            for name, (square, energy) in found.items():
                squares[name] = squares.get(name, 0.0) + square
                energies[name] = energies.get(name, 0.0) + energy
        return _worst(squares, energies)


def squared_errors(expected: Outputs, found: Outputs) -> dict[str, tuple[float, float]]:
    """Return squared error and energy of each float output, of probabilities those of their logarithms.

    The error is infinity where the shape is another.
    """
    actual, result = dict(leaves(found)), {}
    for name, wanted in leaves(expected):
        if wanted is None or wanted.dtype.kind != "f":
            continue
        value, wanted = actual.get(name), np.asarray(wanted, np.float32)
        likely = is_distribution(wanted)
        flat = (np.log(np.maximum(wanted, _RARE)) if likely else wanted).ravel()
        if value is None or value.shape != wanted.shape:
            result[name] = float("inf"), float(np.dot(flat, flat))
            continue
        value = np.asarray(value, np.float32)
        difference = (np.log(np.maximum(value, _RARE)) if likely else value).ravel() - flat
        result[name] = float(np.dot(difference, difference)), float(np.dot(flat, flat))
    return result


def is_distribution(values: np.ndarray) -> bool:
    """Whether the values along the last axis are probabilities of several classes."""
    if values.ndim == 0 or values.shape[-1] < 2 or values.size == 0 or not values.min() >= 0:
        return False
    return bool(np.abs(values.sum(axis=-1) - 1).max() < _WHOLE)


def hardest(original: Model, model: Model, samples: Samples, count: int) -> list[Feeds]:
    """Return the samples that a model does worst on, and for the other half of the count evenly spaced ones.

    What breaks a limit is mostly a few samples, which a spaced choice would miss.

    Raises:
        ModelError: A model does not run.
    """
    if len(samples) <= count:
        return list(samples)
    errors = []
    with open_session(with_fixed_numbers(original)) as before, open_session(with_fixed_numbers(model)) as after:
        for feeds in samples:
            found = squared_errors(before.run(feeds), after.run(feeds)).values()
            errors.append(max((square / max(energy, _LEAST) for square, energy in found), default=0.0))
    chosen = set(np.argsort(np.nan_to_num(errors, nan=np.inf))[-(count // 2) :].tolist())
    rest = [index for index in range(len(errors)) if index not in chosen]
    chosen |= {rest[index] for index in np.linspace(0, len(rest) - 1, count - len(chosen)).astype(int)}
    return [feeds for index, feeds in enumerate(samples) if index in chosen]


def _worst(squares: Mapping[str, float], energies: Mapping[str, float]) -> float:
    losses = [squares[name] / max(energies[name], _LEAST) for name in squares]
    return float(np.nan_to_num(max(losses, default=0.0), nan=np.inf, posinf=np.inf))


def attribute(
    roundings: Sequence[RoundingT], error: Callable[[Sequence[RoundingT]], float], measurements: int
) -> dict[RoundingT, float]:
    """Return the error that each rounding causes.

    Args:
        roundings: In graph order: neighbours are measured together.
        error: Error with only these on.
        measurements: Calls of `error` allowed, about.
    """
    if not roundings:
        return {}
    whole = error(roundings)
    parts: list[tuple[float, int, Sequence[RoundingT]]] = [(-whole, 0, roundings)]
    done: list[tuple[float, Sequence[RoundingT]]] = []
    count = 1
    while parts:
        negative, first, part = heapq.heappop(parts)
        if len(part) == 1 or count >= measurements or -negative <= _EXACT * whole:
            done.append((-negative, part))
            continue
        half = len(part) // 2
        for start, piece in ((first, part[:half]), (first + half, part[half:])):
            heapq.heappush(parts, (-error(piece), start, piece))
        count += 2
    return {rounding: harm / len(part) for harm, part in done for rounding in part}
