"""How far the outputs of a model are off, as one number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from graphopt.model import Model
from graphopt.runtime.compare import leaves
from graphopt.runtime.session import Outputs, Session, open_session
from graphopt.samples import Feeds, Samples

_LEAST = float(np.finfo(np.float64).tiny)


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
        with open_session(original) as session:
            self._expected: list[Outputs] = [session.run(feeds) for feeds in self._feeds]

    def __call__(self, model: Model) -> float:
        """Return the error of a model; see `of`."""
        with open_session(model) as session:
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
    """Return squared error and energy of each float output; an error of infinity where the shape is another."""
    actual, result = dict(leaves(found)), {}
    for name, wanted in leaves(expected):
        if wanted is None or wanted.dtype.kind != "f":
            continue
        value, flat = actual.get(name), np.asarray(wanted, np.float32).ravel()
        if value is None or value.shape != wanted.shape:
            result[name] = float("inf"), float(np.dot(flat, flat))
            continue
        difference = np.asarray(value, np.float32).ravel() - flat
        result[name] = float(np.dot(difference, difference)), float(np.dot(flat, flat))
    return result


def hardest(original: Model, model: Model, samples: Samples, count: int) -> list[Feeds]:
    """Return the samples that a model does worst on, and for the other half of the count evenly spaced ones.

    What breaks a limit is mostly a few samples, which a spaced choice would miss.

    Raises:
        ModelError: A model does not run.
    """
    if len(samples) <= count:
        return list(samples)
    errors = []
    with open_session(original) as before, open_session(model) as after:
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
