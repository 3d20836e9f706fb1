"""Trellis-coded quantization: each code chooses among levels that depend on the codes before it.

With codes of b bits a weight by itself can have one of 2**b values. Here its level is looked up by a *window*: its own
code and the last bits of the codes before it in its chain, so that neighbours together choose among 2**(b + 4) levels.
The cheapest path through them is found by dynamic programming (Viterbi 1967). At the same bits the squared error of
Gaussian weights is a third below that of the best levels of their own (Marcellin and Fischer, "Trellis coded
quantization of memoryless and Gauss-Markov sources", 1990); as in QTIP (arXiv:2406.11235, sections 3.1 and 3.2) windows
slide by whole codes over one stream, and levels are scattered over the windows by a hash.

A chain goes along the *rows* of one input column: GPTQ hands on the error of a column to the columns after it, and
errors of rows do not touch each other. So all rows of a column can be chosen together, which leaves GPTQ as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

MEMORY = 4  # bits of earlier codes in a window; 6 would take 4 times as long for 0.02 bit
MOST_BITS = 6  # of a code; with more the table of levels would be large
_CHAIN = 96  # rows at least; the first have no choice of window, and short chains are quicker side by side
_STEPS = 2**19  # costs that are held together, about
_COLUMNS = 64  # that are chosen side by side
_HASH = 2654435761  # Knuth, The Art of Computer Programming, volume 3, section 6.4: 2**32 over the golden ratio
_LLOYD_ROUNDS = 30  # more change the last digits
_DRAWN = 2**14  # weights of a round
_KNOTS = 2**12  # between which values count as evenly spread
_DENSITY = 0.55  # power of the density of the values that levels are dense as
_INERTIA = 4  # weights of a round that the present level counts as


@dataclass(frozen=True, eq=False)
class Trellis:
    """Levels by window.

    Attributes:
        bits: Of a code, 1 to `MOST_BITS`.
        levels: Level of each window, float32 that half precision holds exactly, [2**(bits + MEMORY)].
    """

    bits: int
    levels: np.ndarray

    def windows(self, codes: np.ndarray) -> np.ndarray:
        """Return the window of each code, int64 [..., rows, inputs]; the lowest bits are the code itself.

        Args:
            codes: [..., rows, inputs]; that of row r follows that of row ``r - lanes(rows)``.
        """
        rows = codes.shape[-2]
        step = lanes(rows)
        found = codes.astype(np.int64)
        for place in range(1, reach(self.bits) + 1):
            earlier = codes[..., : max(rows - place * step, 0), :]
            found[..., place * step :, :] += earlier.astype(np.int64) << (place * self.bits)
        return np.asarray(found & (len(self.levels) - 1))

    def decoded(self, codes: np.ndarray) -> np.ndarray:
        """Return the level of each code, float32 [..., rows, inputs]."""
        return np.asarray(self.levels[self.windows(codes)])


@cache
def lanes(rows: int) -> int:
    """Return how many chains the rows of a column are dealt out to, in turn, so that all are of one length."""
    return next(count for count in range(max(1, rows // _CHAIN), 0, -1) if rows % count == 0)


def reach(bits: int) -> int:
    """Return how many codes before its own a window reaches."""
    return -(-MEMORY // bits)


class TrellisGrid:
    """The grid of a trellis times a scale a row; remembers the codes of the columns that it was asked for.

    Args:
        scale: Factor of each row, [rows]; a row of scale 0 is zero.
        trellis: The levels.
        inputs: Columns.

    Attributes:
        codes: uint8 [rows, inputs].
    """

    def __init__(self, scale: np.ndarray, trellis: Trellis, inputs: int) -> None:
        self._scale = np.asarray(scale, np.float64)
        self._trellis = trellis
        self.codes = np.zeros((len(scale), inputs), np.uint8)
        self._weight = self._dealt((self._scale > 0).astype(np.float64))  # rows count alike, however small they are

    def project(self, values: np.ndarray, column: int) -> np.ndarray:
        """Return the grid values of a column that err least together, [rows]."""
        wanted = np.divide(values, self._scale, out=np.zeros(len(values)), where=self._scale > 0)
        found = best_windows(self._dealt(wanted), self._weight, self._trellis).reshape(-1)
        self.codes[:, column] = found & (2**self._trellis.bits - 1)
        return np.asarray(self._trellis.levels[found] * self._scale)

    def project_all(self, values: np.ndarray) -> None:
        """Choose the codes of all columns, [rows, inputs], none of which makes up for another."""
        wanted = np.divide(values, self._scale[:, None], out=np.zeros(values.shape), where=self._scale[:, None] > 0)
        columns = np.ascontiguousarray(wanted.T)
        for part in range(0, len(columns), _COLUMNS):
            dealt = [self._dealt(column) for column in columns[part : part + _COLUMNS]]
            weight = np.tile(self._weight, len(dealt))
            found = best_windows(np.concatenate(dealt, axis=1), weight, self._trellis)
            rows = found.reshape(len(found), len(dealt), -1).transpose(0, 2, 1).reshape(-1, len(dealt))
            self.codes[:, part : part + _COLUMNS] = rows & (2**self._trellis.bits - 1)

    def _dealt(self, values: np.ndarray) -> np.ndarray:
        """Return values of rows as [steps, lanes], float32."""
        return values.reshape(-1, lanes(len(values))).astype(np.float32)


def best_windows(wanted: np.ndarray, weight: np.ndarray, trellis: Trellis) -> np.ndarray:
    """Return the windows along each chain whose levels have the least weighted squared error, int64 [steps, lanes].

    Args:
        wanted: Values, float32 [steps, lanes]. Before the first step all codes are 0.
        weight: Of each value's squared error, float32 [steps, lanes].
        trellis: The levels.
    """
    across = max(1, _STEPS // (len(trellis.levels) * len(wanted)))
    parts = [slice(start, start + across) for start in range(0, wanted.shape[1], across)]
    return np.concatenate([_viterbi(wanted[:, part], weight[:, part], trellis) for part in parts], axis=1)


def _viterbi(wanted: np.ndarray, weight: np.ndarray, trellis: Trellis) -> np.ndarray:
    """Do what `best_windows` does, with all costs in memory.

    A window is ``memory * codes + code``, and the next memory its last bits: of the windows that differ in the bits
    that are forgotten, only the cheapest goes on.
    """
    steps, across = wanted.shape
    memories, codes = 2**MEMORY, 2**trellis.bits
    levels = trellis.levels
    powers = np.stack([levels**2, levels, np.ones_like(levels)], axis=1)
    parabolas = np.stack([weight, -2 * weight * wanted, weight * wanted**2], axis=1)
    costs = powers @ parabolas  # of each window at its step
    so_far = np.full((memories, across), np.float32(np.inf))
    so_far[0] = 0
    for cost in costs:
        cost.reshape(memories, codes, across)[...] += so_far[:, None]
        so_far = cost.reshape(codes, memories, across).min(axis=0)
    found = np.empty((steps, across), np.int64)
    memory, lane = so_far.argmin(axis=0), np.arange(across)
    for step in reversed(range(steps)):
        forgotten = costs[step].reshape(codes, memories, across)[:, memory, lane].argmin(axis=0)
        found[step] = forgotten * memories + memory
        memory = found[step] // codes
    return found


def fit_trellis(values: np.ndarray, bits: int, rng: np.random.Generator) -> Trellis:
    """Return levels that suit values like these (Lloyd 1982): in turn windows are chosen, and levels their means.

    At first levels are dense as a power of the density of the values: with a third, levels of their own would err least
    (Panter and Dite 1951), with one, endless random paths would.

    Args:
        values: Weights over the size of their rows, any shape but empty.
        bits: Of a code, 1 to `MOST_BITS`.
        rng: Draws the values of each round.
    """
    flat = np.sort(values, axis=None)
    count = 2 ** (bits + MEMORY)
    knots = flat[np.linspace(0, flat.size - 1, min(flat.size, _KNOTS)).round().astype(np.int64)]
    levels_below = np.concatenate([[0.0], np.cumsum(np.diff(knots) ** (1 - _DENSITY))])
    spread = np.interp((np.arange(count) + 0.5) / count * levels_below[-1], levels_below, knots)
    hashed = np.arange(count, dtype=np.uint64) * np.uint64(_HASH) % np.uint64(2**32)
    levels = spread[np.argsort(np.argsort(hashed))].astype(np.float64)
    ones = np.ones((_CHAIN, _DRAWN // _CHAIN), np.float32)
    for _ in range(_LLOYD_ROUNDS):
        drawn = flat[rng.integers(0, flat.size, ones.shape)].astype(np.float32)
        found = best_windows(drawn, ones, Trellis(bits, levels.astype(np.float32)))
        number = np.bincount(found.ravel(), minlength=count)
        total = np.bincount(found.ravel(), drawn.ravel(), count)
        levels = (total + _INERTIA * levels) / (number + _INERTIA)
    return Trellis(bits, levels.astype(np.float16).astype(np.float32))
