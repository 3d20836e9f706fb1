"""What the weights of a layer are fitted to: the outputs of the original, from what the layer reads now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from graphopt.biases import Bias, fixed_bias
from graphopt.compensate import damped
from graphopt.moments import LayerMoments, PairedMoments

_BLEND = 0.3  # share of the diagonal; fits unseen samples best, or nearly, on conv nets, MLPs and transformers


@dataclass(frozen=True, eq=False)
class Objective:
    """A quadratic form in the weights, and what the bias makes of it.

    Few samples show correlations of inputs that other samples do not have, so the moment is blended with its diagonal:
    that also holds the weights to those of the original where the samples say little.

    Attributes:
        weights: Those that come nearest to the original's outputs, [groups, rows, inputs].
        moment: Of the inputs, blended, [groups, inputs, inputs]; about the mean where a bias makes up for it.
        mean: Mean of the inputs, [groups, inputs].
        output: Mean of what the weights should give, [groups, rows].
    """

    weights: np.ndarray
    moment: np.ndarray
    mean: np.ndarray
    output: np.ndarray

    @classmethod
    def alone(cls, matrix: np.ndarray, moments: LayerMoments, *, centred: bool) -> Self:
        """Return the objective of a layer that reads what it reads in the original.

        Args:
            matrix: Its weights, [groups, rows, inputs].
            moments: What it reads.
            centred: Whether a bias makes up for the mean.
        """
        moment = _blended(moments.covariance if centred else moments.second)
        return cls(matrix, moment, moments.mean, np.einsum("grk,gk->gr", matrix, moments.mean))

    @classmethod
    def inherited(cls, matrix: np.ndarray, moments: PairedMoments, *, centred: bool) -> Self:
        """Return the objective of a layer that also makes up for what the layers before it have lost.

        With x what it reads and t what the original's layer gives, less its own bias, the loss of weights W is
        ``E |t - W x|^2``; it is least at ``W0 + E (t - W0 x) x^T (E x x^T)^-1`` for any W0. The moment that is
        inverted is the blended one, so that W stays near W0 where there is little evidence.

        Args:
            matrix: Its weights W0, [groups, rows, inputs].
            moments: What it reads and should give.
            centred: Whether a bias makes up for the mean.
        """
        own = fixed_bias(moments.layer)
        second = moments.centred.second if centred else moments.second
        moment = _blended(second)
        expected = np.einsum("grk,gk->gr", matrix, moments.mean)
        if own is None or not moments.count:
            return cls(matrix, moment, moments.mean, expected)
        cross = moments.centred.cross if centred else moments.cross - own[:, :, None] * moments.mean[:, None, :]
        missing = cross - matrix @ second
        change = np.linalg.solve(damped(moment), np.swapaxes(missing, -1, -2))
        return cls(matrix + np.swapaxes(change, -1, -2), moment, moments.mean, moments.target_mean - own)

    def shift(self, bias: Bias, decoded: np.ndarray) -> None:
        """Let a bias make up for the mean of what other weights, [groups, rows, inputs], give."""
        bias.shift((self.output - np.einsum("grk,gk->gr", decoded, self.mean)).ravel())


def _blended(moment: np.ndarray) -> np.ndarray:
    blended: np.ndarray = (1 - _BLEND) * moment
    np.einsum("gkk->gk", blended)[...] = np.einsum("gkk->gk", moment)
    return blended
