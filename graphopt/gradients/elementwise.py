"""Gradients of what works element by element."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.gradients.tape import Tape

_CUBIC = 0.044715  # in the approximation of Gelu
Rule = Callable[[Tape, gs.Node, gs.Tensor], "list[gs.Tensor | None] | None"]
Slope = Callable[[Tape, gs.Node], "gs.Tensor | None"]


def addition(tape: Tape, node: gs.Node, gradient: gs.Tensor) -> list[gs.Tensor | None] | None:
    """``y = a + b`` or ``a - b``."""
    signs = [gradient, tape.op("Neg", gradient)] if node.op == "Sub" else [gradient] * len(node.inputs)
    return [tape.unbroadcast(sign, item, node.outputs[0]) for sign, item in zip(signs, node.inputs, strict=True)]


def multiplication(tape: Tape, node: gs.Node, gradient: gs.Tensor) -> list[gs.Tensor | None] | None:
    """``y = a b`` -> ``da = dy b``, ``db = dy a``."""
    left, right = node.inputs
    pair = tape.op("Mul", gradient, right), tape.op("Mul", gradient, left)
    return [tape.unbroadcast(found, item, node.outputs[0]) for found, item in zip(pair, node.inputs, strict=True)]


def division(tape: Tape, node: gs.Node, gradient: gs.Tensor) -> list[gs.Tensor | None] | None:
    """``y = a / b`` -> ``da = dy / b``, ``db = -dy y / b``."""
    first = tape.op("Div", gradient, node.inputs[1])
    pair = first, tape.op("Neg", tape.op("Mul", first, node.outputs[0]))
    return [tape.unbroadcast(found, item, node.outputs[0]) for found, item in zip(pair, node.inputs, strict=True)]


def power(tape: Tape, node: gs.Node, gradient: gs.Tensor) -> list[gs.Tensor | None] | None:
    """``y = x^c`` -> ``dx = dy c x^(c - 1)``; c a number."""
    image, exponent = node.inputs
    if not isinstance(exponent, gs.Constant) or np.prod(exponent.shape) != 1:
        return None
    value = float(exponent.values.item())
    slope = tape.op("Mul", tape.op("Pow", image, value - 1), value)
    return [tape.op("Mul", gradient, slope), None]


def extreme(tape: Tape, node: gs.Node, gradient: gs.Tensor) -> list[gs.Tensor | None] | None:
    """``y = max(a, b)``: dy to the one that it is; the same for the smallest."""
    output, found = node.outputs[0], list[gs.Tensor | None]()
    for item in node.inputs:
        chosen = tape.op("Mul", gradient, tape.where(tape.op("Equal", item, output)))
        found.append(tape.unbroadcast(chosen, item, output))
    return found


def sloped(slope: Slope) -> Rule:
    """Return the rule of a function of one tensor, ``dx = dy f'(x)``, which declines where there is no slope."""

    def rule(tape: Tape, node: gs.Node, gradient: gs.Tensor) -> list[gs.Tensor | None] | None:
        found = slope(tape, node)
        return None if found is None else [tape.op("Mul", gradient, found), *[None] * (len(node.inputs) - 1)]

    return rule


def relu(tape: Tape, node: gs.Node) -> gs.Tensor:
    """1 above 0."""
    return tape.where(tape.op("Greater", node.outputs[0], 0.0))


def clip(tape: Tape, node: gs.Node) -> gs.Tensor | None:
    """1 between the limits."""
    inside = []
    for op, limit in zip(("Greater", "Less"), node.inputs[1:], strict=False):
        if not limit.is_empty():
            inside.append(tape.where(tape.op(op, node.outputs[0], limit)))
    return inside[0] if len(inside) == 1 else tape.op("Mul", *inside) if inside else None


def sigmoid(tape: Tape, node: gs.Node) -> gs.Tensor:
    """``y (1 - y)``."""
    return tape.op("Mul", node.outputs[0], tape.op("Sub", 1.0, node.outputs[0]))


def hard_sigmoid(tape: Tape, node: gs.Node) -> gs.Tensor:
    """Alpha where the result is between 0 and 1."""
    return tape.op("Mul", _inside(tape, node.outputs[0], 0.0, 1.0), float(node.attrs.get("alpha", 0.2)))


def hard_swish(tape: Tape, node: gs.Node) -> gs.Tensor:
    """``h(x) + x h'(x)`` with the hard sigmoid h of slope 1/6."""
    image = node.inputs[0]
    gate = tape.op("HardSigmoid", image, alpha=1 / 6, beta=0.5)
    rising = tape.op("Mul", image, tape.op("Mul", _inside(tape, gate, 0.0, 1.0), 1 / 6))
    return tape.op("Add", gate, rising)


def tanh(tape: Tape, node: gs.Node) -> gs.Tensor:
    """``1 - y^2``."""
    return tape.op("Sub", 1.0, tape.op("Mul", node.outputs[0], node.outputs[0]))


def erf(tape: Tape, node: gs.Node) -> gs.Tensor:
    """``2 / sqrt(pi) exp(-x^2)``."""
    return tape.op("Mul", _bell(tape, node.inputs[0], 1.0), 2 / math.sqrt(math.pi))


def gelu(tape: Tape, node: gs.Node) -> gs.Tensor:
    """``Phi(x) + x phi(x)`` with the normal distribution, or with its approximation by tanh."""
    image = node.inputs[0]
    if node.attrs.get("approximate", "none") == "tanh":
        return _approximate_gelu(tape, image)
    below = tape.op("Add", tape.op("Mul", tape.op("Erf", tape.op("Mul", image, math.sqrt(0.5))), 0.5), 0.5)
    density = tape.op("Mul", _bell(tape, image, 0.5), 1 / math.sqrt(2 * math.pi))
    return tape.op("Add", below, tape.op("Mul", image, density))


def _approximate_gelu(tape: Tape, image: gs.Tensor) -> gs.Tensor:
    """``p + x p'`` with ``p = (1 + tanh u) / 2``, ``u = sqrt(2 / pi) (x + c x^3)``."""
    square = tape.op("Mul", image, image)
    factor = math.sqrt(2 / math.pi)
    inner = tape.op("Mul", image, tape.op("Add", tape.op("Mul", square, factor * _CUBIC), factor))
    part = tape.op("Add", tape.op("Mul", tape.op("Tanh", inner), 0.5), 0.5)
    steep = tape.op("Mul", tape.op("Mul", part, tape.op("Sub", 1.0, part)), 2.0)
    slope = tape.op("Mul", steep, tape.op("Add", tape.op("Mul", square, 3 * factor * _CUBIC), factor))
    return tape.op("Add", part, tape.op("Mul", image, slope))


def exponential(tape: Tape, node: gs.Node) -> gs.Tensor:
    """The result itself."""
    return node.outputs[0]


def root(tape: Tape, node: gs.Node) -> gs.Tensor:
    """``1 / (2 y)``."""
    return tape.op("Div", 0.5, node.outputs[0])


def reciprocal(tape: Tape, node: gs.Node) -> gs.Tensor:
    """``-y^2``."""
    return tape.op("Neg", tape.op("Mul", node.outputs[0], node.outputs[0]))


def negation(tape: Tape, node: gs.Node) -> gs.Tensor:
    """-1."""
    return tape.const(-1.0)


def _inside(tape: Tape, tensor: gs.Tensor, low: float, high: float) -> gs.Tensor:
    return tape.where(tape.op("And", tape.op("Greater", tensor, low), tape.op("Less", tensor, high)))


def _bell(tape: Tape, tensor: gs.Tensor, factor: float) -> gs.Tensor:
    """Return ``exp(-factor x^2)``."""
    return tape.op("Exp", tape.op("Mul", tape.op("Mul", tensor, tensor), -factor))


ELEMENTWISE: dict[str, Rule] = {
    "Add": addition,
    "Sub": addition,
    "Sum": addition,
    "Mul": multiplication,
    "Div": division,
    "Max": extreme,
    "Min": extreme,
    "Pow": power,
    "Relu": sloped(relu),
    "Clip": sloped(clip),
    "Sigmoid": sloped(sigmoid),
    "HardSigmoid": sloped(hard_sigmoid),
    "HardSwish": sloped(hard_swish),
    "Tanh": sloped(tanh),
    "Erf": sloped(erf),
    "Gelu": sloped(gelu),
    "Exp": sloped(exponential),
    "Sqrt": sloped(root),
    "Reciprocal": sloped(reciprocal),
    "Neg": sloped(negation),
}
