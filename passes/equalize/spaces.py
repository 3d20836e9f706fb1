"""Which tensors must be scaled alike, and what makes and reads their channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.base import Skip
from graphopt.ir.graph import bodies, walk_graphs
from graphopt.model import Model
from graphopt.passes.equalize.bounds import channel_bounds
from graphopt.passes.equalize.ends import End
from graphopt.passes.equalize.operators import roles
from graphopt.passes.equalize.roles import Axes, Roles, counted


@dataclass(eq=False)
class Space:
    """Tensors whose channels are scaled together: a residual stream, or a tensor and what ReLU makes of it.

    Attributes:
        name: Of its first tensor.
        channels: How many there are.
        place: Of its first tensor in the order of the graph.
        makers: What is divided by the factors.
        readers: What is multiplied by them.
        read: The tensors that the readers look at, with the axes of their channels.
        room: Part of a ceiling (of Clip) that each channel may reach, [channels]: scaled by its factor it must stay
            within 1. More than 1, or infinity, if the ceiling may act: that channel keeps its scale. 0 without ceiling.
        fault: Why it cannot be scaled, or an empty text.
    """

    name: str
    channels: int
    place: int
    makers: list[End] = field(default_factory=list)
    readers: list[End] = field(default_factory=list)
    read: dict[int, tuple[gs.Tensor, Axes]] = field(default_factory=dict)
    room: np.ndarray = field(init=False)
    fault: str = ""

    def __post_init__(self) -> None:
        """Start without a ceiling."""
        self.room = np.zeros(self.channels)

    @property
    def is_scaled(self) -> bool:
        """Whether only a factor a channel makes it, as behind a normalization, and no weight that mixes channels."""
        return all(int(np.prod(end.shape)) == self.channels for end in self.makers)

    def absorb(self, other: Space) -> None:
        """Take over all that another space has."""
        self.makers += other.makers
        self.readers += other.readers
        self.read |= other.read
        self.fault = self.fault or other.fault
        if self.channels != other.channels:
            self.fault = self.fault or f"it has {self.channels} channels here and {other.channels} there"
            return
        self.room = np.maximum(self.room, other.room)


def find_spaces(model: Model) -> tuple[list[Space], list[Skip]]:
    """Return what can be equalized in the main graph, front to back, and why the rest of what is read cannot."""
    finder = _Finder(model)
    spaces = list(finder.spaces())
    for space in spaces:
        space.fault = space.fault or _shared(space)
    useful = [space for space in spaces if space.readers]
    skipped = [Skip(space.name, space.fault) for space in useful if space.fault]
    return [space for space in useful if not space.fault], skipped


class _Finder:
    """Walks a graph in its order and puts tensors into spaces."""

    def __init__(self, model: Model) -> None:
        self._graph = model.graph
        self._axes: dict[int, Axes] = {}
        self._tensors: list[gs.Tensor] = []
        self._bounds = channel_bounds(model.graph)
        self._parent: dict[int, int] = {}  # by id of a tensor: one of the same space, itself for the root
        self._spaces: dict[int, Space] = {}  # by id of the root
        self._fixed = {id(tensor) for tensor in model.graph.outputs}
        for scope in walk_graphs(model.graph):
            if scope is not model.graph:
                self._fixed |= {id(tensor) for node in scope.nodes for tensor in node.inputs}
                self._fixed |= {id(tensor) for tensor in scope.outputs}

    def spaces(self) -> Iterator[Space]:
        """Yield all spaces, also those with faults."""
        for node in self._graph.nodes:
            self._visit(node, Roles() if bodies(node) else roles(node, self._known))
        for tensor in self._tensors:
            if id(tensor) in self._fixed:
                self._block(tensor, "it is a graph output, or a body reads it")
        yield from self._spaces.values()

    def _visit(self, node: gs.Node, found: Roles) -> None:
        mentioned = {id(tensor) for tensor, *_ in (*found.reads, *found.hands_on)}
        for tensor in node.inputs:
            if id(tensor) in self._axes and id(tensor) not in mentioned:
                self._block(tensor, f"{node.op} reads it, which does not allow for a factor a channel")
        for tensor, axes, end in found.reads:
            if id(tensor) in self._axes:
                self._read(tensor, axes, end)
        for output, axes, makers in found.makes:
            self._enter(output, axes, makers)
        for tensor, axes in found.hands_on:
            self._enter(node.outputs[0], axes, ())
            self._join(tensor, node.outputs[0])
        if found.ceiling < np.inf:
            self._limit(node.inputs[0], found.ceiling)

    def _known(self, tensor: gs.Tensor) -> Axes:
        return self._axes[id(tensor)] if id(tensor) in self._axes and not self._space(tensor).fault else ()

    def _enter(self, tensor: gs.Tensor, axes: Axes, makers: tuple[End, ...]) -> None:
        """Note that constants make the channels of a tensor."""
        if id(tensor) not in self._axes:
            self._axes[id(tensor)] = axes
            self._tensors.append(tensor)
            self._parent[id(tensor)] = id(tensor)
            sizes = [tensor.shape[axis] for axis in axes]
            static = all(isinstance(size, int) for size in sizes)
            self._spaces[id(tensor)] = Space(tensor.name, int(np.prod(sizes)) if static else 0, len(self._tensors))
            if not static:
                self._block(tensor, "its number of channels is not known")
        space = self._space(tensor)
        space.makers += makers
        if any(end.channels != space.channels for end in makers):
            self._block(tensor, "its channels are not those of the weight")

    def _read(self, tensor: gs.Tensor, axes: Axes, end: End) -> None:
        space = self._space(tensor)
        space.readers.append(end)
        space.read[id(tensor)] = tensor, self._axes[id(tensor)]
        if end.channels != space.channels or counted(tensor, self._axes[id(tensor)]) != counted(tensor, axes):
            self._block(tensor, "its channels are not those that the weight reads")

    def _join(self, first: gs.Tensor, second: gs.Tensor) -> None:
        root, other = self._root(id(first)), self._root(id(second))
        if self._spaces[root].place > self._spaces[other].place:
            root, other = other, root
        if root != other:
            self._parent[other] = root
            self._spaces[root].absorb(self._spaces.pop(other))

    def _limit(self, tensor: gs.Tensor, ceiling: float) -> None:
        """Note that no channel may reach a value, whatever it is scaled by."""
        space, known = self._space(tensor), self._bounds.get(id(tensor))
        if space.fault:
            return
        reached = np.full(space.channels, np.inf)
        if known is not None and self._axes[id(tensor)] == (1,):
            reached = np.maximum(known[1], 0) / ceiling
        if (reached > 1).all():
            self._block(tensor, "Clip reads it, which may act on every channel")
        else:
            space.room = np.maximum(space.room, reached)

    def _block(self, tensor: gs.Tensor, reason: str) -> None:
        space = self._space(tensor)
        space.fault = space.fault or reason

    def _space(self, tensor: gs.Tensor) -> Space:
        return self._spaces[self._root(id(tensor))]

    def _root(self, key: int) -> int:
        while self._parent[key] != key:
            self._parent[key] = self._parent[self._parent[key]]
            key = self._parent[key]
        return key


def _shared(space: Space) -> str:
    """Return which constant something else uses too, or an empty text."""
    for end in (*space.makers, *space.readers):
        if len(end.constant.outputs) != 1 or sum(item is end.constant for item in end.constant.outputs[0].inputs) != 1:
            return f"something else uses {end.constant.name} too"
    return ""
