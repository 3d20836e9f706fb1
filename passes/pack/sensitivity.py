"""How far the outputs of a model move when its weights are changed, over several steps where it hands on a state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from graphopt.evaluate.chains import chains, run_chain
from graphopt.evaluate.fixed import with_fixed_numbers
from graphopt.evaluate.states import states
from graphopt.model import Model
from graphopt.runtime.compare import leaves, sums
from graphopt.runtime.session import Outputs, Session, open_session
from graphopt.samples import Samples

_JUDGED = 3, 16  # least and most samples
_ELEMENTS = 2**22  # of all inputs together; samples that are large are also slow, and tell more


class OutputLoss:
    """Compares a model with what it gave at first, on a few samples.

    Where an output is the next value of an input, all steps of chains count, see `graphopt.evaluate.chains`.

    Args:
        model: As it is at first.
        samples: Should be others than those that changes are fitted to: what fits them by chance does not count.

    Attributes:
        states: Inputs that are states, each with the output that is its next value.
    """

    def __init__(self, model: Model, samples: Samples) -> None:
        elements = sum(np.size(value) for value in next(iter(samples)).values())
        least, most = _JUDGED
        taken = samples.take(min(max(_ELEMENTS // max(elements, 1), least), most))
        with open_session(with_fixed_numbers(model)) as session:
            first = next(iter(taken))
            self.states = states(first, session.run(first))
            self._chains = [chain for _, chain in chains(taken)] if self.states else [[feeds] for feeds in taken]
            self._expected = list(self._outputs(session))

    def of(self, model: Model) -> float:
        """Return the relative squared error of the float outputs, each at most 1, on average over the outputs."""
        found = self._errors(model)
        return float(np.mean(found)) if found else 0.0

    def worst(self, model: Model) -> float:
        """Return the relative squared error of the output that errs most, at most 1."""
        return max(self._errors(model), default=0.0)

    def _errors(self, model: Model) -> list[float]:
        with open_session(with_fixed_numbers(model)) as session:
            return _errors(self._expected, self._outputs(session))

    def _outputs(self, session: Session) -> Iterator[Outputs]:
        for chain in self._chains:
            yield from run_chain(session.run, chain, self.states)


def _errors(expected: Sequence[Outputs], found: Iterable[Outputs]) -> list[float]:
    """Return the relative squared error of each float output, at most 1."""
    totals: dict[str, np.ndarray] = {}
    for ours, theirs in zip(expected, found, strict=True):
        others = dict(leaves(theirs))
        for name, value in leaves(ours):
            other = others.get(name)
            if value is None or value.dtype.kind != "f" or other is None or other.shape != value.shape:
                continue
            total = sums(value, other)
            totals[name] = totals.get(name, np.zeros(2)) + np.array([total.error, total.energy])
    return [min(float(error / energy), 1.0) for error, energy in totals.values() if energy > 0]
