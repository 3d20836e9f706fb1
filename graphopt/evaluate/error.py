"""How far the float outputs of a model are off, as one number, for comparing versions of a model with each other."""

from __future__ import annotations

import numpy as np

from graphopt.evaluate.fixed import with_fixed_numbers
from graphopt.model import Model
from graphopt.runtime.compare import leaves
from graphopt.runtime.session import Outputs, open_session
from graphopt.samples import Feeds, Samples


class OutputError:
    """Squared error of float outputs over their energy, the mean over outputs.

    Args:
        original: What is compared with.
        samples: Few samples; they are held, with the outputs of the original.
    """

    def __init__(self, original: Model, samples: Samples) -> None:
        self._feeds: list[Feeds] = list(samples)
        with open_session(with_fixed_numbers(original)) as session:
            self._wanted: list[Outputs] = [session.run(feeds) for feeds in self._feeds]

    def __call__(self, model: Model) -> float:
        """Return the error, 0 for equal outputs; infinity if an output has another shape or is not finite.

        Raises:
            ModelError: The model does not run.
        """
        sums: dict[str, np.ndarray] = {}
        with open_session(with_fixed_numbers(model)) as session:
            for feeds, wanted in zip(self._feeds, self._wanted, strict=True):
                found = dict(leaves(session.run(feeds)))
                for name, expected in leaves(wanted):
                    if expected is not None and expected.dtype.kind == "f":
                        sums[name] = sums.get(name, np.zeros(2)) + _squares(expected, found.get(name))
        errors = [square / energy if energy > 0 else square for square, energy in sums.values()]
        return float(np.nan_to_num(np.mean(errors), nan=np.inf, posinf=np.inf)) if errors else 0.0


def _squares(expected: np.ndarray, found: np.ndarray | None) -> np.ndarray:
    """Return squared error and energy, float64 [2]."""
    wide = np.asarray(expected, np.float64)
    if found is None or found.shape != expected.shape:
        return np.array([np.inf, 1.0])
    return np.array([np.sum(np.square(found - wide)), np.sum(np.square(wide))])
