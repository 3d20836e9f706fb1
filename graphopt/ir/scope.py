"""Names while a graph is read."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.ir.infos import make_variable

Infos = dict[str, onnx.ValueInfoProto]


class Scope(dict[str, gs.Tensor]):
    """Names defined in one graph, falling back to the names of the graphs around it."""

    def __init__(self, outer: Scope | None) -> None:
        super().__init__()
        self._outer = outer

    def local(self, name: str) -> gs.Tensor | None:
        """Return the tensor of this name in this graph itself."""
        return dict.get(self, name)

    def lookup(self, name: str) -> gs.Tensor | None:
        """Return the tensor visible under this name, or None."""
        found = dict.get(self, name)
        if found is None and self._outer is not None:
            return self._outer.lookup(name)
        return found

    def define(self, name: str, infos: Infos) -> gs.Tensor:
        """Add a run-time tensor to this graph."""
        tensor = self[name] = make_variable(name, infos.get(name))
        return tensor

    def define_outputs(self, nodes: Iterable[onnx.NodeProto], infos: Infos) -> None:
        """Define what the nodes produce before any is read: files with nodes out of order exist."""
        for name in (name for node in nodes for name in node.output if name):
            if name in self:
                raise ModelError(f"tensor '{name}' is defined more than once")
            self.define(name, infos)

    def find(self, name: str, infos: Infos) -> gs.Tensor:
        """Return the tensor visible under this name; one that nobody defines is left to the checker to refuse."""
        return self.lookup(name) or self.define(name, infos)
