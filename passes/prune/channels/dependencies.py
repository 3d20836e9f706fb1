"""Which channels of a graph must go together: the result of following them through all nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.base import Skip
from graphopt.model import Model
from graphopt.passes.prune.channels.branches import can_end
from graphopt.passes.prune.channels.rules import RULES
from graphopt.passes.prune.channels.tracker import Count, Tracker, Use, Work, captured, label

_LINEAR = (
    "Add AveragePool Concat Conv Flatten Gemm GlobalAveragePool Identity MatMul ReduceMean ReduceSum Reshape Slice "
    "Split Squeeze Sub Sum Transpose Unsqueeze"
)  # operators that commute with a mixing of the channels that they read, or take them


@dataclass(frozen=True, eq=False)
class Group:
    """Classes of channels that play the same part: any of them can go, each by itself.

    Attributes:
        name: The layer that gives them.
        classes: Their numbers, in the order of that layer's output.
        width: Channels of that layer for each class: 1, or the width of a head.
        ends: Whether all of them can go; else at least one class stays.
    """

    name: str
    classes: np.ndarray
    width: int
    ends: bool


@dataclass(frozen=True, eq=False)
class Dependencies:
    """What can be removed from a graph, and what that entails.

    Attributes:
        uses: Constants to cut, with the class of each index along the axis in place of its atom.
        counts: Numbers to correct, likewise.
        works: Nodes with work or at least time, likewise.
        groups: What can be removed.
        size: Number of classes; those in no group stay.
        bent: Whether something other than a sum treats each class by itself, bool [size]; else they may be mixed.
        skips: Where channels cannot be followed, and why.
    """

    uses: tuple[Use, ...]
    counts: tuple[Count, ...]
    works: tuple[Work, ...]
    groups: tuple[Group, ...]
    size: int
    bent: np.ndarray
    skips: tuple[Skip, ...]


def find_dependencies(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> Dependencies:
    """Follow the channels of all layers of the main graph.

    Args:
        model: Stays as it is.
        shapes: Shapes of its tensors on one sample; see `graphopt.shapes.shapes_for`.
    """
    tracker = Tracker(model.graph, shapes)
    for node in model.graph.nodes:
        _follow(node, tracker)
    for tensor in model.graph.outputs:
        layout = tracker.layout(tensor)
        if layout is not None:
            tracker.lock(layout.atoms, tensor.name, "it is an output of the model")
        elif isinstance(tensor, gs.Constant):
            _lock_constant(tensor, tracker)
    label_of, free = tracker.classes()
    uses = tuple(Use(use.node, use.index, use.axis, label_of[use.atoms], use.role) for use in tracker.uses)
    counts = tuple(Count(item.node, label_of[item.atoms], item.write) for item in tracker.counts)
    works = tuple(Work(work.node, tuple(label_of[factor] for factor in work.factors)) for work in tracker.works)
    skips = tuple(dict.fromkeys(tracker.skips))
    bent = np.zeros(len(free), bool)
    for atoms in tracker.bent:
        bent[label_of[atoms]] = True
    shown = {id(tensor) for tensor in model.graph.outputs}
    groups = tuple(
        Group(name, classes, width, can_end(classes, uses, tracker.shape, shown))
        for name, classes, width in _groups(uses, free)
    )
    return Dependencies(uses, counts, works, groups, len(free), bent, skips)


def _follow(node: gs.Node, tracker: Tracker) -> None:
    """Apply the rule of a node; bodies keep what they read of the graph around them."""
    for tensor in captured(node):
        layout = tracker.layout(tensor)
        if layout is not None:
            tracker.lock(layout.atoms, label(node), "its bodies read the channels")
    if node.op not in _LINEAR.split():
        tracker.bent.extend(layout.atoms for layout in map(tracker.layout, node.inputs) if layout is not None)
    rule = RULES.get(node.op) if (node.domain or "") in ("", "ai.onnx") else None
    if rule is None:
        return tracker.stop(node, f"{node.op} has no rule for channels")
    counted = len(tracker.works)
    rule(node, tracker)
    layout = tracker.layout(node.outputs[0])
    if len(tracker.works) == counted and layout is not None:
        tracker.work(node, layout.atoms)


def _lock_constant(tensor: gs.Constant, tracker: Tracker) -> None:
    for use in tracker.uses:
        if use.node.inputs[use.index] is tensor:
            tracker.lock(use.atoms, tensor.name, "it is a weight and an output of the model")


def _groups(uses: tuple[Use, ...], free: np.ndarray) -> list[tuple[str, np.ndarray, int]]:
    """Sort the free classes by the uses they occur in: those with the same uses, as often, are one group.

    A class must be given by a layer, else it is no channel at all, and one that nothing takes is no loss.

    Returns:
        Name, classes and width of each; see `Group`.
    """
    size = len(free)
    marks = np.random.default_rng(0).integers(1, 2**62, len(uses), dtype=np.int64).astype(np.uint64)
    signature = np.zeros(size, np.uint64)
    given = np.zeros(size, bool)
    for use, mark in zip(uses, marks, strict=True):
        signature += np.bincount(use.atoms, minlength=size).astype(np.uint64) * mark
        given[use.atoms] |= use.role == "gives"
    groups: dict[int, tuple[str, np.ndarray, int]] = {}
    for use in uses:
        if use.role != "gives":
            continue
        members = use.atoms[(free & given)[use.atoms]]
        for mark in np.unique(signature[members]):
            found = members[signature[members] == mark]
            classes = found[np.sort(np.unique(found, return_index=True)[1])]
            groups.setdefault(int(mark), (label(use.node), classes, len(found) // len(classes)))
    return [group for group in groups.values() if len(group[1]) > 1]
