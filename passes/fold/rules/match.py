"""What rules that recognise a written-out operator have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Node
from graphopt.passes.fold.rules.rule import Outcome
from graphopt.passes.fold.workbench import Workbench, is_standard


@dataclass
class Product:
    """A product of several factors, however it is written.

    Attributes:
        scale: Product of the constant factors.
        factors: The other factors; a power counts as often as its exponent says.
        nodes: The nodes that make it, the last one first.
    """

    scale: float = 1.0
    factors: list[gs.Tensor] = field(default_factory=list)
    nodes: list[gs.Node] = field(default_factory=list)

    def count(self, tensor: gs.Tensor) -> int:
        """Return how often the tensor is a factor."""
        return sum(factor is tensor for factor in self.factors)


def product(node: gs.Node | None, bench: Workbench) -> Product:
    """Return the product that ends at a node, followed through multiplications that nobody else reads.

    Division by a constant and powers with a small whole exponent belong to it.
    """
    found = Product()
    if node is not None:
        _collect(node, found, bench)
    return found


def _collect(node: gs.Node, found: Product, bench: Workbench) -> None:
    found.nodes.append(node)
    if node.op == "Pow":
        found.factors += [node.inputs[0]] * (_exponent(node, bench) or 1)
        return
    for index, tensor in enumerate(node.inputs):
        value = scalar(tensor, bench)
        producer = bench.producer(tensor)
        if value is not None:
            found.scale *= 1.0 / value if node.op == "Div" and index == 1 else value
        elif producer is not None and _multiplies(producer, bench) and bench.only_reader(node, tensor):
            _collect(producer, found, bench)
        else:
            found.factors.append(tensor)


def _multiplies(node: gs.Node, bench: Workbench) -> bool:
    """Return whether the node is a product as far as `product` follows it."""
    if not is_standard(node):
        return False
    if node.op == "Pow":
        return _exponent(node, bench) is not None
    return node.op == "Mul" or (node.op == "Div" and bool(scalar(node.inputs[1], bench)))


def _exponent(node: gs.Node, bench: Workbench) -> int | None:
    value = scalar(node.inputs[1], bench)
    return int(value) if value in (2.0, 3.0) else None


def scalar(tensor: gs.Tensor, bench: Workbench) -> float | None:
    """Return the number that a float constant of one element holds."""
    values = bench.small_array(tensor)
    if values is None or values.size != 1 or values.dtype.kind not in "fV":
        return None
    return float(values.astype(np.float64).reshape(()))


def same(value: float | None, wanted: float, tensor: gs.Tensor, bench: Workbench) -> bool:
    """Return whether a number is the wanted one as exactly as the tensor's type can tell."""
    dtype = bench.types[tensor].dtype
    if value is None or dtype is None or dtype.kind != "f":
        return False
    return abs(value - wanted) <= 2 * float(np.finfo(dtype).eps) * abs(wanted)


def made_by(tensor: gs.Tensor | None, op: str, bench: Workbench) -> gs.Node | None:
    """Return the standard operator of this name that makes the tensor, or None."""
    producer = None if tensor is None else bench.producer(tensor)
    return producer if producer is not None and producer.op == op and is_standard(producer) else None


def operand(node: gs.Node | None, op: str, bench: Workbench) -> tuple[gs.Node | None, gs.Tensor | None]:
    """Return the operand of a two-operand node that `op` makes, and the other operand."""
    if node is None or len(node.inputs) != 2:
        return None, None
    for index in (0, 1):
        made = made_by(node.inputs[index], op, bench)
        if made is not None:
            return made, node.inputs[1 - index]
    return None, None


def square_of(tensor: gs.Tensor, base: gs.Tensor, bench: Workbench) -> gs.Node | None:
    """Return the node that makes the tensor as the square of another one, or None."""
    power = made_by(tensor, "Pow", bench)
    if power is not None and power.inputs[0] is base:
        exponent = bench.small_array(power.inputs[1])
        return power if exponent is not None and exponent.size == 1 and exponent.reshape(()) == 2 else None
    product = made_by(tensor, "Mul", bench)
    return product if product is not None and all(factor is base for factor in product.inputs) else None


def over_last_axis(node: gs.Node, bench: Workbench) -> bool:
    """Return whether a reduction goes over the last axis, and keeps it."""
    shape = bench.types[node.inputs[0]].shape
    given = node.attrs.get("axes")
    axes = given if isinstance(given, list) else bench.ints(node.inputs[1]) if len(node.inputs) > 1 else None
    if shape is None or axes is None or len(axes) != 1 or not node.attrs.get("keepdims", 1):
        return False
    return axes[0] % len(shape) == len(shape) - 1


def shifted(node: gs.Node | None, bench: Workbench) -> tuple[gs.Tensor | None, float | None]:
    """Return x and c of ``x + c`` with a constant number c."""
    if node is None or node.op != "Add" or len(node.inputs) != 2:
        return None, None
    for index in (0, 1):
        value = scalar(node.inputs[index], bench)
        if value is not None:
            return node.inputs[1 - index], value
    return None, None


def reads_only_inside(nodes: Sequence[gs.Node], bench: Workbench) -> bool:
    """Return whether all but the first of these nodes make only what the others read."""
    ids = {id(node) for node in nodes}
    inner = [tensor for node in nodes[1:] for tensor in node.outputs]
    graph = bench.graph_of(nodes[0])
    return all(bench.graph_of(node) is graph for node in nodes) and all(
        not bench.is_result(tensor) and all(id(user) in ids for user in tensor.outputs) for tensor in inner
    )


def fuse(nodes: Sequence[gs.Node], merged: gs.Node, bench: Workbench) -> None:
    """Put one node in the place of several; it makes what the first of them made."""
    output = nodes[0].outputs[0]
    bench.add(merged, nodes[0])
    for node in nodes:
        bench.remove(node)
    merged.outputs.append(output)
    bench.touch([merged, *output.outputs])


def fuse_normalization(
    op: str, nodes: Sequence[gs.Node], inputs: Sequence[gs.Tensor], epsilon: float, since: int, bench: Workbench
) -> Outcome:
    """Put a normalization over the last axis in the place of the nodes that compute it.

    Args:
        op: Its operator.
        nodes: From the last to the first.
        inputs: What is normalized, then gamma and so on.
        epsilon: Added to the mean square.
        since: First operator set that has it.
        bench: The graph.
    """
    if bench.types[inputs[0]].dtype != np.float32:
        return "it is not float32"
    if not reads_only_inside(nodes, bench):
        return "what is computed in between is used elsewhere too"
    reason = bench.raise_opset(nodes, since)
    if reason:
        return reason
    fuse(nodes, Node(op, nodes[0].name, {"axis": -1, "epsilon": epsilon}, list(inputs), []), bench)
    return True


def keeps_rank(node: gs.Node, source: gs.Tensor, bench: Workbench) -> bool:
    """Return whether the node's output has the rank of the source, so that no constant of one element enlarges it."""
    before, after = bench.types[source].shape, bench.types[node.outputs[0]].shape
    return before is not None and after is not None and len(before) == len(after)
