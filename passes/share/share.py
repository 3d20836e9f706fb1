"""The pass: equal weights become one object, which the exporter stores once."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.base import Pass, PassReport
from graphopt.context import Context
from graphopt.ir.graph import Payload, constants, payload, payload_bytes, walk_graphs
from graphopt.ir.payload import StoredSparseTensor, StoredTensor
from graphopt.model import Model

_CHUNK = 1 << 24  # bytes hashed at a time
_SAMPLE = 1 << 12  # bytes compared first


@dataclass(frozen=True)
class Share(Pass):
    """Store each distinct weight once, also across the bodies of If, Loop and Scan.

    Two weights are one if type, shape and every byte are equal; so 0.0 and -0.0 differ, and NaNs differ by their bits.
    Weights of model-local functions are shared within their function. A weight that is a graph output keeps its name.
    """

    name: ClassVar[str] = "share"
    lossless: ClassVar[bool] = True

    def run(self, model: Model, context: Context) -> PassReport:
        """Let the users of equal weights read the same one."""
        merged, saved = 0, 0
        for root in (model.graph, *model.graph.functions):
            for kept, copies in equal_weights(root):
                for copy in copies:
                    redirect(copy, kept)
                merged += len(copies)
                saved += len(copies) * payload_bytes(kept)
        return PassReport(merged, metrics={"weights": float(merged), "bytes": float(saved)})


def equal_weights(root: gs.Graph) -> list[tuple[gs.Constant, list[gs.Constant]]]:
    """Return groups of equal weights: the one to keep, and those to replace by it.

    Only weights that agree in type, shape and size are looked at, and only those that agree in their first bytes are
    read.

    Args:
        root: Main graph or function, searched with its bodies.
    """
    outputs = {id(tensor) for graph in walk_graphs(root) for tensor in graph.outputs}
    groups = []
    alike = [group for same in _grouped(constants(root), header) for group in _grouped(same, sample)]
    for equal in (group for weights in alike for group in _grouped(weights, digest)):
        named = [constant for constant in equal if id(constant) in outputs]
        kept = named[0] if named else equal[0]
        copies = [constant for constant in equal if constant is not kept and id(constant) not in outputs]
        if copies:
            groups.append((kept, copies))
    return groups


def header(constant: gs.Constant) -> Hashable:
    """Return what can be told of a weight without reading it."""
    held = payload(constant)
    sparse = isinstance(held, StoredSparseTensor)
    return np.dtype(held.dtype).name, tuple(held.shape), payload_bytes(constant), sparse


def sample(constant: gs.Constant) -> Hashable:
    """Return the first bytes of a weight: where they differ, the rest need not be read."""
    raw = _raw(payload(constant))
    return None if raw is None else bytes(raw[:_SAMPLE])


def digest(constant: gs.Constant) -> Hashable:
    """Return a digest of a weight's bytes, read in pieces."""
    held = payload(constant)
    if isinstance(held, StoredSparseTensor):
        return hashlib.blake2b(held.tensor.SerializeToString(deterministic=True)).digest()
    raw = _raw(held)
    if raw is None:
        values = held.load() if isinstance(held, StoredTensor) else held
        return tuple(item if isinstance(item, bytes) else str(item).encode() for item in values.flat)
    state = hashlib.blake2b(digest_size=32)
    for start in range(0, len(raw), _CHUNK):
        state.update(raw[start : start + _CHUNK])
    return state.digest()


def _raw(held: Payload) -> memoryview | None:
    """Return the values' bytes in one layout, however the file has them; None for text and sparse weights."""
    if isinstance(held, StoredSparseTensor) or held.dtype == object:
        return None
    values = np.ascontiguousarray(held.load() if isinstance(held, StoredTensor) else held)
    return values.reshape(-1).view(np.uint8).data


def redirect(old: gs.Constant, new: gs.Constant) -> None:
    """Let every node that reads `old` read `new`."""
    for node in list({id(node): node for node in old.outputs}.values()):
        for index, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[index] = new


def _grouped(weights: Iterable[gs.Constant], key: Callable[[gs.Constant], Hashable]) -> list[Sequence[gs.Constant]]:
    groups: dict[Hashable, list[gs.Constant]] = defaultdict(list)
    for constant in weights:
        groups[key(constant)].append(constant)
    return [group for group in groups.values() if len(group) > 1]
