"""Types and shapes of inner tensors, by ONNX shape inference.

Inference runs on the model without its large weights, so it costs milliseconds. It reaches into the bodies of If, Loop
and Scan; the inside of a model-local function has no types of its own, since each call may bring others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.ir.graph import Variable
from graphopt.ir.infos import read_shape
from graphopt.ir.payload import numpy_dtype
from graphopt.model import Model

Shape = tuple[int | str | None, ...]
STANDARD_DOMAINS = frozenset({"", "ai.onnx"})
VAGUE_SYMBOLS = frozenset({"none", "null", "unk", "unknown", "dyn", "dynamic", "dim", "any"})  # in lower case
_NUMBERED = re.compile(r"[A-Za-z_][\w.]*\d")  # such as DynamicDimension.0
_REFUSALS = (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError)


@dataclass(frozen=True)
class TensorType:
    """Type and shape of a tensor, as far as they are known.

    Attributes:
        dtype: numpy (or ml_dtypes) type; None where unknown or no dense tensor.
        shape: Per dimension its size, a symbol, or None; None for an unknown rank.
    """

    dtype: np.dtype | None = None
    shape: Shape | None = None


class TensorTypes:
    """Types of tensors, by tensor object."""

    def __init__(self) -> None:
        self._types: dict[int, tuple[gs.Tensor, TensorType]] = {}

    def __getitem__(self, tensor: gs.Tensor) -> TensorType:
        """Return what is known; constants know themselves."""
        if isinstance(tensor, gs.Constant):
            return TensorType(np.dtype(tensor.dtype), tuple(tensor.shape))
        return self._types[id(tensor)][1] if id(tensor) in self._types else TensorType()

    def __setitem__(self, tensor: gs.Tensor, known: TensorType) -> None:
        self._types[id(tensor)] = (tensor, known)

    def __iter__(self) -> Iterator[tuple[gs.Tensor, TensorType]]:
        """Yield each variable with its type."""
        yield from self._types.values()

    def __len__(self) -> int:
        return len(self._types)


def infer_shapes(model: Model) -> tuple[str, ...]:
    """Fill dtype and shape of inner variables that lack them; what the file states is kept.

    Returns:
        Why inference stopped early, one line each; the types that it could not find stay unknown.
    """
    types, reasons = tensor_types(model)
    stated = {id(tensor) for tensor in (*model.graph.inputs, *model.graph.outputs)}
    for tensor, known in types:
        if id(tensor) not in stated and _complete(tensor, known) and isinstance(tensor, Variable):
            tensor.origin = None  # what the file stated was incomplete; completed, it would make the file larger
    return reasons


def _complete(tensor: gs.Tensor, known: TensorType) -> bool:
    """Fill what the tensor lacks, and return whether there was anything."""
    fills_dtype = tensor.dtype is None and known.dtype is not None
    fills_shape = tensor.shape is None and known.shape is not None
    if fills_dtype:
        tensor.dtype = known.dtype
    if fills_shape and known.shape is not None:
        tensor.shape = list(known.shape)
    return fills_dtype or fills_shape


def tensor_types(model: Model, *, trust_file: bool = True) -> tuple[TensorTypes, tuple[str, ...]]:
    """Infer the types of all variables of the main graph and its bodies.

    Args:
        model: Stays as it is.
        trust_file: Whether the inner types that the file states count; they may be stale, and a rewrite that rests on
            them would then be wrong.

    Returns:
        The types, and why inference stopped early.
    """
    proto = model.skeleton()
    if not trust_file:
        _forget(proto.graph)
        _doubt_symbols(proto.graph)
    inferred, reasons = _infer(proto)
    types = TensorTypes()
    _collect(model.graph, inferred.graph, types)
    return types, reasons


def shapes_for(model: Model, feeds: Mapping[str, np.ndarray] | None = None) -> dict[str, tuple[int, ...]]:
    """Return the shapes that are fully known once the inputs have the shapes of `feeds`.

    Args:
        model: Stays as it is.
        feeds: One sample; without it, inputs are as the model declares them.

    Returns:
        Shape by tensor name, in the main graph and its bodies; names with two meanings are left out.
    """
    proto = model.skeleton()
    if feeds is not None:
        _forget(proto.graph)
        _bind(proto.graph, feeds)
    found: dict[str, tuple[int, ...] | None] = {}
    _static_shapes(_infer(proto)[0].graph, found)
    return {name: shape for name, shape in found.items() if shape is not None}


def _infer(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Run inference; a model that it refuses comes back as it is, or with what a run without values finds."""
    _localize(proto.graph, {})
    reasons: list[str] = []
    for data_prop in (True, False):
        try:
            return onnx.shape_inference.infer_shapes(proto, data_prop=data_prop), tuple(reasons)
        except _REFUSALS as error:
            reasons.append(" ".join(str(error).split())[:300])
    return proto, tuple(dict.fromkeys(reasons))


def _localize(graph: onnx.GraphProto, outer: dict[str, onnx.TensorProto]) -> None:
    """Copy the small weights that a body reads from around it into the body: inference looks no further for values."""
    own = {tensor.name: tensor for tensor in graph.initializer}
    read = {name for node in graph.node for name in node.input} - own.keys()
    graph.initializer.extend(outer[name] for name in sorted(read & outer.keys()))
    visible = outer | own
    for name in _defined(graph):
        visible.pop(name, None)
    for body in _bodies(graph):
        _localize(body, visible)


def _defined(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (info.name for info in graph.input)
    yield from (name for node in graph.node for name in node.output)


def _forget(graph: onnx.GraphProto) -> None:
    """Drop the inner types that the file states, and the shapes of outputs, which nobody checks either.

    What it states about results of operators outside the standard is kept: inference cannot know better.
    """
    special = {name for node in graph.node if node.domain not in STANDARD_DOMAINS for name in node.output}
    kept = [info for info in graph.value_info if info.name in special]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for info in graph.output:
        if info.type.WhichOneof("value") == "tensor_type":
            info.type.tensor_type.ClearField("shape")
    for body in _bodies(graph):
        _forget(body)


def _doubt_symbols(graph: onnx.GraphProto) -> None:
    """Clear the symbols of inputs that only say "unknown": equal ones do not mean equal sizes."""
    for info in graph.input:
        if info.type.WhichOneof("value") == "tensor_type":
            for dim in info.type.tensor_type.shape.dim:
                symbol = dim.dim_param
                named = symbol.isidentifier() or _NUMBERED.fullmatch(symbol) is not None
                if not named or symbol.lower() in VAGUE_SYMBOLS:
                    dim.ClearField("dim_param")


def _bind(graph: onnx.GraphProto, feeds: Mapping[str, np.ndarray]) -> None:
    for info in graph.input:
        if info.name in feeds and info.type.WhichOneof("value") == "tensor_type":
            shape = info.type.tensor_type.shape
            del shape.dim[:]
            for size in np.shape(feeds[info.name]):
                shape.dim.add(dim_value=size)


def _bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g


def _infos(graph: onnx.GraphProto) -> dict[str, onnx.ValueInfoProto]:
    return {info.name: info for infos in (graph.output, graph.value_info, graph.input) for info in infos}


def _collect(graph: gs.Graph, proto: onnx.GraphProto, types: TensorTypes) -> None:
    infos = _infos(proto)
    named = [(tensor, tensor.name) for tensor in graph.inputs]
    named += [(tensor, info.name) for tensor, info in zip(graph.outputs, proto.output, strict=True)]
    for node, node_proto in zip(graph.nodes, proto.node, strict=True):
        named += zip(node.outputs, node_proto.output, strict=True)  # the exporter may have renamed what a body hides
    for tensor, name in named:
        if isinstance(tensor, gs.Variable) and name in infos:
            types[tensor] = read_type(infos[name].type)
    for node, node_proto in zip(graph.nodes, proto.node, strict=True):
        for attribute in node_proto.attribute:
            body = node.attrs.get(attribute.name)
            if isinstance(body, gs.Graph):
                _collect(body, attribute.g, types)


def read_type(kind: onnx.TypeProto) -> TensorType:
    """Return what a type of the file says; nothing for anything but a dense tensor."""
    if kind.WhichOneof("value") != "tensor_type":
        return TensorType()
    tensor = kind.tensor_type
    try:
        dtype = numpy_dtype(tensor.elem_type) if tensor.elem_type else None
    except ModelError:  # an element type that the installed onnx does not know
        return TensorType()
    shape = read_shape(tensor)
    return TensorType(dtype, None if shape is None else tuple(shape))


def _static_shapes(graph: onnx.GraphProto, found: dict[str, tuple[int, ...] | None]) -> None:
    for name, info in _infos(graph).items():
        shape = read_type(info.type).shape
        if shape is None or not all(isinstance(size, int) for size in shape):
            continue
        static = tuple(size for size in shape if isinstance(size, int))
        found[name] = static if found.get(name, static) == static else None
    for body in _bodies(graph):
        _static_shapes(body, found)
