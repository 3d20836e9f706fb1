"""Which weights are equal, told by their bytes: read once at most, in pieces, and only where headers agree."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Payload, constants, payload, payload_bytes, walk_graphs
from graphopt.ir.payload import StoredSparseTensor, StoredTensor

_CHUNK = 1 << 24  # bytes hashed at a time
_SAMPLE = 1 << 12  # bytes compared first
_CORNER = 16  # rows and columns of a matrix compared first with a transposed one


def equal_weights(root: gs.Graph) -> list[tuple[gs.Constant, list[gs.Constant]]]:
    """Return groups of equal weights: the one to keep, and those to replace by it.

    Args:
        root: Main graph or function, searched with its bodies.
    """
    outputs = {id(tensor) for graph in walk_graphs(root) for tensor in graph.outputs}
    groups = []
    for equal in equal_among(constants(root)):
        named = [constant for constant in equal if id(constant) in outputs]
        kept = named[0] if named else equal[0]
        copies = [constant for constant in equal if constant is not kept and id(constant) not in outputs]
        if copies:
            groups.append((kept, copies))
    return groups


def equal_among(weights: Iterable[gs.Constant]) -> list[Sequence[gs.Constant]]:
    """Return the groups of weights with equal type, shape and bytes, of two or more each.

    Only weights that agree in type, shape and size are looked at, and only those that agree in their first bytes are
    read.
    """
    alike = [group for same in grouped(weights, header) for group in grouped(same, sample)]
    return [group for candidates in alike for group in grouped(candidates, digest)]


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


def corner(constant: gs.Constant, *, turned: bool) -> Hashable:
    """Return the first bytes of a matrix, or of its transpose: where they differ, the rest need not be read."""
    part = constant.values[:_CORNER, :_CORNER]
    return np.ascontiguousarray(part.T if turned else part).tobytes()


def turned_digest(constant: gs.Constant) -> bytes:
    """Return the digest of the transpose of a matrix, of which a few rows are made at a time."""
    values = constant.values
    rows = max(1, _CHUNK // max(values.nbytes // max(values.shape[1], 1), 1))
    state = hashlib.blake2b(digest_size=32)
    for start in range(0, values.shape[1], rows):
        state.update(np.ascontiguousarray(values[:, start : start + rows].T).view(np.uint8).data)
    return state.digest()


def grouped(weights: Iterable[gs.Constant], key: Callable[[gs.Constant], Hashable]) -> list[Sequence[gs.Constant]]:
    """Return the groups of weights with the same key, of two or more each."""
    groups: dict[Hashable, list[gs.Constant]] = defaultdict(list)
    for constant in weights:
        groups[key(constant)].append(constant)
    return [group for group in groups.values() if len(group) > 1]


def _raw(held: Payload) -> memoryview | None:
    """Return the values' bytes in one layout, however the file has them; None for text and sparse weights."""
    if isinstance(held, StoredSparseTensor) or held.dtype == object:
        return None
    values = np.ascontiguousarray(held.load() if isinstance(held, StoredTensor) else held)
    return values.reshape(-1).view(np.uint8).data
