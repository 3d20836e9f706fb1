"""Least squares for a whole layer: the weights whose outputs come nearest to given targets.

With inputs x and targets t of a layer the loss of weights W is ``E |t - W x|^2``, a quadratic form in the moments
``E x x^T`` and ``E t x^T``. Where samples are few the minimum fits their noise, so that the weights are held to those
that were there before: ``+ strength * sum_k E x_k^2 |w_k - v_k|^2``, which no scaling of an input changes. How strongly
is decided on samples that the fit did not see. Weights of inputs that are next to nothing beside the others stay: these
may tell something, but by weights of millions, which no rounding bears.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_NOTHING = 1e-6  # of the inputs' mean energy, a thousandth in size


@dataclass(frozen=True, eq=False)
class Problem:
    """Moments of inputs x and targets t.

    Attributes:
        second: ``E x x^T``, [..., inputs, inputs].
        cross: ``E t x^T``, [..., rows, inputs].
        energy: ``E t^2``, [..., rows].
    """

    second: np.ndarray
    cross: np.ndarray
    energy: np.ndarray

    def loss(self, weight: np.ndarray) -> float:
        """Return the mean squared error of all rows together for weights [..., rows, inputs]."""
        quadratic = np.vdot(weight @ self.second, weight)
        return float(self.energy.sum() - 2 * np.vdot(weight, self.cross) + quadratic)


def ridge(problem: Problem, prior: np.ndarray, strengths: Sequence[float]) -> list[np.ndarray]:
    """Return the best weights for each strength with which they are held to a prior.

    Args:
        problem: What they are fitted to.
        prior: Weights from before, [..., rows, inputs].
        strengths: Positive; 1 weighs prior and data alike.

    Returns:
        Weights, [..., rows, inputs] each, in float64.
    """
    diagonal = np.einsum("...kk->...k", problem.second)
    free = diagonal > _NOTHING * diagonal.mean(axis=-1, keepdims=True)
    scale = np.sqrt(np.where(free, diagonal, np.inf))
    values, vectors = np.linalg.eigh(problem.second / (scale[..., :, None] * scale[..., None, :]))
    change = (problem.cross - prior @ problem.second) / scale[..., None, :] @ vectors
    values = np.maximum(values, 0.0)
    back = np.swapaxes(vectors, -1, -2)
    return [prior + (change / (values[..., None, :] + strength)) @ back / scale[..., None, :] for strength in strengths]


def judged_ridge(
    whole: Problem,
    fitted: Problem | None,
    unseen: Problem | None,
    prior: np.ndarray,
    strengths: Sequence[float] = STRENGTHS,
) -> np.ndarray:
    """Return the best weights, as strongly held to the prior as is best for samples that were not fitted to.

    Args:
        whole: Moments of all samples, for the final fit.
        fitted: Moments of those samples that the strengths are tried on; None where there are too few to spare any.
        unseen: Moments of the others, which judge.
        prior: Weights from before, [..., rows, inputs].
        strengths: What to try.

    Returns:
        Weights, [..., rows, inputs]; the prior itself if no fit does better on the unseen samples.
    """
    if fitted is None or unseen is None:
        return ridge(whole, prior, [1.0])[0]
    losses = [unseen.loss(weight) for weight in ridge(fitted, prior, strengths)]
    best = int(np.argmin(losses))
    if losses[best] >= unseen.loss(prior):
        return prior
    return ridge(whole, prior, [strengths[best]])[0]
