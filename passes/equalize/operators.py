"""Rules by operator: which constants make the channels of a tensor, which read them, and what hands them on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.equalize import moves
from graphopt.passes.equalize.bounds import clip_range
from graphopt.passes.equalize.ends import End, along, beside, in_groups
from graphopt.passes.equalize.roles import Axes, Known, Roles, is_static, rank_of, sizes_of, spans


def roles(node: gs.Node, known: Known) -> Roles:
    """Return what a node does with channels."""
    rule = _RULES.get(node.op) if node.domain in (None, "", "ai.onnx") else None
    if rule is None or not node.outputs or not node.inputs or rank_of(node.outputs[0]) is None:
        return Roles()
    return rule(node, known)


def _conv(node: gs.Node, _: Known) -> Roles:
    weight, bias = _weight(node), _optional(node, 2)
    if weight is None or bias is False:
        return Roles()
    outer, inner = along(weight, 0), in_groups(weight, int(node.attrs.get("group", 1)))
    maker, reader = (outer, inner) if node.op == "Conv" else (inner, outer)
    return _layer(node, (1,), maker, reader, bias)


def _gemm(node: gs.Node, _: Known) -> Roles:
    weight, bias = _weight(node), _optional(node, 2)
    if weight is None or bias is False or node.attrs.get("transA", 0):
        return Roles()
    rows = 0 if node.attrs.get("transB", 0) else 1
    return _layer(node, (1,), along(weight, rows), along(weight, 1 - rows), bias)


def _matmul(node: gs.Node, known: Known) -> Roles:
    first, second = node.inputs
    weight = _weight(node)
    if weight is not None:
        rank = rank_of(node.outputs[0])
        usable = len(weight.shape) == 2 and rank is not None and rank >= 2
        return _layer(node, (rank - 1,), along(weight, 1), along(weight, 0), None) if usable and rank else Roles()
    axes = known(second)
    # Rows are mixed, columns are not: what a column was scaled by, it still is.
    shape, found = second.shape, node.outputs[0].shape
    if not axes or len(shape) != len(found) or axes[-1] != len(shape) - 1 or len(shape) - 2 in axes:
        return Roles()
    same = all(shape[axis] == found[axis] for axis in axes) and not known(first)
    return Roles(hands_on=[(second, axes)]) if same else Roles()


def _layer(node: gs.Node, axes: Axes, maker: End, reader: End, bias: gs.Constant | bool | None) -> Roles:
    """Return the roles of a linear layer, which reads channels and makes others on the same axis."""
    makers = [maker]
    if isinstance(bias, gs.Constant):
        width = maker.channels
        follower = along(bias, -1, is_bias=True) if bias.shape else None
        if follower is None or follower.channels != width or int(np.prod(bias.shape)) != width:
            return Roles(reads=[(node.inputs[0], axes, reader)])
        makers.append(follower)
    return Roles([(node.outputs[0], axes, tuple(makers))], [(node.inputs[0], axes, reader)])


def _norm(node: gs.Node, _: Known) -> Roles:
    """LayerNormalization, RMSNormalization, InstanceNormalization, BatchNormalization: scale and bias make channels."""
    rank = rank_of(node.outputs[0])
    scale, bias = node.inputs[1], _optional(node, 2)
    last = node.op in ("LayerNormalization", "RMSNormalization")
    if not isinstance(scale, gs.Constant) or bias is False or len(scale.shape) != 1 or not rank:
        return Roles()
    if last and int(node.attrs.get("axis", -1)) not in (-1, rank - 1):
        return Roles()
    parts = [along(scale, 0)]
    if isinstance(bias, gs.Constant):
        parts.append(along(bias, 0, is_bias=True))
    return Roles(makes=[(node.outputs[0], (rank - 1 if last else 1,), tuple(parts))])


def _plain(node: gs.Node, known: Known) -> Roles:
    """Operators with f(c x) = c f(x) for positive c, element by element or within a channel."""
    axes = known(node.inputs[0])
    return Roles(hands_on=[(node.inputs[0], axes)]) if axes else Roles()


def _mul(node: gs.Node, known: Known) -> Roles:
    """A constant with a factor a channel is a layer of its own; a product is scaled as either of its operands is."""
    constant, tensor = _constant_operand(node)
    shape = node.outputs[0].shape
    if constant is not None and np.dtype(constant.dtype).kind != "f":
        return Roles()
    if constant is None or tensor is None:
        choices = [item for item in node.inputs if known(item) and spans(item, known(item), shape)]
        return Roles(hands_on=[(choices[0], known(choices[0]))]) if choices else Roles()
    axes = known(tensor) or (len(shape) - 1,)
    end = beside(constant, sizes_of(shape), axes, is_bias=False) if is_static(shape, axes) else None
    if end is None or node.op == "Div":
        single = int(np.prod(constant.shape)) == 1 or end is not None
        handed = node.op == "Mul" or node.inputs[0] is tensor
        return _plain_of(tensor, known) if single and handed and len(tensor.shape or ()) == len(shape) else Roles()
    reads = [(tensor, axes, end)] if known(tensor) and len(tensor.shape or ()) == len(shape) else []
    return Roles([(node.outputs[0], axes, (end,))], reads)


def _plain_of(tensor: gs.Tensor, known: Known) -> Roles:
    return Roles(hands_on=[(tensor, known(tensor))]) if known(tensor) else Roles()


def _add(node: gs.Node, known: Known) -> Roles:
    """All summands must be scaled alike; a constant can follow if it has a value for each channel."""
    constant, tensor = _constant_operand(node)
    shape = node.outputs[0].shape
    operands = [tensor] if constant is not None else list(node.inputs)
    if any(item is None or not known(item) or not spans(item, known(item), shape) for item in operands):
        return Roles()
    axes = known(operands[0])
    if any(known(item) != axes for item in operands):
        return Roles()
    found = Roles(hands_on=[(item, axes) for item in operands])
    if constant is not None:
        end = beside(constant, sizes_of(shape), axes, is_bias=True)
        if end is None:
            return Roles()
        found.makes.append((node.outputs[0], axes, (end,)))
    return found


def _clip(node: gs.Node, known: Known) -> Roles:
    """From zero on: ReLU, for channels that never reach the upper end."""
    ends, found = clip_range(node), _plain(node, known)
    if not found.hands_on or ends is None or ends[0] not in (0.0, -np.inf) or ends[1] <= 0:
        return Roles()
    found.ceiling = ends[1]
    return found


def _dropout(node: gs.Node, known: Known) -> Roles:
    return _plain(node, known) if len(node.inputs) < 3 else Roles()


def _pool(node: gs.Node, known: Known) -> Roles:
    return _plain(node, known) if len(node.outputs) == 1 and known(node.inputs[0]) == (1,) else Roles()


def _prelu(node: gs.Node, known: Known) -> Roles:
    return _plain(node, known) if isinstance(node.inputs[1], gs.Constant) else Roles()


def _weight(node: gs.Node) -> gs.Constant | None:
    weight = node.inputs[1]
    floats = isinstance(weight, gs.Constant) and np.dtype(weight.dtype).kind == "f" and 0 not in weight.shape
    return weight if floats and not isinstance(node.inputs[0], gs.Constant) else None


def _optional(node: gs.Node, index: int) -> gs.Constant | bool | None:
    """Return a constant input, None if it is left out, and False if it is no constant."""
    if len(node.inputs) <= index or node.inputs[index].is_empty():
        return None
    return node.inputs[index] if isinstance(node.inputs[index], gs.Constant) else False


def _constant_operand(node: gs.Node) -> tuple[gs.Constant | None, gs.Tensor | None]:
    first, second = node.inputs
    if isinstance(second, gs.Constant):
        return second, None if isinstance(first, gs.Constant) else first
    return (first, second) if isinstance(first, gs.Constant) else (None, None)


_RULES: dict[str, Callable[[gs.Node, Known], Roles]] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    "Gemm": _gemm,
    "MatMul": _matmul,
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "InstanceNormalization", "BatchNormalization"), _norm),
    **dict.fromkeys(("Relu", "LeakyRelu", "Identity", "Neg", "Abs"), _plain),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), _pool),
    "Clip": _clip,
    "Dropout": _dropout,
    "PRelu": _prelu,
    **dict.fromkeys(("Mul", "Div"), _mul),
    **dict.fromkeys(("Add", "Sub"), _add),
    "Transpose": moves.transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze"), moves.reshape),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), moves.reduce),
}
