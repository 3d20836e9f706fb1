"""Which nodes can run in integers, and as what.

A unit is a node with everything that one integer kernel replaces: its weight and bias, and a ReLU or Clip behind it,
which the rounding to unsigned integers does by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.base import Skip
from graphopt.ir.graph import bodies, walk_graphs
from graphopt.model import Model
from graphopt.targets import Kernel, Target

_FLOAT32 = np.dtype(np.float32)
_FUSES_ADD = frozenset({"Conv", "Gemm", "MatMul"})
_WIDE = 16  # channels
QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


@dataclass(frozen=True, eq=False)
class Unit:
    """A node that can run in integers.

    Attributes:
        position: Place of the node in the main graph; copies of a model keep it.
        node: The node.
        kernel: The target's line for it.
        kind: What it is treated with when classes of nodes are tried: "conv", "depthwise", "matmul", "gemm",
            "attention", or the operator in lower case.
        activations: Positions of the inputs that become integers at run time.
        constants: Positions of constant inputs that are stored as unsigned integers (an Add with a constant).
        clamp: A Relu or Clip behind it that the integers make redundant.
        clamp_high: Upper bound of the clamp; infinity for a Relu.
    """

    position: int
    node: gs.Node
    kernel: Kernel
    kind: str
    activations: tuple[int, ...]
    constants: tuple[int, ...] = ()
    clamp: gs.Node | None = None
    clamp_high: float = field(default=float("inf"))

    @property
    def inputs(self) -> tuple[gs.Tensor, ...]:
        """The tensors that become integers at run time."""
        return tuple(self.node.inputs[index] for index in self.activations)

    @property
    def output(self) -> gs.Tensor:
        """The tensor that is stored in integers, if it is."""
        return (self.clamp or self.node).outputs[0]

    @property
    def weight(self) -> gs.Constant | None:
        """The weight, if it has one."""
        return None if self.kernel.weighted is None or self.kind == "attention" else self.node.inputs[1]

    @property
    def bias(self) -> gs.Constant | None:
        """The bias, if it has one."""
        has_bias = self.weight is not None and len(self.node.inputs) > 2 and not self.node.inputs[2].is_empty()
        return self.node.inputs[2] if has_bias else None

    @property
    def moves(self) -> bool:
        """Whether integers only move through it, so that input and output have the same parameters."""
        return self.kernel.form == "pass-through"

    @property
    def weight_axis(self) -> int:
        """Axis of the weight's outputs."""
        axis = self.kernel.weight_axis or 0
        return 1 - axis if self.node.attrs.get("transB", 0) else axis

    @property
    def name(self) -> str:
        """What the user knows it by."""
        return name_of(self.node)


def name_of(node: gs.Node) -> str:
    """Return the node's name, or its first output's where it has none."""
    return str(node.name or node.outputs[0].name)


def find_units(graph: gs.Graph, target: Target, opset: int) -> tuple[list[Unit], list[Skip]]:
    """Return the units of the main graph in graph order, and the nodes that look like ones but are not.

    Args:
        graph: Main graph with types filled in.
        target: Where it will run.
        opset: Version of the default domain.
    """
    read_inside = outputs_of_scopes(graph)
    units: list[Unit] = []
    skipped: list[Skip] = []
    for position, node in enumerate(graph.nodes):
        if node.domain not in (None, "", "ai.onnx"):
            continue
        kernel = target.kernel(node.op, "static", opset) or target.kernel(node.op, "pass-through", opset)
        found = _match(position, node, kernel) if kernel is not None else None
        if isinstance(found, str):
            skipped.append(Skip(name_of(node), found))
        elif found is not None:
            units.append(_with_clamp(found, read_inside) if target.convention.absorbs_clamps else found)
    return units, skipped


def units_in(model: Model, units: Iterable[Unit]) -> dict[int, Unit]:
    """Return the same units of a copy of their model, by position."""
    nodes = model.graph.nodes
    found = {}
    for unit in units:
        node = nodes[unit.position]
        clamp = None if unit.clamp is None else node.outputs[0].outputs[0]
        found[unit.position] = replace(unit, node=node, clamp=clamp)
    return found


def outputs_of_scopes(graph: gs.Graph) -> set[int]:
    """Return the ids of all tensors that the graph or one of its bodies hands out: more readers than nodes show."""
    return {id(tensor) for scope in walk_graphs(graph) for tensor in scope.outputs}


def _match(position: int, node: gs.Node, kernel: Kernel) -> Unit | str | None:
    """Return the node as a unit, or why it is none, or None where nobody would expect one."""
    if _is_quantized(node):
        return "it is quantized already"
    if kernel.weighted is not None:
        return _match_weighted(position, node, kernel)
    if kernel.form == "pass-through":
        return Unit(position, node, kernel, "move", (0,)) if _is_real(node.inputs[0]) else None
    inputs = range(len(node.inputs))
    moving = tuple(index for index in inputs if not isinstance(node.inputs[index], gs.Constant))
    fixed = tuple(index for index in inputs if isinstance(node.inputs[index], gs.Constant))
    if not moving or not all(_is_real(tensor) for tensor in node.inputs):
        return None
    if "skip-input" in kernel.conditions:
        moving, fixed = _skip_inputs(node, moving), ()
        if not moving:
            return None
    return Unit(position, node, kernel, node.op.lower(), moving, fixed)


def _skip_inputs(node: gs.Node, moving: tuple[int, ...]) -> tuple[int, ...]:
    """Return the inputs of an Add that do not come straight from what the Add is fused into: one of its producers.

    That is the convolution or product that nobody else reads, the later one where there are two.
    """
    makers = {index: node.inputs[index].inputs[0] for index in moving if node.inputs[index].inputs}
    alone = [index for index, maker in makers.items() if maker.op in _FUSES_ADD and len(maker.outputs[0].outputs) == 1]
    return tuple(index for index in moving if index != alone[-1]) if alone else ()


def _match_weighted(position: int, node: gs.Node, kernel: Kernel) -> Unit | str | None:
    data, weight = node.inputs[0], node.inputs[1]
    kind = node.op.lower()
    if not isinstance(weight, gs.Constant):
        attention = node.op == "MatMul" and "constant-weight" not in kernel.conditions
        if attention and _is_real(data) and _is_real(weight) and not isinstance(data, gs.Constant):
            return Unit(position, node, kernel, "attention", (0, 1))
        return "its weight is not stored in the file"
    if isinstance(data, gs.Constant):
        return "its first input is a constant"
    if np.dtype(weight.dtype) != _FLOAT32:
        return f"its weight is {np.dtype(weight.dtype).name}, not float32"
    if not _is_real(data):
        return "the type of its input is not known"
    if 0 in weight.shape:
        return "its weight is empty"
    if not np.isfinite(weight.values).all():
        return "its weight holds NaN or infinities"
    reason = _form_reason(node, weight)
    if reason:
        return reason
    if "wide-channels" in kernel.conditions and min(weight.shape[0], weight.shape[1]) < _WIDE:
        return f"it has fewer than {_WIDE} channels: integers are slower there"
    if node.op == "Conv" and int(node.attrs.get("group", 1)) > 1 and weight.shape[1] == 1:
        kind = "depthwise"
    return Unit(position, node, kernel, kind, (0,))


def _form_reason(node: gs.Node, weight: gs.Constant) -> str:
    """Return why the kernel does not take the node, or nothing."""
    if node.op == "MatMul":
        return "" if len(weight.shape) == 2 else "its weight is no matrix"
    if node.op == "Gemm" and (node.attrs.get("transA", 0) or float(node.attrs.get("alpha", 1.0)) != 1.0):
        return "it transposes or scales its input"
    if len(node.inputs) < 3 or node.inputs[2].is_empty():
        return ""
    bias = node.inputs[2]
    if not isinstance(bias, gs.Constant) or np.dtype(bias.dtype) != _FLOAT32:
        return "its bias is not a float32 constant"
    outputs = weight.shape[0] if node.op == "Conv" or node.attrs.get("transB", 0) else weight.shape[1]
    if int(np.prod(bias.shape)) != outputs or max(bias.shape, default=1) != outputs:
        return "its bias has another shape than its outputs"
    if float(node.attrs.get("beta", 1.0)) != 1.0:
        return "it scales its bias"
    return ""


def _is_quantized(node: gs.Node) -> bool:
    """Whether a neighbour is a quantizer that somebody put there."""
    before = any(producer.op in QUANTIZERS for tensor in node.inputs for producer in tensor.inputs)
    return before or any(reader.op in QUANTIZERS for tensor in node.outputs for reader in tensor.outputs)


def _is_real(tensor: gs.Tensor) -> bool:
    return not tensor.is_empty() and tensor.dtype is not None and np.dtype(tensor.dtype) == _FLOAT32


def _with_clamp(unit: Unit, read_inside: set[int]) -> Unit:
    """Take the Relu or Clip behind a unit into it, if nobody else sees what is in between."""
    output = unit.node.outputs[0]
    if unit.moves or len(output.outputs) != 1 or id(output) in read_inside:
        return unit
    clamp = output.outputs[0]
    bounds = clamp_bounds(clamp)
    if bounds is None or bounds[0] != 0.0 or bounds[1] <= 0.0 or bodies(clamp):
        return unit
    return Unit(unit.position, unit.node, unit.kernel, unit.kind, unit.activations, unit.constants, clamp, bounds[1])


def clamp_bounds(node: gs.Node) -> tuple[float, float] | None:
    """Return the constant bounds of a Relu or Clip, or None if it is neither."""
    if node.domain not in (None, "", "ai.onnx"):
        return None
    if node.op == "Relu":
        return 0.0, float("inf")
    if node.op != "Clip":
        return None
    low, high = float(node.attrs.get("min", -np.inf)), float(node.attrs.get("max", np.inf))
    for index in (1, 2):
        if len(node.inputs) > index and not node.inputs[index].is_empty():
            bound = node.inputs[index]
            if not isinstance(bound, gs.Constant):
                return None
            low, high = (float(bound.values), high) if index == 1 else (low, float(bound.values))
    return low, high
