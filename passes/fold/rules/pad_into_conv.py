"""Zeros around an image are the convolution's own business."""

from __future__ import annotations

import onnx_graphsurgeon as gs

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
        if pad.attrs.get("mode", "constant") != "constant" or not _pads_zeros(pad, bench):
            return "it does not pad by zeros"
        if node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
            return "the Conv pads by itself"
        rank = bench.types[node.inputs[1]].shape
        pads = None if rank is None else _pads(pad, len(rank), bench)
        if pads is None:
            return "its padding is not known"
        spatial = len(pads) // 2 - 2
        outside = [*pads[:2], *pads[spatial + 2 : spatial + 4]]
        if any(outside) or min(pads) < 0:
            return "it pads more than the spatial axes, or crops"
        added = pads[2 : spatial + 2] + pads[spatial + 4 :]
        own = node.attrs.get("pads", [0] * len(added))
        node.attrs["pads"] = [a + b for a, b in zip(added, own, strict=True)]
        return done(bench.bypass(pad, pad.inputs[0]))


def _pads_zeros(pad: gs.Node, bench: Workbench) -> bool:
    if "value" in pad.attrs or len(pad.inputs) < 3 or pad.inputs[2].is_empty():
        return not pad.attrs.get("value", 0.0)
    value = bench.small_array(pad.inputs[2])
    return value is not None and value.size == 1 and not value.reshape(())


def _pads(pad: gs.Node, rank: int, bench: Workbench) -> list[int] | None:
    """Return the padding of all axes: beginnings, then ends."""
    given = pad.attrs["pads"] if isinstance(pad.attrs.get("pads"), list) else bench.ints(pad.inputs[1])
    if given is None:
        return None
    axes = list(range(rank))
    if len(pad.inputs) > 3 and not pad.inputs[3].is_empty():
        stated = bench.ints(pad.inputs[3])
        if stated is None:
            return None
        axes = [axis % rank for axis in stated]
    if len(given) != 2 * len(axes):
        return None
    pads = [0] * (2 * rank)
    for index, axis in enumerate(axes):
        pads[axis], pads[rank + axis] = given[index], given[len(axes) + index]
    return pads
