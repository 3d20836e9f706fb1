"""How far moments of a few samples can be trusted.

With few samples the least squares solution fits their noise. So the moments are shrunk toward their diagonal, which
holds the weights to those that were there before as ``+ strength * sum_k E x_k^2 |w_k - v_k|^2`` does: no scaling of an
input changes that.
"""

from __future__ import annotations

import numpy as np

from graphopt.compensate import Pattern, damped
from graphopt.compensate.problem import SparseProblem
from graphopt.passes.prune.sites import Evidence


def problem_of(present: np.ndarray, known: Evidence, pattern: Pattern) -> SparseProblem:
    """Return what a site's weights should come close to, ``W + lack H^-1``, by moments that are shrunk and damped.

    Args:
        present: The weights that are there, W, [groups, rows, inputs].
        known: What is known of the inputs, H, and of what the outputs lack.
        pattern: Where zeros may stand.
    """
    trust = 1 - shrinkage(known.second, known.count)[:, None, None]
    moment = damped(trust * known.second + (1 - trust) * known.second * np.eye(known.second.shape[-1]))
    wanted = present
    if known.lack.any():
        wanted = present + trust * np.linalg.solve(moment, np.swapaxes(known.lack, -1, -2)).swapaxes(-1, -2)
    return SparseProblem(wanted, moment, pattern)


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
