"""Weights stored in 16 bits, computed with in 32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.base import PassReport, Skip
from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, Node, Variable, constants, payload_bytes, tensor_names, walk_graphs
from graphopt.model import Model
from graphopt.passes.half.numbers import TYPES, Kind, misfit

_FIRST_BF16 = 13  # opset whose Cast knows bf16
_LEAST = 1  # bytes; an empty weight has nothing to halve, and a scalar is rarely one: a ratio, an epsilon


def store_weights(model: Model, kind: Kind, min_bytes: int, holds: Callable[[Model], bool]) -> PassReport:
    """Put a Cast from 16 bits in the place of each large float32 weight, in place.

    Left as they are: scalars, weights that are graph outputs, that do not fit, or that some node decodes already; and
    where all together lose too much, those that do so without the others, found by halving: outputs that are small
    differences of large numbers, as of a Fourier transform, feel the rounding of a few weights only.

    Args:
        model: Edited in place.
        kind: Type that weights are stored in.
        min_bytes: Smaller weights stay, bytes.
        holds: Whether what a model loses is within the limit.
    """
    if kind == "bf16" and model.opset < _FIRST_BF16:
        return PassReport(0, (Skip("model", f"bf16 needs opset {_FIRST_BF16} or later, not {model.opset}"),))
    found, skipped = _candidates(model.graph, kind, min_bytes)
    places = list(range(len(found)))

    def stored(chosen: Sequence[int]) -> Model:
        copy = model.copy()
        constants_of_copy, _ = _candidates(copy.graph, kind, min_bytes)
        _store(copy.graph, [constants_of_copy[place] for place in chosen], kind)
        return copy

    if places and not holds(stored(places)):
        culprits = set(_culprits(places, lambda chosen: holds(stored(chosen))))
        reason = f"in {kind} it alone loses more than the limit, or with its neighbours"
        skipped += [Skip(found[place].name, reason) for place in sorted(culprits)]
        places = [place for place in places if place not in culprits]
    _store(model.graph, [found[place] for place in places], kind)
    return PassReport(len(places), tuple(skipped), {f"weights in {kind}": float(len(places))})


def _candidates(graph: gs.Graph, kind: Kind, min_bytes: int) -> tuple[list[gs.Constant], list[Skip]]:
    """Return the weights that can be stored, in an order that copies of the graph share, and why others cannot."""
    shown = {id(tensor) for scope in walk_graphs(graph) for tensor in scope.outputs}
    found, skipped = [], []
    for constant in constants(graph):
        if constant.dtype != np.float32 or not constant.shape or payload_bytes(constant) < max(min_bytes, _LEAST):
            continue
        reason = "it is a graph output" if id(constant) in shown else misfit(constant.values, kind)
        if reason:
            skipped.append(Skip(constant.name, reason))
        else:
            found.append(constant)
    return found, skipped


def _culprits(places: Sequence[int], holds: Callable[[Sequence[int]], bool]) -> list[int]:
    """Return the places that lose too much without those of the other half, given that all of these do together.

    Where each half holds without the other, the second one has to stay.
    """
    if len(places) == 1:
        return list(places)
    half = len(places) // 2
    bad = [part for part in (places[:half], places[half:]) if not holds(part)]
    return [place for part in bad for place in _culprits(part, holds)] if bad else list(places[half:])


def _store(graph: gs.Graph, chosen: Iterable[gs.Constant], kind: Kind) -> None:
    taken = tensor_names(graph)
    for constant in chosen:
        _store_one(graph, constant, kind, taken)


def _store_one(graph: gs.Graph, constant: gs.Constant, kind: Kind, taken: set[str]) -> None:
    stored = Constant(unique_name(f"{constant.name}_{kind}", taken), constant.values.astype(TYPES[kind]))
    decoded = Variable(unique_name(f"{constant.name}_float", taken), np.dtype(np.float32), list(constant.shape))
    for node in list(constant.outputs):
        for index, tensor in enumerate(node.inputs):
            if tensor is constant:
                node.inputs[index] = decoded
    attrs = {"to": int(onnx.TensorProto.FLOAT)}
    graph.nodes.append(Node("Cast", decoded.name, attrs, [stored], [decoded]))
