"""How far the outputs of a model move when its weights are changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from graphopt.model import Model
from graphopt.runtime.compare import leaves, sums
from graphopt.runtime.session import Outputs, open_session
from graphopt.samples import Feeds, Samples

_JUDGED = 3, 16  # least and most samples
_ELEMENTS = 2**22  # of all inputs together; samples that are large are also slow, and tell more


class OutputLoss:
    """Compares a model with what it gave at first, on a few samples.

    Args:
        model: As it is at first.
        samples: Should be others than those that changes are fitted to: what fits them by chance does not count.
    """

    def __init__(self, model: Model, samples: Samples) -> None:
        elements = sum(np.size(value) for value in next(iter(samples)).values())
        least, most = _JUDGED
        self._feeds = list(samples.take(min(max(_ELEMENTS // max(elements, 1), least), most)))
        self._expected = _outputs(model, self._feeds)

    def of(self, model: Model) -> float:
        """Return the relative squared error of the float outputs, each at most 1, on average over the outputs."""
        return _error(self._expected, _outputs(model, self._feeds))


def _outputs(model: Model, feeds: Iterable[Feeds]) -> list[Outputs]:
    with open_session(model) as session:
        return [session.run(item) for item in feeds]


def _error(expected: Sequence[Outputs], found: Sequence[Outputs]) -> float:
    totals: dict[str, np.ndarray] = {}
    for ours, theirs in zip(expected, found, strict=True):
        others = dict(leaves(theirs))
        for name, value in leaves(ours):
            other = others.get(name)
            if value is None or value.dtype.kind != "f" or other is None or other.shape != value.shape:
                continue
            total = sums(value, other)
            totals[name] = totals.get(name, np.zeros(2)) + np.array([total.error, total.energy])
    shares = [min(float(error / energy), 1.0) for error, energy in totals.values() if energy > 0]
    return float(np.mean(shares)) if shares else 0.0
