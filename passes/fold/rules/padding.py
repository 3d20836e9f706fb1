"""What a Pad does, for the rules that move it into the operator after it."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fold.workbench import Workbench


def pad_value(pad: gs.Node, bench: Workbench) -> float | None:
    """Return the constant that a Pad writes; None where it is not known, or copied from the image."""
    if pad.attrs.get("mode", "constant") != "constant":
        return None
    if "value" in pad.attrs or len(pad.inputs) < 3 or pad.inputs[2].is_empty():
        return float(pad.attrs.get("value", 0.0))
    value = bench.small_array(pad.inputs[2])
    return float(value.astype(np.float64).reshape(())) if value is not None and value.size == 1 else None


def spatial_pads(pad: gs.Node, rank: int, bench: Workbench) -> list[int] | str:
    """Return the padding of all axes but the first two, beginnings then ends, or why it cannot be moved.

    Args:
        pad: The Pad.
        rank: Rank of its image.
        bench: The graph.
    """
    pads = _all_pads(pad, rank, bench)
    if pads is None:
        return "its padding is not known"
    if any((*pads[:2], *pads[rank : rank + 2])) or min(pads) < 0:
        return "it pads more than the spatial axes, or crops"
    return pads[2:rank] + pads[rank + 2 :]


def _all_pads(pad: gs.Node, rank: int, bench: Workbench) -> list[int] | None:
    """Return the padding of all axes: beginnings, then ends."""
    stated_pads = pad.attrs.get("pads", pad.attrs.get("paddings"))  # the name before operator set 2
    if not isinstance(stated_pads, list) and len(pad.inputs) < 2:
        return None
    given = stated_pads if isinstance(stated_pads, list) else bench.ints(pad.inputs[1])
    axes = list(range(rank))
    if len(pad.inputs) > 3 and not pad.inputs[3].is_empty():
        stated = bench.ints(pad.inputs[3])
        if stated is None:
            return None
        axes = [axis % rank for axis in stated]
    if given is None or len(given) != 2 * len(axes):
        return None
    pads = [0] * (2 * rank)
    for index, axis in enumerate(axes):
        pads[axis], pads[rank + axis] = given[index], given[len(axes) + index]
    return pads
