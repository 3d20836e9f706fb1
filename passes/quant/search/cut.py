"""The cheapest choice among many yes-or-no decisions with costs for neighbours that differ: a minimum cut.

    cost = sum of alone[a] over all a that are chosen + sum of c over all (a, b, c) with a chosen and b not

With every c at least 0 the least cost is the capacity of a minimum cut (Ivanescu 1965; Kolmogorov and Zabih, PAMI
2004), which is found exactly, here by Dinic's algorithm.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

import numpy as np

ChoiceT = TypeVar("ChoiceT", bound=Hashable)
_SOURCE, _SINK = 0, 1
_NOTHING = 1e-12  # capacities below are rounding errors of float arithmetic
IMPLIES = 1e9  # cost of a pair that is forbidden


def cheapest(alone: Mapping[ChoiceT, float], pairs: Iterable[tuple[ChoiceT, ChoiceT, float]]) -> frozenset[ChoiceT]:
    """Return what to choose; of several cheapest sets the smallest.

    Args:
        alone: Cost of choosing each by itself; negative ones are gains.
        pairs: (a, b, cost of choosing a without b), at least 0; `IMPLIES` where b must come with a.
    """
    index = {choice: number + 2 for number, choice in enumerate(alone)}
    network = _Network(len(index) + 2)
    for choice, cost in alone.items():
        if cost < 0:
            network.add(_SOURCE, index[choice], -cost)  # what is lost by not choosing it
        elif cost > 0:
            network.add(index[choice], _SINK, cost)
    for first, second, cost in pairs:
        network.add(index[first], index[second], cost)
    reached = network.cut()
    return frozenset(choice for choice, number in index.items() if reached[number] >= 0)


class _Network:
    """A flow network; edge 2 k + 1 is the reverse of edge 2 k."""

    def __init__(self, size: int) -> None:
        self._edges: list[list[int]] = [[] for _ in range(size)]
        self._to: list[int] = []
        self._room: list[float] = []

    def add(self, start: int, end: int, capacity: float) -> None:
        for source, target, room in ((start, end, capacity), (end, start, 0.0)):
            self._edges[source].append(len(self._to))
            self._to.append(target)
            self._room.append(room)

    def cut(self) -> np.ndarray:
        """Push the largest flow; return the distance of each node from the source in what is left, -1 if it is cut."""
        while True:
            level = self._levels()
            if level[_SINK] < 0:
                return np.array(level)
            following = [0] * len(self._edges)
            while self._augment(level, following):
                pass

    def _levels(self) -> list[int]:
        level = [-1] * len(self._edges)
        level[_SOURCE] = 0
        queue = [_SOURCE]
        for node in queue:
            for edge in self._edges[node]:
                if self._room[edge] > _NOTHING and level[self._to[edge]] < 0:
                    level[self._to[edge]] = level[node] + 1
                    queue.append(self._to[edge])
        return level

    def _augment(self, level: list[int], following: list[int]) -> bool:
        """Push flow along one shortest path; whether there was one. `following` skips edges that lead nowhere."""
        path: list[int] = []
        node = _SOURCE
        while node != _SINK:
            edges = self._edges[node]
            while following[node] < len(edges):
                edge = edges[following[node]]
                if self._room[edge] > _NOTHING and level[self._to[edge]] == level[node] + 1:
                    break
                following[node] += 1
            else:
                if not path:
                    return False
                node = self._to[path.pop() ^ 1]
                following[node] += 1
                continue
            path.append(edge)
            node = self._to[edge]
        flow = min(self._room[edge] for edge in path)
        for edge in path:
            self._room[edge] -= flow
            self._room[edge ^ 1] += flow
        return True
