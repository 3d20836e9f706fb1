"""A layer to be made sparse as one problem, whatever its size and pattern."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from graphopt.compensate.gptq import inverse_factor
from graphopt.compensate.loss import output_loss
from graphopt.compensate.patterns import NofM, Pattern, Unstructured
from graphopt.compensate.sparse import obs_losses, refit_support, saliency, sparsegpt

_EXACT = 2**27  # operations that removing the weights of a layer one by one may take: about a second
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""``score(weights, moment)`` of one group, [rows, inputs] and [inputs, inputs] -> [rows, inputs]."""


@dataclass(frozen=True, eq=False)
class SparseProblem:
    """What weights should come close to, and under which inputs.

    Attributes:
        target: Weights whose outputs are wanted, float64 [groups, rows, inputs].
        moment: Damped second moment of the inputs, float64 [groups, inputs, inputs].
        pattern: Where zeros may stand.
    """

    target: np.ndarray
    moment: np.ndarray
    pattern: Pattern

    def fit(self, ratio: float, *, refit: bool = True) -> np.ndarray:
        """Return sparse weights by second order, [groups, rows, inputs].

        Single weights of small layers are removed one by one (exact OBS), also within the groups of N:M; all others go
        column by column (SparseGPT). Then what stays is fitted by least squares, as is the support by magnitude, and
        the better one is returned.

        Args:
            ratio: Fraction that goes; see `Pattern`.
            refit: Whether to do the last step.
        """
        if self.is_exact and isinstance(self.pattern, Unstructured):
            return self._refitted(self.target, self.pattern.keep(self._exact, ratio))
        start = self._start(ratio)
        if not refit:
            return start
        # Neither guess is always the better one: column by column ignores the columns to come, magnitude the inputs.
        found = self._refitted(start, start != 0), self.masked(ratio, lambda weights, _: np.abs(weights))
        return min(found, key=self.loss)

    def _start(self, ratio: float) -> np.ndarray:
        """Return sparse weights, of which those that stay are about right."""
        if self.is_exact:
            return self._refitted(self.target, np.isinf(self._exact))
        pairs = zip(self.target, self._factors, strict=True)
        return np.stack([sparsegpt(target, factor, self.pattern, ratio) for target, factor in pairs])

    def masked(self, ratio: float, score: Score, *, refit: bool = True) -> np.ndarray:
        """Return sparse weights by any other score, [groups, rows, inputs], fitted by least squares if wanted."""
        scores = np.stack([score(*pair) for pair in zip(self.target, self.moment, strict=True)])
        keep = self.pattern.keep(scores, ratio)
        start = np.where(keep, self.target, 0)
        return self._refitted(start, keep) if refit else start

    def loss(self, weights: np.ndarray) -> float:
        """Return the mean squared error of all outputs, summed."""
        triples = zip(self.target, weights, self.moment, strict=True)
        return float(sum(output_loss(*triple).sum() for triple in triples))

    def losses(self, ratios: Sequence[float]) -> list[float]:
        """Return about what is lost at each ratio by `fit`."""
        if self.is_exact and isinstance(self.pattern, Unstructured):
            ordered = np.concatenate([[0.0], np.cumsum(np.sort(self._exact, axis=None))])
            return [float(ordered[int(ratio * (len(ordered) - 1))]) for ratio in ratios]
        return [self.loss(self.fit(ratio, refit=False)) if ratio else 0.0 for ratio in ratios]

    def _refitted(self, start: np.ndarray, keep: np.ndarray) -> np.ndarray:
        """Return the best weights on a support; single precision is far below what the moments are known to.

        The unit of the inputs changes nothing, and is chosen so that none of their moments is too small for it.
        """
        unit = np.einsum("gkk->gk", self.moment).mean(axis=-1)[:, None, None]
        return np.asarray(refit_support(self.target, start, keep, (self.moment / unit).astype(np.float32)), np.float64)

    @property
    def is_exact(self) -> bool:
        """Whether the layer is small enough for exact OBS."""
        groups, rows, inputs = self.target.shape
        return isinstance(self.pattern, Unstructured | NofM) and groups * rows * inputs**3 <= _EXACT

    @cached_property
    def _exact(self) -> np.ndarray:
        """What each weight's removal loses in its row's best order, never falling, [groups, rows, inputs]."""
        groups, rows, inputs = self.target.shape
        inverse = np.repeat(np.linalg.inv(self.moment), rows, axis=0)
        pattern = self.pattern
        groups_of = (pattern.among, pattern.among - pattern.keeps) if isinstance(pattern, NofM) else (0, 0)
        return obs_losses(self.target.reshape(-1, inputs), inverse, *groups_of).reshape(groups, rows, inputs)

    @cached_property
    def _factors(self) -> list[np.ndarray]:
        return [inverse_factor(moment) for moment in self.moment]


def obs_score(weights: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Score weights by the loss of removing each alone; see `saliency`."""
    return saliency(weights, np.diag(np.linalg.inv(moment)))
