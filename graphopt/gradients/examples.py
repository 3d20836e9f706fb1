"""What a model is fed and what it should give, held for many runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.ir.graph import StoredPayload
from graphopt.model import Model
from graphopt.moments import Stream
from graphopt.runtime.session import open_session
from graphopt.samples import Feeds
from graphopt.walk import Shelf, loaded

Results = Mapping[str, Any]
"""Values by the name of their tensor, as a `Shelf` holds them."""
_TINY = 1e-12
_SQUASHING = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})


class Complete:
    """Samples, with the values that a model has itself for inputs that they leave out; re-iterable.

    Args:
        samples: What there is.
        model: Has the values.
    """

    def __init__(self, samples: Stream, model: Model) -> None:
        self._samples = samples
        self._values = {
            name: held.load() if isinstance(held, StoredPayload) else held
            for name, held in model.graph.defaults.items()
        }

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._samples)

    def __iter__(self) -> Iterator[Feeds]:
        """Yield the samples."""
        for feeds in self._samples:
            yield {**self._values, **feeds}


def targets(model: Model) -> list[str]:
    """Return the names of the float outputs, or of what is squashed to them."""
    found = []
    for output in model.graph.outputs:
        maker = output.inputs[0] if output.inputs else None
        target = maker.inputs[0] if maker is not None and maker.op in _SQUASHING else output
        if maker is not None and target.inputs and target.dtype == np.float32:
            found.append(str(target.name))
    return [*dict.fromkeys(found)]


def results(model: Model, samples: Stream, shelf: Shelf) -> list[Results]:
    """Return what a model gives on each sample, held."""
    with open_session(model) as session:
        runs = (session.run({name: feeds[name] for name in session.inputs}) for feeds in samples)
        return [{name: shelf.put(value) for name, value in found.items()} for found in runs]


def usable(*held: Results) -> bool:
    """Whether all that is held is finite and no tensor is empty."""
    arrays = [np.asarray(value) for each in held for value in fetched(each).values()]
    return all(array.size and (array.dtype.kind != "f" or np.isfinite(array).all()) for array in arrays)


def spreads(pairs: Sequence[tuple[Results, Results]], names: Sequence[str]) -> list[float]:
    """Return the mean variance of each target, which its squared error can be compared with.

    Args:
        pairs: What is fed, and what should come of it.
        names: Targets.
    """
    return [max(float(np.mean([np.var(loaded(aims[name])) for _, aims in pairs])), _TINY) for name in names]


def both(pair: tuple[Results, Results]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is fed and what should come of it."""
    return fetched(pair[0]), fetched(pair[1])


def fetched(held: Results) -> dict[str, Any]:
    """Return values that a `Shelf` holds."""
    return {name: loaded(value) for name, value in held.items()}
