"""Activations that are written out become the operator."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Node
from graphopt.passes.fold.rules.match import (
    Product,
    fuse,
    keeps_rank,
    made_by,
    product,
    reads_only_inside,
    same,
    scalar,
    shifted,
)
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.workbench import Workbench

_OPSETS = {"HardSwish": 14, "Mish": 18, "Gelu": 20}  # the first that has the operator
_CUBIC = 0.044715  # of the approximation of Gelu by tanh (Hendrycks and Gimpel, 2016)
Match = tuple[str, dict[str, str], gs.Tensor, list[gs.Node]]


class Activation(Rule):
    """``x * f(x) -> Gelu(x)``, ``HardSwish(x)`` or ``Mish(x)``, in whatever order the factors stand.

    - ``0.5 x (1 + erf(x / sqrt(2)))`` and ``0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``: Gelu, exact or with
      ``approximate="tanh"``;
    - ``x clip(x + 3, 0, 6) / 6`` and ``x HardSigmoid(x)`` with alpha 1/6 and beta 1/2: HardSwish;
    - ``x tanh(softplus(x))``: Mish.

    In float32, where nobody reads what is computed in between. An older operator set is raised (option `max_opset`).
    ONNX Runtime makes the same of the exact Gelu by itself, and has faster kernels for the others.
    """

    name = "activation"
    ops = frozenset({"Mul", "Div"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Replace the nodes."""
        if len(node.inputs) != 2 or (node.op == "Div" and scalar(node.inputs[1], bench) is None):
            return False
        found = product(node, bench)
        if len(found.factors) != 2 or bench.types[node.outputs[0]].dtype != np.float32:
            return False
        for source, other in (found.factors, found.factors[::-1]):
            match = next((match for match in (find(found, source, other, bench) for find in _FORMS) if match), None)
            if match is not None and keeps_rank(node, source, bench):
                return _replace(match, bench)
        return False


def _replace(match: Match, bench: Workbench) -> Outcome:
    op, attrs, source, nodes = match
    if not reads_only_inside(nodes, bench):
        return "what is computed in between is used elsewhere too"
    reason = bench.raise_opset(nodes, _OPSETS[op])
    if reason:
        return reason
    fuse(nodes, Node(op, nodes[0].name, dict(attrs), [source], []), bench)
    return True


def _gelu(found: Product, source: gs.Tensor, other: gs.Tensor, bench: Workbench) -> Match | None:
    added = made_by(other, "Add", bench)
    curve, one = shifted(added, bench)
    if added is None or not (same(found.scale, 0.5, source, bench) and same(one, 1.0, source, bench)):
        return None
    erf, tanh = made_by(curve, "Erf", bench), made_by(curve, "Tanh", bench)
    if erf is not None:
        inner = product(bench.producer(erf.inputs[0]), bench)
        fits = inner.count(source) == len(inner.factors) == 1 and same(inner.scale, math.sqrt(0.5), source, bench)
        return ("Gelu", {}, source, [*found.nodes, added, erf, *inner.nodes]) if fits else None
    inner_nodes = None if tanh is None else _cubic(tanh.inputs[0], source, bench)
    if tanh is None or inner_nodes is None:
        return None
    return "Gelu", {"approximate": "tanh"}, source, [*found.nodes, added, tanh, *inner_nodes]


def _cubic(tensor: gs.Tensor, source: gs.Tensor, bench: Workbench) -> list[gs.Node] | None:
    """Return the nodes of ``sqrt(2 / pi) (x + 0.044715 x^3)``."""
    outer = product(bench.producer(tensor), bench)
    added = made_by(outer.factors[0], "Add", bench) if len(outer.factors) == 1 else None
    if added is None or not same(outer.scale, math.sqrt(2 / math.pi), source, bench):
        return None
    for plain, power in (added.inputs, added.inputs[::-1]):
        cube = product(bench.producer(power), bench)
        cubed = cube.count(source) == len(cube.factors) == 3 and same(cube.scale, _CUBIC, source, bench)
        if plain is source and cubed:
            return [*outer.nodes, added, *cube.nodes]
    return None


def _hard_swish(found: Product, source: gs.Tensor, other: gs.Tensor, bench: Workbench) -> Match | None:
    gate = made_by(other, "HardSigmoid", bench)
    if gate is not None and gate.inputs[0] is source:
        alpha, beta = gate.attrs.get("alpha", 0.2), gate.attrs.get("beta", 0.5)
        exact = same(alpha, 1 / 6, source, bench) and same(beta, 0.5, source, bench) and found.scale == 1.0
        return ("HardSwish", {}, source, [*found.nodes, gate]) if exact else None
    clip = made_by(other, "Clip", bench)
    added = None if clip is None else made_by(clip.inputs[0], "Add", bench)
    base, three = shifted(added, bench)
    if clip is None or added is None or base is not source or three != 3.0 or bounds(clip, bench) != (0.0, 6.0):
        return None
    return ("HardSwish", {}, source, [*found.nodes, clip, added]) if same(found.scale, 1 / 6, source, bench) else None


def bounds(clip: gs.Node, bench: Workbench) -> tuple[float | None, float | None]:
    """Return the constant bounds of a Clip, in attributes or inputs; None for one that is open or not known."""
    if "min" in clip.attrs or "max" in clip.attrs:
        low, high = clip.attrs.get("min"), clip.attrs.get("max")
        return (low if isinstance(low, float) else None), (high if isinstance(high, float) else None)
    given = [scalar(tensor, bench) for tensor in clip.inputs[1:3]]
    return (*given, None, None)[0], (*given, None, None)[1]


def _mish(found: Product, source: gs.Tensor, other: gs.Tensor, bench: Workbench) -> Match | None:
    tanh = made_by(other, "Tanh", bench)
    softplus = None if tanh is None else made_by(tanh.inputs[0], "Softplus", bench)
    if tanh is None or softplus is None or softplus.inputs[0] is not source or found.scale != 1.0:
        return None
    return "Mish", {}, source, [*found.nodes, tanh, softplus]


_FORMS: tuple[Callable[[Product, gs.Tensor, gs.Tensor, Workbench], Match | None], ...] = (_gelu, _hard_swish, _mish)


class HardSigmoid(Rule):
    """``clip(x + b, 0, c) / c -> HardSigmoid(x)`` with alpha 1/c and beta b/c.

    In float32, where nobody reads what is computed in between.
    """

    name = "hard-sigmoid"
    ops = frozenset({"Mul", "Div"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Replace the nodes."""
        if len(node.inputs) != 2 or bench.types[node.outputs[0]].dtype != np.float32:
            return False
        found = product(node, bench)
        clip = made_by(found.factors[0], "Clip", bench) if len(found.factors) == 1 else None
        added = None if clip is None else made_by(clip.inputs[0], "Add", bench)
        source, offset = shifted(added, bench)
        if clip is None or added is None or source is None or offset is None:
            return False
        low, high = bounds(clip, bench)
        if low != 0.0 or not high or not same(found.scale, 1.0 / high, source, bench):
            return False
        nodes = [*found.nodes, clip, added]
        if not keeps_rank(node, source, bench) or not reads_only_inside(nodes, bench):
            return "what is computed in between is used elsewhere too, or it broadcasts"
        attrs = {"alpha": found.scale, "beta": offset * found.scale}
        fuse(nodes, Node("HardSigmoid", node.name, attrs, [source], []), bench)
        return True
