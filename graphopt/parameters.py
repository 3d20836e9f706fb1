"""How many parameters a stored weight stands for: what its bytes are decoded to counts, not the bytes.

Packed models hold codes of a few bits, several to a byte, and nodes that decode them when the model is opened. The
nodes that compute read the same weights as before, so the model has the same parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx_graphsurgeon as gs

from graphopt.ir.graph import bodies, payload, payload_bytes, walk_nodes
from graphopt.macs import ShapeOf

_PACKED_INPUT = {"MatMulNBits": 1, "GatherBlockQuantized": 0}  # of ONNX Runtime: they read codes and decode inside


class Parameters:
    """Counts the parameters of weights, each as what it is decoded to.

    A weight counts as its elements. Bytes are codes where a node that computes reads a tensor that is made from them
    and other constants alone, with more elements than all of these, but at least a bit of the codes for each: the
    largest of the codes also counts what the tensor has more. What is made from less is a formula, such as an Expand.

    Args:
        graphs: The main graph and the functions.
        shape_of: Shapes of tensors.
    """

    def __init__(self, graphs: Iterable[gs.Graph], shape_of: ShapeOf) -> None:
        self._shape_of = shape_of
        self._more: dict[int, int] = {}
        self._sources: dict[int, dict[int, gs.Constant]] = {}  # by computed tensor
        for graph in graphs:
            for node in walk_nodes(graph):
                self._look(node)

    def count(self, constant: gs.Constant) -> int:
        """Return how many parameters a stored weight stands for."""
        return _elements(constant) + self._more.get(id(constant), 0)

    def _look(self, node: gs.Node) -> None:
        packed = _PACKED_INPUT.get(node.op)
        if packed is not None and packed < len(node.inputs):
            self._note_packed(node, stored_constant(node.inputs[packed]))
        read = [tensor for tensor in node.inputs if not tensor.is_empty()]
        known = [self._from(tensor) for tensor in read]
        if known and None not in known and not bodies(node):
            sources = {key: held for found in known if found is not None for key, held in found.items()}
            self._sources.update((id(tensor), sources) for tensor in node.outputs)
            return
        for tensor in read:
            if id(tensor) in self._sources:
                self._note_decoded(tensor, list(self._sources[id(tensor)].values()))

    def _from(self, tensor: gs.Tensor) -> dict[int, gs.Constant] | None:
        """Return the constants that a tensor is computed from; None if from anything else too."""
        held = stored_constant(tensor)
        return {id(held): held} if held is not None else self._sources.get(id(tensor))

    def _note_packed(self, node: gs.Node, codes: gs.Constant | None) -> None:
        if codes is not None and _is_bytes(codes):
            self._note(codes, _elements(codes) * (8 // int(node.attrs.get("bits", 4)) - 1))

    def _note_decoded(self, tensor: gs.Tensor, sources: list[gs.Constant]) -> None:
        codes = [constant for constant in sources if _is_bytes(constant)]
        shape = self._shape_of(tensor)
        if not codes or shape is None or math.prod(shape) > 8 * sum(map(payload_bytes, codes)):
            return
        self._note(max(codes, key=payload_bytes), math.prod(shape) - sum(map(_elements, sources)))

    def _note(self, codes: gs.Constant, more: int) -> None:
        self._more[id(codes)] = max(self._more.get(id(codes), 0), more)


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
