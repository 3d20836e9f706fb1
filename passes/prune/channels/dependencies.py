"""Which channels of a graph must go together: the result of following them through all nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.base import Skip
from graphopt.model import Model
from graphopt.passes.prune.channels.rules import RULES
from graphopt.passes.prune.channels.tracker import Count, Tracker, Use, Work, captured, label


@dataclass(frozen=True, eq=False)
class Group:
    """Classes of channels that play the same part: any of them can go, each by itself.

    Attributes:
        name: The layer that gives them.
        classes: Their numbers, in the order of that layer's output.
        width: Channels of that layer for each class: 1, or the width of a head.
    """

    name: str
    classes: np.ndarray
    width: int


@dataclass(frozen=True, eq=False)
class Dependencies:
    """What can be removed from a graph, and what that entails.

    Attributes:
        uses: Constants to cut, with the class of each index along the axis in place of its atom.
        counts: Numbers to correct, likewise.
        works: Nodes with work, likewise.
        groups: What can be removed.
        size: Number of classes; those in no group stay.
        skips: Where channels cannot be followed, and why.
    """

    uses: tuple[Use, ...]
    counts: tuple[Count, ...]
    works: tuple[Work, ...]
    groups: tuple[Group, ...]
    size: int
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
    return Dependencies(uses, counts, works, _groups(uses, free), len(free), skips)


def _follow(node: gs.Node, tracker: Tracker) -> None:
    """Apply the rule of a node; bodies keep what they read of the graph around them."""
    for tensor in captured(node):
        layout = tracker.layout(tensor)
        if layout is not None:
            tracker.lock(layout.atoms, label(node), "its bodies read the channels")
    rule = RULES.get(node.op) if (node.domain or "") in ("", "ai.onnx") else None
    if rule is not None:
        rule(node, tracker)
    else:
        tracker.stop(node, f"{node.op} has no rule for channels")


def _lock_constant(tensor: gs.Constant, tracker: Tracker) -> None:
    for use in tracker.uses:
        if use.node.inputs[use.index] is tensor:
            tracker.lock(use.atoms, tensor.name, "it is a weight and an output of the model")


def _groups(uses: tuple[Use, ...], free: np.ndarray) -> tuple[Group, ...]:
    """Sort the free classes by the uses they occur in: those with the same uses, as often, are one group.

    A class must be given by a layer, else it is no channel at all, and one that nothing takes is no loss.
    """
    size = len(free)
    marks = np.random.default_rng(0).integers(1, 2**62, len(uses), dtype=np.int64).astype(np.uint64)
    signature = np.zeros(size, np.uint64)
    given = np.zeros(size, bool)
    for use, mark in zip(uses, marks, strict=True):
        signature += np.bincount(use.atoms, minlength=size).astype(np.uint64) * mark
        given[use.atoms] |= use.role == "gives"
    groups: dict[int, Group] = {}
    for use in uses:
        if use.role != "gives":
            continue
        members = use.atoms[(free & given)[use.atoms]]
        for mark in np.unique(signature[members]):
            found = members[signature[members] == mark]
            classes = found[np.sort(np.unique(found, return_index=True)[1])]
            groups.setdefault(int(mark), Group(label(use.node), classes, len(found) // len(classes)))
    return tuple(group for group in groups.values() if len(group.classes) > 1)
