"""Taking channels out of a graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, tensor_names
from graphopt.model import Model
from graphopt.passes.prune.channels.dependencies import Dependencies
from graphopt.passes.prune.channels.tracker import Use


def remove_classes(model: Model, dependencies: Dependencies, gone: np.ndarray) -> int:
    """Remove classes of channels in place: weights are cut, and numbers that count channels are corrected.

    Args:
        model: The model that the dependencies are of.
        dependencies: What goes together.
        gone: Whether each class goes, bool [classes]; only classes of groups may, and all of a group only if
            it `ends`; `end_branches` is due then.

    Returns:
        Number of constants that were cut.
    """
    cut: dict[int, list[Use]] = defaultdict(list)
    for use in dependencies.uses:
        if gone[use.atoms].any():
            cut[id(use.node.inputs[use.index])].append(use)
    taken = tensor_names(model.graph)
    for uses in cut.values():
        _cut(uses, gone, taken)
    for item in dependencies.counts:
        if gone[item.atoms].any():
            item.write(item.node, int(np.count_nonzero(~gone[item.atoms])))
    shown = {id(tensor) for tensor in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph.nodes if cut else ():
        for tensor in node.outputs:
            if id(tensor) not in shown:
                tensor.shape = None  # inferred afresh
    return len(cut)


def rows_left(uses: Sequence[Use], gone: np.ndarray) -> dict[str, np.ndarray]:
    """Return which channels of each layer's output are left, int [left], by the name of the output."""
    return {
        use.node.outputs[0].name: np.flatnonzero(~gone[use.atoms])
        for use in uses
        if use.index == 1 and use.role != "takes"
    }


def _cut(uses: list[Use], gone: np.ndarray, taken: set[str]) -> None:
    """Cut one constant; readers that need all of it keep the old one."""
    constant: gs.Constant = uses[0].node.inputs[uses[0].index]
    places: dict[tuple[int, int], list[Use]] = defaultdict(list)
    for use in uses:
        places[id(use.node), use.index].append(use)
    whole = len(constant.outputs) == len(places)
    results: dict[tuple[tuple[int, bytes], ...], gs.Constant] = {}
    for found in places.values():
        cuts = {use.axis: ~gone[use.atoms] for use in found}
        key = tuple((axis, kept.tobytes()) for axis, kept in sorted(cuts.items()))
        if key not in results:
            values = constant.values
            for axis, kept in cuts.items():
                values = np.compress(kept, values, axis=axis)
            name = constant.name if whole and not results else unique_name(constant.name, taken)
            results[key] = Constant(name, np.ascontiguousarray(values))
        found[0].node.inputs[found[0].index] = results[key]
