"""Transpositions on both sides of elementwise operators meet."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Node
from graphopt.passes.fold.rules.merge_transposes import permutation
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.values import BROADCASTING
from graphopt.passes.fold.workbench import Workbench, is_standard
from graphopt.shapes import TensorType

_UNARY = frozenset(
    {"Abs", "Cast", "Ceil", "Clip", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
     "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
     "Softplus", "Softsign", "Sqrt", "Tanh"}
)  # fmt: skip
_ELEMENTWISE = BROADCASTING - {"PRelu"}
_MAX_NODES = 16


class LiftTranspose(Rule):
    """``Transpose(f(Transpose(x, p)), q) -> Transpose(f(x), p[q])`` for elementwise f, or several of them.

    Every operand of f is transposed by the same p, or a constant of one element, or one whose axes can be put in the
    order of x. Nobody else may read what is computed in between.
    """

    name = "lift-transpose"
    ops = frozenset({"Transpose"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Compute everything between the transpositions in the order that came before them."""
        outer, ahead = permutation(node, bench), bench.producer(node.inputs[0])
        if outer is None or ahead is None or ahead.op == "Transpose":
            return False
        region = _Region(bench, bench.graph_of(node))
        if not region.include(node.inputs[0]):
            return region.reason or False
        if not region.is_closed():
            return "what is computed between the transpositions is used elsewhere too"
        node.attrs["perm"] = [region.perm[axis] for axis in outer]
        bench.set_input(node, 0, region.rebuilt(node.inputs[0]))
        for gone in (*region.nodes, *region.transposes):
            bench.remove(gone)
        return True


@dataclass
class _Region:
    """What lies between a Transpose and those above it.

    Attributes:
        graph: Where all of it must be.
        perm: The permutation of those above; empty before one is found.
        nodes: Elementwise nodes, each after one of its readers.
        transposes: Those above.
        reads: How often each tensor is read in the region, by id.
        reason: Why there is no such region, where one was in sight.
    """

    bench: Workbench
    graph: gs.Graph
    perm: list[int] = field(default_factory=list)
    nodes: list[gs.Node] = field(default_factory=list)
    transposes: list[gs.Node] = field(default_factory=list)
    reads: Counter[int] = field(default_factory=Counter)
    reason: str = ""
    _made: dict[int, gs.Tensor] = field(default_factory=dict)

    def include(self, tensor: gs.Tensor) -> bool:
        """Take in what makes the tensor; return whether it can be computed in another order of axes."""
        self.reads[id(tensor)] += 1
        made = self.bench.producer(tensor)
        if made is None or not is_standard(made) or self.bench.graph_of(made) is not self.graph:
            return False
        if self.reads[id(tensor)] > 1:
            return True
        if made.op == "Transpose":
            return self._end_at(made)
        if made.op not in _UNARY | _ELEMENTWISE or len(made.outputs) != 1 or len(self.nodes) == _MAX_NODES:
            return False
        self.nodes.append(made)
        operands = _operands(made)
        computed = [operand for operand in operands if self.bench.constant(operand) is None]
        return bool(computed) and all(map(self.include, computed)) and all(map(self._turns, operands))

    def _end_at(self, transpose: gs.Node) -> bool:
        perm = permutation(transpose, self.bench)
        if perm is None or (self.perm and perm != self.perm):
            self.reason = "what is computed before it comes from different orders of axes"
            return False
        self.perm = perm
        self.transposes.append(transpose)
        return True

    def _turns(self, operand: gs.Tensor) -> bool:
        """Return whether an operand has all axes, or is a constant that can be put in the other order."""
        constant, rank = self.bench.constant(operand), len(self.perm)
        if constant is None:
            shape = self.bench.types[operand].shape
            return shape is not None and len(shape) == rank
        if len(constant.shape) > rank:
            return False
        return math.prod(constant.shape) == 1 or (
            self.bench.uses(operand) == 1 and self.bench.small_array(operand) is not None
        )

    def is_closed(self) -> bool:
        """Whether nobody else reads what is in the region."""
        inner = [node.outputs[0] for node in (*self.nodes, *self.transposes)]
        return all(self.bench.uses(tensor) == self.reads[id(tensor)] for tensor in inner)

    def rebuilt(self, tensor: gs.Tensor) -> gs.Tensor:
        """Return the tensor as it is before the transpositions, made by new nodes."""
        made = tensor.inputs[0]
        if made.op == "Transpose":
            source: gs.Tensor = made.inputs[0]
            return source
        if id(tensor) not in self._made:
            operands = _operands(made)
            inputs = [self._turned(operand, made) for operand in operands] + list(made.inputs[len(operands) :])
            output = self.bench.new_variable(tensor.name, self._before(self.bench.types[tensor]))
            self.bench.add(Node(made.op, made.name, dict(made.attrs), inputs, [output]), made)
            self._made[id(tensor)] = output
        return self._made[id(tensor)]

    def _turned(self, operand: gs.Tensor, reader: gs.Node) -> gs.Tensor:
        values = self.bench.small_array(operand)
        if values is None:
            return self.rebuilt(operand)
        if values.size == 1:
            return operand
        aligned = values.reshape((1,) * (len(self.perm) - values.ndim) + values.shape)
        turned = _without_leading_ones(aligned.transpose(np.argsort(self.perm)))
        return self.bench.new_constant("turned", turned, reader)

    def _before(self, known: TensorType) -> TensorType:
        """Return the type of a tensor before it is transposed."""
        if known.shape is None:
            return known
        sizes = dict(zip(self.perm, known.shape, strict=True))
        return TensorType(known.dtype, tuple(sizes[axis] for axis in range(len(self.perm))))


def _operands(node: gs.Node) -> list[gs.Tensor]:
    """Return the inputs of an elementwise node that have axes; what a Clip has beside them are numbers."""
    return list(node.inputs) if node.op in _ELEMENTWISE else list(node.inputs[:1])


def _without_leading_ones(values: np.ndarray) -> np.ndarray:
    """Return an operand of an elementwise operation without axes that broadcasting adds by itself."""
    leading = next((axis for axis, size in enumerate(values.shape) if size != 1), values.ndim - 1)
    return np.ascontiguousarray(values.reshape(values.shape[leading:]))
