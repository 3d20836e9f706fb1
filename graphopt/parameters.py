"""How many parameters a stored weight stands for: what its bytes are decoded to counts, not the bytes.

Packed models hold codes of a few bits, several to a byte, and nodes that decode them when the model is opened. The
nodes that compute read the same weights as before, so the model has the same parameters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.ir.graph import bodies, payload, payload_bytes, walk_nodes
from graphopt.macs import ShapeOf

_PACKED_INPUT = {"MatMulNBits": 1, "GatherBlockQuantized": 0}  # of ONNX Runtime: they read codes and decode inside


class Parameters:
    """Counts the parameters of weights, each as what it is decoded to.

    A weight counts as its elements, unless a node that computes reads a tensor that is made from it and other constants
    alone. If there are bytes among these, the tensor has no fewer elements than they, and they have a bit or more for
    each, then they are codes: they count as the tensor's elements, and the scales and tables beside them as none. What
    is made from less is a formula, such as an Expand.

    Args:
        graphs: The main graph and the functions.
        shape_of: Shapes of tensors.
    """

    def __init__(self, graphs: Iterable[gs.Graph], shape_of: ShapeOf) -> None:
        self._shape_of = shape_of
        self._sources: dict[int, dict[int, gs.Constant]] = {}  # by computed tensor
        self._decoded: dict[int, _Decoded] = {}  # by tensor that is read
        self._counts: dict[int, int] = {}  # by constant; the others count as their elements
        for graph in graphs:
            for node in walk_nodes(graph):
                self._look(node)
        uses = Counter(key for found in self._decoded.values() for key in found.sources)
        for found in self._decoded.values():
            codes = min(found.codes, key=lambda held: (uses[id(held)], -payload_bytes(held)))  # tables are shared
            self._note(codes, found.elements)
            for held in found.sources.values():
                self._note(held, 0)

    def count(self, constant: gs.Constant) -> int:
        """Return how many parameters a stored weight stands for."""
        return self._counts.get(id(constant), _elements(constant))

    def _look(self, node: gs.Node) -> None:
        read = [tensor for tensor in node.inputs if not tensor.is_empty()]
        known = [self._from(tensor) for tensor in read]
        if known and None not in known and not bodies(node):
            sources = {key: held for found in known if found is not None for key, held in found.items()}
            self._sources.update((id(tensor), sources) for tensor in node.outputs)
            return
        for index, tensor in enumerate(read):
            held = stored_constant(tensor)
            if held is not None:
                packed = _PACKED_INPUT.get(node.op) == index and _is_bytes(held)
                self._note(held, _elements(held) * (8 // int(node.attrs.get("bits", 4)) if packed else 1))
            elif id(tensor) in self._sources:
                self._note_decoded(tensor, self._sources[id(tensor)])

    def _from(self, tensor: gs.Tensor) -> dict[int, gs.Constant] | None:
        """Return the constants that a tensor is computed from; None if from anything else too."""
        held = stored_constant(tensor)
        return {id(held): held} if held is not None else self._sources.get(id(tensor))

    def _note_decoded(self, tensor: gs.Tensor, sources: dict[int, gs.Constant]) -> None:
        shape = self._shape_of(tensor)
        elements = 0 if shape is None else math.prod(shape)
        codes = [held for held in sources.values() if _is_bytes(held) and _elements(held) <= elements]
        if codes and elements <= 8 * sum(map(payload_bytes, codes)):
            self._decoded[id(tensor)] = _Decoded(elements, codes, sources)

    def _note(self, constant: gs.Constant, count: int) -> None:
        self._counts[id(constant)] = max(self._counts.get(id(constant), 0), count)


@dataclass(frozen=True, eq=False)
class _Decoded:
    """A tensor that is made from codes: its elements, what may be the codes, and all constants it is made from."""

    elements: int
    codes: list[gs.Constant]
    sources: dict[int, gs.Constant]


def stored_constant(tensor: gs.Tensor) -> gs.Constant | None:
    """Return the constant that a tensor is, or that a Constant node makes it from."""
    if isinstance(tensor, gs.Constant):
        return tensor
    held = tensor.inputs[0].attrs.get("value") if tensor.inputs and tensor.inputs[0].op == "Constant" else None
    return held if isinstance(held, gs.Constant) else None


def _elements(constant: gs.Constant) -> int:
    return math.prod(payload(constant).shape)


def _is_bytes(constant: gs.Constant) -> bool:
    dtype = payload(constant).dtype
    return dtype.kind in "iu" and dtype.itemsize == 1
