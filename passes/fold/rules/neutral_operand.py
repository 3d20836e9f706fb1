"""Arithmetic with an operand that changes nothing."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fold.rules.rule import Outcome, Rule, broadcasts_into, done
from graphopt.passes.fold.workbench import Workbench

# Operators for which -0.0 and 0.0 are the same.
_BLIND_TO_ZERO_SIGN = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "Softmax", "LogSoftmax", "Exp", "Sigmoid", "HardSigmoid", "LSTM", "GRU",
     "RNN", "LayerNormalization", "ReduceMean", "ReduceSum", "Cos", "Softplus", "Greater", "Less", "Equal", "ArgMax"}
)  # fmt: skip
_ONE = {"Mul": (0, 1), "Div": (1,), "Pow": (1,)}
_ZERO = {"Add": (0, 1), "Sub": (1,)}
_NEUTRAL = {**dict.fromkeys(_ONE, 1.0), **dict.fromkeys(_ZERO, 0.0), "Max": -np.inf, "Min": np.inf}


class NeutralOperand(Rule):
    """``x * 1 -> x``, ``x / 1 -> x``, ``x ** 1 -> x``, ``x + 0 -> x``, ``x - 0 -> x``, ``max(x, -inf) -> x``.

    So for min and inf. Shape and type must stay.

    ``x + 0.0`` is not x where x is -0.0 (the sum is +0.0), so for floats it goes only where the result's users do not
    see the sign of zero; ``x + (-0.0)`` and ``x - 0.0`` are exact.
    """

    name = "neutral-operand"
    ops = frozenset(_NEUTRAL)

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Let the node's users read the other operand."""
        if len(node.inputs) != 2:
            return False
        for index in (_ONE | _ZERO).get(node.op, (0, 1)):
            values, other = bench.small_array(node.inputs[index]), node.inputs[1 - index]
            if values is None or values.size == 0 or not _all_equal(values, _NEUTRAL[node.op]):
                continue
            if node.op == "Pow" and bench.types[other].dtype != values.dtype:
                continue  # the only one of these whose operands may differ in type
            if not broadcasts_into(values.shape, bench.types[other].shape):
                return "it broadcasts, or may do so"
            if node.op in _ZERO and not _exact_zero(node, values, bench):
                return "adding 0.0 turns -0.0 into 0.0, which its users may see"
            return done(bench.bypass(node, other))
        return False


def _all_equal(values: np.ndarray, wanted: float) -> bool:
    if values.dtype.kind not in "fiuV" or (values.dtype.kind in "iu" and not np.isfinite(wanted)):
        return False
    return bool((values == np.array(wanted, values.dtype)).all())


def _exact_zero(node: gs.Node, values: np.ndarray, bench: Workbench) -> bool:
    if values.dtype.kind in "iu":
        return True
    negative = np.signbit(values.astype(np.float64))
    if (negative if node.op == "Add" else ~negative).all():
        return True
    output = node.outputs[0]
    blind = all(user.op in _BLIND_TO_ZERO_SIGN for user in output.outputs)
    return blind and not bench.is_result(output)
