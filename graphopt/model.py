"""The model that passes work on: a GraphSurgeon graph, and the rest of the file around it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from graphopt.compressed import is_compressed
from graphopt.errors import ModelError
from graphopt.ir.exporter import export_graph
from graphopt.ir.graph import Graph, constants, frozen, payload, payload_bytes, tensor_owners, walk_nodes
from graphopt.ir.importer import Importer, stored_payloads
from graphopt.ir.infos import make_variable, output_info, value_info
from graphopt.ir.payload import StoredTensor, is_external
from graphopt.ir.residue import residue_of
from graphopt.ir.tensors import elsewhere, inline
from graphopt.writer import SavedModel, save_model, write_scratch

_MODEL_FIELDS = frozenset(
    {"ir_version", "opset_import", "producer_name", "producer_version", "graph", "functions"}
)  # fmt: skip
PROTOBUF_LIMIT = 2**31 - 1  # bytes; protobuf refuses larger messages
_SMALL = 1024  # bytes; smaller weights (shapes, axes) are what shape inference needs to see


@dataclass(frozen=True)
class TensorSpec:
    """Name, type and shape of a model input or output.

    Attributes:
        name: Tensor name.
        dtype: numpy type; None where it is no dense tensor.
        shape: Per dimension its size, its symbolic name, or None; None for an unknown rank.
        proto: The exact ValueInfoProto, serialized.
    """

    name: str
    dtype: np.dtype | None
    shape: tuple[int | str | None, ...] | None
    proto: bytes


@dataclass(frozen=True)
class Interface:
    """What a caller of the model sees; no pass may change it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Model:
    """An ONNX model in memory.

    Attributes:
        graph: What passes edit. Weights in it are immutable: replace a constant's payload, never write into it.
        residue: ModelProto fields without a GraphSurgeon counterpart (metadata, doc string, version, training info).
        path: The file it was read from, or None.
        uses_external_data: Whether any weight was read from a file of its own.
    """

    def __init__(
        self,
        graph: Graph,
        residue: onnx.ModelProto | None = None,
        path: Path | None = None,
        *,
        uses_external_data: bool = False,
    ) -> None:
        self.graph = graph
        self.residue = residue if residue is not None else onnx.ModelProto()
        self.path = path
        self.uses_external_data = uses_external_data

    @classmethod
    def from_proto(cls, proto: onnx.ModelProto, path: Path | None = None) -> Model:
        """Wrap a proto, which must not be written to afterwards.

        Args:
            proto: The model; external data in it is relative to the folder of `path`.
            path: Where it was read from.

        Raises:
            ModelError: Part of the model cannot be carried; the message names it.
        """
        graph = Importer(proto, stored_payloads(data_folder(path) if path is not None else None)).graph()
        held = (payload(constant) for constant in (*graph.declared, *constants(graph)))
        external = any(isinstance(item, StoredTensor) and item.is_external for item in held)
        return cls(graph, residue_of(proto, _MODEL_FIELDS, "model"), path, uses_external_data=external)

    def copy(self) -> Model:
        """Return a model with nodes and tensors of its own and the same weights: a snapshot costs no weight memory."""
        table: list[StoredTensor | np.ndarray] = []

        def write(name: str, held: StoredTensor | np.ndarray) -> onnx.TensorProto:
            table.append(frozen(held))
            return _placeholder(name, held, str(len(table) - 1))

        def read(tensor: onnx.TensorProto) -> StoredTensor | np.ndarray:
            return table[int(tensor.external_data[0].value)] if _is_placeholder(tensor) else StoredTensor(tensor)

        graph = Importer(export_graph(self.graph, onnx.ModelProto(), write, write), read).graph()
        return Model(graph, self.residue, self.path, uses_external_data=self.uses_external_data)

    def to_proto(self) -> onnx.ModelProto:
        """Return the whole model as one proto.

        Raises:
            ModelError: It would exceed protobuf's limit of 2 GiB; `save` writes such a model with external data.
        """
        if self.weight_bytes > PROTOBUF_LIMIT:
            raise ModelError(
                f"a model with {self.weight_bytes} bytes of weights does not fit into one protobuf message"
            )
        return export_graph(self.graph, self.residue)

    def skeleton(self) -> onnx.ModelProto:
        """Return a proto without large weights, for the checker and shape inference.

        Weights above a kilobyte appear as typed graph inputs. The result is valid ONNX, but it is another model:
        never run or save it.
        """
        declared: dict[str, onnx.ValueInfoProto] = {}
        owners = tensor_owners(self.graph)

        def write(name: str, held: StoredTensor | np.ndarray) -> onnx.TensorProto:
            if held.nbytes <= _SMALL or held.dtype == object or len(owners.get(name, ())) > 1:
                return inline(name, held)
            element_type = onnx.helper.np_dtype_to_tensor_dtype(held.dtype)
            declared[name] = onnx.helper.make_tensor_value_info(name, element_type, held.shape)
            return _placeholder(name, held, "")

        proto = export_graph(self.graph, self.residue, write)
        _drop_references(proto.graph)
        listed = {info.name for info in proto.graph.input}
        proto.graph.input.extend(info for name, info in declared.items() if name not in listed)
        proto.ir_version = max(proto.ir_version, 4)
        return proto

    def fingerprint(self) -> str:
        """Return a digest of structure and weights; equal digests in one process mean equal models."""
        digest = hashlib.sha256()

        def write(name: str, held: StoredTensor | np.ndarray) -> onnx.TensorProto:
            key = str(held.serial) if isinstance(held, StoredTensor) else _content(held)
            return _placeholder(name, held, key)

        digest.update(export_graph(self.graph, self.residue, write, write).SerializeToString(deterministic=True))
        return digest.hexdigest()

    def save(self, path: str | Path, *, external_data: bool | None = None) -> SavedModel:
        """Write the model atomically: afterwards either the old file or the complete new one is there.

        Args:
            path: Target file.
            external_data: Whether large weights go to a file of their own; by default as the model was read unless
                the name ends in `.zst`, and always above 2 GiB.

        Raises:
            ModelError: It cannot be written; nothing is left behind.
        """
        if external_data is None:
            external_data = self.uses_external_data and not is_compressed(Path(path))
        external_data = external_data or self.weight_bytes > PROTOBUF_LIMIT - 2**26
        return save_model(lambda write: export_graph(self.graph, self.residue, write), Path(path), external_data)

    def write_scratch(self, path: Path) -> None:
        """Write the model, weights beside it, for this process to read and remove; see `writer.write_scratch`."""
        write_scratch(lambda write: export_graph(self.graph, self.residue, write), path)

    @property
    def interface(self) -> Interface:
        """The inputs that a caller must or may feed, and the outputs."""
        graph = self.graph
        inputs = (_spec(value_info(tensor, tensor.name)) for tensor in graph.inputs)
        outputs = (_spec(output_info(graph, tensor, tensor.name)) for tensor in graph.outputs)
        return Interface(tuple(inputs), tuple(outputs))

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        return int(self.graph.opset)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all constants, as stored."""
        return sum(payload_bytes(constant) for constant in constants(self.graph))

    @property
    def node_count(self) -> int:
        """Nodes in the graph, its bodies and its functions."""
        roots = (self.graph, *self.graph.functions)
        return sum(1 for root in roots for _ in walk_nodes(root))


_REFERENCE = "graphopt:payload"


def data_folder(path: Path) -> Path:
    """Return the folder that external data of a model file is relative to: the one the file is found in."""
    return path.parent.resolve()


def _placeholder(name: str, held: StoredTensor | np.ndarray, key: str) -> onnx.TensorProto:
    """Return a tensor of the right type and shape whose bytes are elsewhere, known by `key`."""
    return elsewhere(name, held, **{_REFERENCE: key})


def _is_placeholder(tensor: onnx.TensorProto) -> bool:
    return is_external(tensor) and any(entry.key == _REFERENCE for entry in tensor.external_data)


def _content(values: np.ndarray) -> str:
    """Return a digest of an array's elements."""
    if values.dtype == object:
        return hashlib.sha256(repr(values.tolist()).encode()).hexdigest()
    return hashlib.sha256(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data).hexdigest()


def _drop_references(graph: onnx.GraphProto) -> None:
    """Remove the stand-ins of large weights from the initializers of the graph and its bodies."""
    kept = [tensor for tensor in graph.initializer if not _is_placeholder(tensor)]
    if len(kept) != len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _drop_references(attribute.g)


def _spec(info: onnx.ValueInfoProto) -> TensorSpec:
    tensor = make_variable(info.name, info)
    shape = None if tensor.shape is None else tuple(tensor.shape)
    return TensorSpec(info.name, tensor.dtype, shape, info.SerializeToString(deterministic=True))
