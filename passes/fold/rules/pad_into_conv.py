"""Zeros around an image are the convolution's own business."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.passes.fold.rules.padding import pad_value, spatial_pads
from graphopt.passes.fold.rules.rule import Outcome, Rule, done
from graphopt.passes.fold.workbench import Workbench


class PadIntoConv(Rule):
    """``Conv(Pad(x, p), q) -> Conv(x, p + q)``.

    Where the padding is by constant zeros, of spatial axes only, not negative, read by nobody else, and the Conv states
    its own padding in numbers.
    """

    name = "pad-into-conv"
    ops = frozenset({"Conv"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Let the convolution read what is padded."""
        pad = bench.producer(node.inputs[0])
        if pad is None or pad.op != "Pad":
            return False
        if not bench.only_reader(node, node.inputs[0]):
            return "the padded tensor is used elsewhere too"
        if pad_value(pad, bench) != 0:
            return "it does not pad by zeros"
        if node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
            return "the Conv pads by itself"
        rank = bench.types[node.inputs[1]].shape
        added = "its padding is not known" if rank is None else spatial_pads(pad, len(rank), bench)
        if isinstance(added, str):
            return added
        own = node.attrs.get("pads", [0] * len(added))
        node.attrs["pads"] = [a + b for a, b in zip(added, own, strict=True)]
        return done(bench.bypass(pad, pad.inputs[0]))
