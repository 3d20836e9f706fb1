"""Notes that exporters leave in a file: stack traces, module paths and the like, which no runtime reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from typing import Any, TypeVar

import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Graph, walk_graphs
from graphopt.model import Model

_KEYS = re.compile(r"namespace$|pkg\.(torch|onnxscript)\.")  # of torch.onnx and of onnxscript, which it rests on
_TRACE = re.compile(r"\.py(\(\d+\)|\", line \d+)")  # in doc strings of nodes, by older versions of torch.onnx
ProtoT = TypeVar("ProtoT", bound=Any)


def drop_notes(model: Model) -> int:
    """Remove the notes of exporters from nodes, graphs and inner tensors.

    What else is in metadata and doc strings stays, as does everything about the model itself, its inputs and outputs.

    Args:
        model: Edited in place.

    Returns:
        How many nodes, graphs and tensors had any.
    """
    graphs = [graph for root in (model.graph, *model.graph.functions) for graph in walk_graphs(root)]
    ends = {id(tensor) for graph in graphs for tensor in (*graph.inputs, *graph.outputs)}  # bodies read them too
    dropped = 0
    for holder, name in (found for graph in graphs for found in _holders(graph, ends)):
        proto = getattr(holder, name, None)
        if proto is not None and _has_notes(proto):
            setattr(holder, name, _without_notes(proto))
            dropped += 1
    return dropped


def _holders(graph: gs.Graph, ends: Set[int]) -> Iterator[tuple[Any, str]]:
    """Yield what may hold notes, with the name of the field that holds the proto."""
    inner = (tensor for node in graph.nodes for tensor in (*node.inputs, *node.outputs) if id(tensor) not in ends)
    if isinstance(graph, Graph):
        yield graph, "residue"
    yield from ((node, "residue") for node in graph.nodes)
    yield from ((tensor, "origin") for tensor in {id(tensor): tensor for tensor in inner}.values())


def _is_note(entry: onnx.StringStringEntryProto) -> bool:
    return _KEYS.match(entry.key) is not None


def _is_traced(proto: Any) -> bool:
    return isinstance(proto, onnx.NodeProto) and _TRACE.search(proto.doc_string) is not None


def _has_notes(proto: Any) -> bool:
    return _is_traced(proto) or any(map(_is_note, proto.metadata_props))


def _without_notes(proto: ProtoT) -> ProtoT:
    """Return a copy, for others may hold the same proto."""
    kept: ProtoT = type(proto)()
    kept.CopyFrom(proto)
    del kept.metadata_props[:]
    kept.metadata_props.extend(entry for entry in proto.metadata_props if not _is_note(entry))
    if _is_traced(proto):
        kept.ClearField("doc_string")
    return kept
