"""Which inputs of layers can go: groups of columns in the order of the error that their removal costs.

The weights that stay make up for those that go (group OBS). With the inverse Hessian ``G = H^-1`` of a layer, removing
columns B costs ``tr(W_B (G_BB)^-1 W_B^T)``, after ``W <- W - W_B (G_BB)^-1 G_B,:``; then ``G`` loses B likewise.

Sources: Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", NeurIPS 1992; Frantar
and Alistarh, "Optimal Brain Compression", arXiv:2208.11580, for groups of weights with one Hessian for all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_STEPS = 32  # re-scorings of a whole removal; in between, the columns of lowest score go together


@dataclass(eq=False)
class Reader:
    """A layer that reads what may go; removal changes it.

    Attributes:
        weight: [rows, inputs].
        inverse: Inverse of the damped second moment of its inputs, [inputs, inputs].
        columns: Inputs that each candidate stands for, int [candidates, width].
        worth: Factor of its losses, so that those of several layers can be added.
    """

    weight: np.ndarray
    inverse: np.ndarray
    columns: np.ndarray
    worth: float = 1.0

    def scores(self, candidates: np.ndarray) -> np.ndarray:
        """Return what the removal of each candidate alone would cost, [candidates]."""
        columns = self.columns[candidates]
        blocks = self.inverse[columns[:, :, None], columns[:, None, :]]
        weights = np.moveaxis(self.weight[:, columns], 1, 0)  # [candidates, rows, width]
        solved = np.linalg.solve(blocks, np.swapaxes(weights, 1, 2))
        return np.asarray(np.einsum("crw,cwr->c", weights, solved)) * self.worth

    def remove(self, candidates: np.ndarray) -> float:
        """Remove candidates together, let the rest make up for them, and return what it cost."""
        gone = self.columns[candidates].ravel()
        lost = self.weight[:, gone].copy()
        factor = np.linalg.solve(self.inverse[np.ix_(gone, gone)], lost.T).T
        cost = float(np.vdot(factor, lost)) * self.worth
        self.weight = self.weight - factor @ self.inverse[gone]
        self.weight[:, gone] = 0.0
        solved = np.linalg.solve(self.inverse[np.ix_(gone, gone)], self.inverse[gone])
        self.inverse = self.inverse - self.inverse[:, gone] @ solved
        self.inverse[gone, :] = self.inverse[:, gone] = 0.0
        self.inverse[gone, gone] = 1.0  # keeps later systems regular; their weights are zero
        return max(cost, 0.0)


def removals(readers: Sequence[Reader], keep: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Remove candidates, those first whose removal costs least, and after each step yield what went.

    Args:
        readers: The layers that read the candidates, with as many candidates each. After each step they hold what has
            become of their weights so far.
        keep: How many candidates stay.

    Yields:
        Candidates that went, int [step], in the order in which they would go alone; and what each cost, summed over all
        readers, float64 [step].
    """
    left = np.arange(len(readers[0].columns))
    chunk = max(1, len(left) // _STEPS)
    while len(left) > keep:
        scores = np.sum([reader.scores(left) for reader in readers], axis=0)
        chosen = np.argsort(scores, kind="stable")[: min(chunk, len(left) - keep)]
        gone = left[chosen]
        cost = sum(reader.remove(gone) for reader in readers)
        share = np.maximum(scores[chosen], 0) + np.finfo(np.float64).tiny
        yield gone, cost * share / share.sum()
        left = np.delete(left, chosen)
