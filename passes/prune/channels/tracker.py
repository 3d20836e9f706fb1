"""What is known while channels are followed through a graph.

An *atom* is one index of one axis of one tensor. Atoms that must go together are tied; atoms that must stay are locked.
Every tensor has at most one followed axis, its *layout*: the atoms along it, in order. Where two axes of a tensor would
have to be followed, one of them is locked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.base import Skip
from graphopt.ir.graph import bodies

Role = Literal["gives", "takes", "along"]
"""A weight gives channels (its output axis), takes them (the axis it sums over), or goes along with them (a bias)."""
Write = Callable[[gs.Node, int], None]


@dataclass(frozen=True, eq=False)
class Layout:
    """The followed axis of a tensor.

    Attributes:
        axis: Counted from the front.
        atoms: Atom of each index, int64 [size]; one may occur several times, as the channels of a flattened image do.
    """

    axis: int
    atoms: np.ndarray


@dataclass(frozen=True, eq=False)
class Use:
    """An axis of a constant that has to be cut along.

    Attributes:
        node: The node that reads the constant.
        index: As which input.
        axis: Axis of the constant, counted from the front.
        atoms: Atom of each index of that axis.
        role: What the constant does with the channels.
    """

    node: gs.Node
    index: int
    axis: int
    atoms: np.ndarray
    role: Role


@dataclass(frozen=True, eq=False)
class Count:
    """A number in a node that counts channels: an attribute, or an element of a constant.

    Attributes:
        node: The node.
        atoms: What is counted.
        write: Puts the number of kept atoms in its place.
    """

    node: gs.Node
    atoms: np.ndarray
    write: Write


@dataclass(frozen=True, eq=False)
class Work:
    """A node whose multiply-accumulate operations depend on channels.

    Attributes:
        node: The node.
        factors: Atoms of each axis that its work is proportional to.
    """

    node: gs.Node
    factors: tuple[np.ndarray, ...]


class Tracker:
    """Layouts, ties and locks, as the rules find them.

    Attributes:
        uses: Constants to cut.
        counts: Numbers to correct.
        works: Nodes with work.
        bent: Atoms that something treats one by one, other than by adding.
        skips: Where channels cannot be followed, and why.
    """

    def __init__(self, graph: gs.Graph, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._layouts: dict[int, Layout] = {}
        self._size = 0
        self._ties: list[tuple[np.ndarray, np.ndarray]] = []
        self._locked: list[np.ndarray] = []
        self._axes: dict[tuple[int, int], np.ndarray] = {}
        self.opset = int(graph.opset)
        self.uses: list[Use] = []
        self.counts: list[Count] = []
        self.works: list[Work] = []
        self.bent: list[np.ndarray] = []
        self.skips: list[Skip] = []

    def layout(self, tensor: gs.Tensor) -> Layout | None:
        """Return the followed axis of a tensor, if there is one."""
        return self._layouts.get(id(tensor))

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...] | None:
        """Return the shape of a tensor on the first sample, or None if it is unknown."""
        return tuple(tensor.shape) if isinstance(tensor, gs.Constant) else self._shapes.get(tensor.name)

    def fresh(self, count: int) -> np.ndarray:
        """Return new atoms that nothing ties, [count]."""
        atoms = np.arange(self._size, self._size + count)
        self._size += count
        return atoms

    def follow(self, tensor: gs.Tensor, axis: int, atoms: np.ndarray) -> None:
        """Say which atoms lie along an axis of a node's output."""
        self._layouts[id(tensor)] = Layout(axis, atoms)

    def tie(self, left: np.ndarray, right: np.ndarray) -> None:
        """Let atoms go together, pair by pair; shapes must broadcast."""
        left, right = np.broadcast_arrays(left, right)
        self._ties.append((left.ravel(), right.ravel()))

    def lock(self, atoms: np.ndarray, where: str, reason: str) -> None:
        """Let atoms stay, and report why."""
        self._locked.append(np.asarray(atoms))
        self.skips.append(Skip(where, reason))

    def stop(self, node: gs.Node, reason: str) -> None:
        """Let all channels that a node reads stay, and report why."""
        for tensor in node.inputs:
            layout = self.layout(tensor)
            if layout is not None:
                self.lock(layout.atoms, label(node), reason)

    def cut(self, node: gs.Node, index: int, axis: int, atoms: np.ndarray, role: Role = "along") -> None:
        """Register an axis of a node's input that goes with atoms; what is no constant keeps them.

        A constant that several nodes read along the same axis ties the channels of all of them.
        """
        if index >= len(node.inputs) or node.inputs[index].is_empty():
            return
        tensor = node.inputs[index]
        if not isinstance(tensor, gs.Constant):
            self.lock(atoms, label(node), f"its input '{tensor.name}' is no constant, so it cannot be cut")
            return
        axis %= max(len(tensor.shape), 1)
        known = self._axes.setdefault((id(tensor), axis), atoms)
        if known is not atoms:
            self.tie(known, atoms)
        self.uses.append(Use(node, index, axis, atoms, role))

    def count(self, node: gs.Node, atoms: np.ndarray, write: Write) -> None:
        """Register a number that counts atoms."""
        self.counts.append(Count(node, atoms, write))

    def work(self, node: gs.Node, *factors: np.ndarray | None) -> None:
        """Register on which channels the work of a node depends; None stands for an axis that is not followed."""
        self.works.append(Work(node, tuple(factor for factor in factors if factor is not None)))

    def classes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the class of each atom, numbered from 0 by first occurrence, and whether each class may go."""
        labels = _components(self._size, self._ties)
        _, label_of = np.unique(labels, return_inverse=True)
        free = np.ones(int(label_of.max(initial=-1)) + 1, bool)
        for atoms in self._locked:
            free[label_of[atoms]] = False
        return label_of, free


def label(node: gs.Node) -> str:
    """Return what to call a node in reports."""
    return str(node.name or next((tensor.name for tensor in node.outputs if tensor.name), node.op))


def captured(node: gs.Node) -> Iterator[gs.Tensor]:
    """Yield the tensors that the bodies of a node read or give, from wherever they come."""
    stack = bodies(node)
    while stack:
        body = stack.pop()
        yield from body.outputs
        for inner in body.nodes:
            yield from inner.inputs
            stack.extend(bodies(inner))


def _components(size: int, ties: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the smallest member of each atom's component, by passing labels along the ties until none changes."""
    labels = np.arange(size)
    if not ties:
        return labels
    left = np.concatenate([pair[0] for pair in ties])
    right = np.concatenate([pair[1] for pair in ties])
    while True:
        least = np.minimum(labels[left], labels[right])
        merged = labels.copy()
        np.minimum.at(merged, labels[left], least)
        np.minimum.at(merged, labels[right], least)
        np.minimum.at(merged, left, least)
        np.minimum.at(merged, right, least)
        merged = merged[merged]
        if np.array_equal(merged, labels):
            return labels
        labels = merged
