"""The margin around an image is the pool's own business."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fold.rules.activation import bounds
from graphopt.passes.fold.rules.match import made_by
from graphopt.passes.fold.rules.padding import pad_value, spatial_pads
from graphopt.passes.fold.rules.rule import Outcome, Rule, done
from graphopt.passes.fold.workbench import Workbench

_COUNTS_SINCE = 7  # operator set
_NOT_NEGATIVE = frozenset({"Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt"})


class PadIntoPool(Rule):
    """``MaxPool(Pad(x, p), q) -> MaxPool(x, p + q)``, ``AveragePool(Pad(x, p)) -> AveragePool(x, p)`` that counts p.

    A MaxPool never takes its own margin, so what is padded must not exceed any x: the lowest number, or 0 where x is
    an activation that is never negative. An AveragePool takes zeros; margins of its own must count already. Neither
    may round its size up, pad by itself, or pad as much as its window is long. Nobody else may read what is padded.
    """

    name = "pad-into-pool"
    ops = frozenset({"MaxPool", "AveragePool"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Let the pool read what is padded."""
        pad, kernel = made_by(node.inputs[0], "Pad", bench), node.attrs.get("kernel_shape")
        if pad is None or not isinstance(kernel, list):
            return False
        if not bench.only_reader(node, node.inputs[0]):
            return "the padded tensor is used elsewhere too"
        if node.attrs.get("auto_pad", "NOTSET") != "NOTSET" or node.attrs.get("ceil_mode", 0) or len(node.outputs) > 1:
            return "the pool pads by itself, rounds its size up, or tells where it found its values"
        own = node.attrs.get("pads", [0] * (2 * len(kernel)))
        if not _takes(node, own, pad, bench):
            return "the pool would not take its own margin for what is padded"
        added = spatial_pads(pad, len(kernel) + 2, bench)
        if isinstance(added, str):
            return added
        total = [a + b for a, b in zip(added, own, strict=True)]
        if any(margin >= size for margin, size in zip(total, kernel * 2, strict=True)):
            return "the margin would be as long as the window"
        node.attrs["pads"] = total
        if node.op == "AveragePool":
            node.attrs["count_include_pad"] = 1
        return done(bench.bypass(pad, pad.inputs[0]))


def _takes(pool: gs.Node, own: list[int], pad: gs.Node, bench: Workbench) -> bool:
    """Return whether what is padded counts as the pool's own margin does."""
    value = pad_value(pad, bench)
    if pool.op == "AveragePool":
        counts = bool(pool.attrs.get("count_include_pad", 0)) or not any(own)
        return value == 0 and counts and bench.opset(pool) >= _COUNTS_SINCE
    dtype = bench.types[pad.inputs[0]].dtype
    if value is None or dtype is None or dtype.kind != "f":
        return False
    return value <= np.finfo(dtype).min or (value <= 0 and _never_negative(pad.inputs[0], bench))


def _never_negative(tensor: gs.Tensor, bench: Workbench) -> bool:
    if any(made_by(tensor, op, bench) for op in _NOT_NEGATIVE):
        return True
    clip = made_by(tensor, "Clip", bench)
    low = None if clip is None else bounds(clip, bench)[0]
    return low is not None and low >= 0
