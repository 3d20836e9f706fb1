"""How far moments of a few samples can be trusted.

With few samples the least squares solution fits their noise. So the moments are shrunk toward their diagonal, which
holds the weights to those that were there before as ``+ strength * sum_k E x_k^2 |w_k - v_k|^2`` does: no scaling of an
input changes that.
"""

from __future__ import annotations

import numpy as np

from graphopt.compensate import Pattern, damped
from graphopt.compensate.problem import SparseProblem
from graphopt.compensate.sparse import refit_support
from graphopt.passes.prune.sites import Evidence

_ROWS = 32  # of a layer, about, that the trust is chosen by
_TRUSTS = (0.999, 0.99, 0.95, 0.8, 0.5, 0.2, 0.0)


def judged_problem(
    present: np.ndarray, whole: Evidence, fitted: Evidence, unseen: Evidence, pattern: Pattern, ratio: float
) -> SparseProblem:
    """Return what a site's weights should come close to, by moments that are shrunk as is best for unseen samples.

    Positions of one sample are much alike, so that no formula says how much is known. Each trust is tried on some of
    the samples: weights of smallest magnitude go, the others are fitted, and the samples that were left out judge. No
    trust at all leaves the others as they are, so that a fit which only fits noise is not made.

    Args:
        present: The weights that are there, [groups, rows, inputs].
        whole: What all samples tell, for the problem that is returned.
        fitted: What those tell that are fitted to.
        unseen: What the others tell, which judge.
        pattern: Where zeros may stand.
        ratio: Fraction that goes.
    """
    step = max(1, present.shape[1] // _ROWS)
    keep = pattern.keep(np.abs(present), ratio)[:, ::step]
    some, lack, unknown = present[:, ::step], fitted.lack[:, ::step], unseen.lack[:, ::step]
    losses = []
    for trust in _TRUSTS:
        moment = _shrunk(fitted.second, trust)
        unit = np.einsum("gkk->gk", moment).mean(axis=-1)[:, None, None]  # single precision holds its multiples
        change = refit_support(some, some, keep, (moment / unit).astype(np.float32), lack=trust * lack / unit) - some
        losses.append(np.vdot(change @ unseen.second, change) - 2 * np.vdot(change, unknown))
    return problem_of(present, whole, pattern, _TRUSTS[int(np.argmin(losses))])


def problem_of(present: np.ndarray, known: Evidence, pattern: Pattern, trust: float | None = None) -> SparseProblem:
    """Return what a site's weights should come close to, ``W + lack H^-1``, by moments that are shrunk and damped.

    Args:
        present: The weights that are there, W, [groups, rows, inputs].
        known: What is known of the inputs, H, and of what the outputs lack.
        pattern: Where zeros may stand.
        trust: Part of what is off the diagonal that stays, and of what is lacking that is made up for; None for what
            `shrinkage` says.
    """
    part = (1 - shrinkage(known.second, known.count) if trust is None else np.array([trust]))[:, None, None]
    moment = _shrunk(known.second, part)
    wanted = present
    if known.lack.any():
        wanted = present + part * np.linalg.solve(moment, np.swapaxes(known.lack, -1, -2)).swapaxes(-1, -2)
    return SparseProblem(wanted, moment, pattern)


def _shrunk(second: np.ndarray, trust: np.ndarray | float) -> np.ndarray:
    """Return moments of which a part of what is off the diagonal is left, damped, [groups, inputs, inputs]."""
    return damped(trust * second + (1 - trust) * second * np.eye(second.shape[-1]))


def shrinkage(second: np.ndarray, count: int) -> np.ndarray:
    """Return how far each moment should go toward its diagonal, [groups], in [0, 1]: the less is known, the further.

    Source: Chen et al., "Shrinkage Algorithms for MMSE Covariance Estimation" (OAS), arXiv:0907.4698, equation 23, of
    the correlations.

    Args:
        second: Second moments, [groups, inputs, inputs].
        count: Observations that they rest on.
    """
    inputs = second.shape[-1]
    diagonal = np.maximum(np.einsum("gkk->gk", second), 0)  # of a constant input, rounding may leave less
    scale = np.divide(1, np.sqrt(diagonal), out=np.zeros_like(diagonal), where=diagonal > 0)
    square = np.square(second * scale[:, :, None] * scale[:, None, :]).sum(axis=(1, 2))
    above = (1 - 2 / inputs) * square + inputs**2
    below = (count + 1 - 2 / inputs) * np.maximum(square - inputs, 0)
    return np.asarray(np.minimum(1.0, np.divide(above, below, out=np.ones_like(above), where=below > 0)))
