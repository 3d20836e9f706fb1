"""The way back: decoders become the plain weights that they decode to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.clean import clean
from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, Node, Payload, Variable, tensor_names, walk_nodes
from graphopt.ir.payload import DataFile, StoredTensor
from graphopt.ir.tensors import elsewhere
from graphopt.ir.wire import raw_chunks
from graphopt.model import Model
from graphopt.runtime.session import open_session
from graphopt.shapes import infer_shapes

_BATCH = 2**26  # bytes of decoded weights at a time
_HELD = 2**27  # bytes of decoded weights in memory, if there is a folder for the others
_ALIGNMENT = 64  # bytes
_OPS = {"Add", "Cast", "Clip", "ConvInteger", "CumSum", "Expand", "Gather", "Mul", "Reshape", "Round", "Slice", "Tile"}
_WIDE = {np.dtype(ml_dtypes.bfloat16): np.dtype(np.float32)}  # types that do not leave the runtime, and what holds them


def unpack(model: Model, folder: Path | None = None) -> int:
    """Replace decoders by plain weights, in place; return how many there were.

    A decoder is a chain of the operators that `pack` uses, which hangs from initializers only and holds one that is
    called after the weight: ``NAME/codes`` and the like. ONNX Runtime computes them without optimizations, so the
    weights have the bits that they have when the packed model runs.

    Args:
        model: Edited in place.
        folder: Where a file takes up what memory should not; the model needs it for as long as it lives.

    Raises:
        ModelError: ONNX Runtime does not compute them.
    """
    names = decoded_names(model)
    shelf = _Shelf(folder)
    tensors = {tensor.name: tensor for node in model.graph.nodes for tensor in node.outputs}
    for batch in _batches(model, names):
        for name, values in _evaluated(model, batch).items():
            _replace(tensors[name], shelf.put(name, values))
    clean(model.graph)
    return len(names)


class _Shelf:
    """Holds decoded weights: in memory up to a limit, the others in a file.

    Args:
        folder: Where the file is; None: there is no limit.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / "decoded.data"
        self._left = _HELD

    def put(self, name: str, values: np.ndarray) -> Payload:
        """Return the values, or what reads them from the file."""
        self._left -= values.nbytes
        if self._path is None or self._left >= 0:
            return values
        with self._path.open("ab") as file:
            offset = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
            file.write(bytes(offset - file.tell()))
            file.writelines(raw_chunks(values))
        proto = elsewhere(name, values, location=self._path.name, offset=offset, length=values.nbytes)
        return StoredTensor(proto, self._path.parent, DataFile(self._path))


def decoded_names(model: Model) -> list[str]:
    """Return the names of the tensors of the main graph that decoders give, in graph order."""
    computed: dict[int, set[str]] = {}  # by id of a tensor that is known at load: initializers that it comes from
    for node in model.graph.nodes:
        inputs = [tensor for tensor in node.inputs if not tensor.is_empty()]
        known = (isinstance(tensor, gs.Constant) or id(tensor) in computed for tensor in inputs)
        if node.op not in _OPS or len(node.outputs) != 1 or not inputs or not all(known):
            continue
        sources = ({t.name} if isinstance(t, gs.Constant) else computed[id(t)] for t in inputs)
        computed[id(node.outputs[0])] = set().union(*sources)
    read = {id(tensor) for node in walk_nodes(model.graph) if not _is_inner(node, computed) for tensor in node.inputs}
    return [
        tensor.name
        for node in model.graph.nodes
        for tensor in node.outputs
        if id(tensor) in read and any(_belongs(source, tensor.name) for source in computed.get(id(tensor), ()))
    ]


def _is_inner(node: gs.Node, computed: dict[int, set[str]]) -> bool:
    return bool(node.outputs) and id(node.outputs[0]) in computed


def _belongs(source: str, decoded: str) -> bool:
    """Whether an initializer is called after the decoded weight, or after the same weight as the decoded tensor."""
    owner = source.rpartition("/")[0]
    return bool(owner) and owner in (decoded, decoded.rpartition("/")[0])


def _batches(model: Model, names: list[str]) -> Iterator[list[str]]:
    """Yield the names in parts whose weights fit the memory set aside for them."""
    sizes = {tensor.name: _nbytes(tensor) for node in model.graph.nodes for tensor in node.outputs}
    batch: list[str] = []
    used = 0
    for name in names:
        if batch and used + sizes[name] > _BATCH:
            yield batch
            batch, used = [], 0
        batch.append(name)
        used += sizes[name]
    if batch:
        yield batch


def _nbytes(tensor: gs.Tensor) -> int:
    """Return the bytes of a decoded weight; of unknown shape, as many as make a batch of its own."""
    if tensor.shape is None or tensor.dtype is None or not all(isinstance(size, int) for size in tensor.shape):
        return _BATCH
    nbytes: int = math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
    return nbytes


def _evaluated(model: Model, names: list[str]) -> dict[str, np.ndarray]:
    probe = model.copy()
    infer_shapes(probe)
    graph = probe.graph
    taken = tensor_names(graph)
    tensors = {tensor.name: tensor for node in graph.nodes for tensor in node.outputs}
    shown: dict[str, tuple[str, np.dtype | None]] = {}
    graph.outputs.clear()
    graph.inputs.clear()
    for name in names:
        tensor = tensors[name]
        dtype = np.dtype(tensor.dtype) if tensor.dtype is not None else None
        if dtype in _WIDE:
            wide = Variable(unique_name(f"{name}/wide", taken), dtype=_WIDE[dtype])
            to = onnx.helper.np_dtype_to_tensor_dtype(_WIDE[dtype])
            graph.nodes.append(Node("Cast", wide.name, {"to": to}, [tensor], [wide]))
            tensor = wide
        graph.outputs.append(tensor)
        shown[name] = tensor.name, dtype
    clean(graph)
    with open_session(probe, optimize=False) as session:
        found = session.run({})
    return {name: np.asarray(found[output]).astype(dtype, copy=False) for name, (output, dtype) in shown.items()}


def _replace(decoded: gs.Tensor, values: Payload) -> None:
    """Let the users of a decoded tensor read a constant of its name."""
    constant = Constant(decoded.name, values)
    decoded.name = f"{decoded.name}/decoded"
    for node in list(decoded.outputs):
        for index, tensor in enumerate(node.inputs):
            if tensor is decoded:
                node.inputs[index] = constant
