"""Computing constant nodes with ONNX Runtime, all in one session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
from onnx import numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from graphopt.ir.graph import OpaqueAttribute, payload
from graphopt.ir.payload import StoredSparseTensor
from graphopt.ir.tensors import inline
from graphopt.passes.fold.workbench import Workbench

_FED = 1 << 16  # bytes; larger weights are handed over without a copy
_MIN_IR_VERSION = 8
REFUSALS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    ort_errors.EPFail,
    RuntimeError,
    ValueError,
)


# numpy has no such types; their values travel as a wider one, which is exact.
_TRAVELS_AS = {"bfloat16": np.float32, "int4": np.int8, "uint4": np.uint8, "int2": np.int8, "uint2": np.uint8}


class RefusedError(Exception):
    """ONNX Runtime does not compute these nodes."""


def evaluate(
    nodes: Sequence[gs.Node], wanted: Sequence[gs.Tensor], bench: Workbench
) -> tuple[dict[int, np.ndarray], dict[int, str]]:
    """Compute tensors that depend on constants only.

    Everything runs in one session. If that is refused, each half runs on its own, down to the nodes that are to blame.

    Args:
        nodes: Nodes of one operator set version, in topological order, that compute the wanted tensors from constants.
        wanted: Outputs of some of them.
        bench: The graph.

    Returns:
        Values by tensor id, and for what could not be computed the reason by tensor id.
    """
    if not wanted:
        return {}, {}
    needed = _ancestors(nodes, wanted)
    try:
        return _run(needed, wanted, bench), {}
    except RefusedError as error:
        if len(wanted) == 1:
            return {}, {id(wanted[0]): _blame(needed, bench) or str(error)}
    middle = len(wanted) // 2
    found, reasons = evaluate(needed, wanted[:middle], bench)
    more, more_reasons = evaluate(needed, wanted[middle:], bench)
    return found | more, reasons | more_reasons


def _ancestors(nodes: Sequence[gs.Node], wanted: Sequence[gs.Tensor]) -> list[gs.Node]:
    """Return those of the nodes that the wanted tensors need, in their order."""
    needed = {id(tensor) for tensor in wanted}
    kept: list[gs.Node] = []
    for node in reversed(nodes):
        if any(id(tensor) in needed for tensor in node.outputs):
            kept.append(node)
            needed.update(id(tensor) for tensor in node.inputs)
    return kept[::-1]


def _blame(nodes: Sequence[gs.Node], bench: Workbench) -> str:
    """Return which of the nodes fails, and why, by running ever longer beginnings."""
    low, high, reason = 0, len(nodes), ""
    while low < high:
        middle = (low + high) // 2
        try:
            _run(nodes[: middle + 1], [t for t in nodes[middle].outputs if not t.is_empty()], bench)
            low = middle + 1
        except RefusedError as error:
            high, reason = middle, f"ONNX Runtime does not compute '{nodes[middle].name}' ({nodes[middle].op}): {error}"
    return reason


def _run(nodes: Sequence[gs.Node], wanted: Sequence[gs.Tensor], bench: Workbench) -> dict[int, np.ndarray]:
    model, feeds = _build(nodes, wanted, bench)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results = session.run(None, feeds)
    except REFUSALS as error:
        raise RefusedError(" ".join(str(error).split())[:200]) from error
    if not all(isinstance(result, np.ndarray) for result in results):
        raise RefusedError("a result is no tensor")
    return {id(tensor): _restored(tensor, result, bench) for tensor, result in zip(wanted, results, strict=True)}


def _restored(tensor: gs.Tensor, result: np.ndarray, bench: Workbench) -> np.ndarray:
    dtype = bench.types[tensor].dtype
    return result if dtype is None or result.dtype == dtype or dtype.kind == "O" else result.astype(dtype)


def _build(
    nodes: Sequence[gs.Node], wanted: Sequence[gs.Tensor], bench: Workbench
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return a model of the nodes, and feeds for its inputs. Tensors get new names: bodies may repeat them."""
    names: dict[int, str] = {}
    graph = onnx.GraphProto(name="constants")
    feeds: dict[str, np.ndarray] = {}

    def name_of(tensor: gs.Tensor) -> str:
        if tensor.is_empty():
            return ""
        if id(tensor) not in names:
            names[id(tensor)] = f"t{len(names)}"
            constant = bench.constant(tensor)
            if constant is not None:
                _add_constant(constant, names[id(tensor)], graph, feeds)
        return names[id(tensor)]

    for node in nodes:
        proto = graph.node.add(op_type=node.op, name=node.name)
        proto.input.extend(name_of(tensor) for tensor in node.inputs)
        proto.output.extend(name_of(tensor) for tensor in node.outputs)
        origins = getattr(node, "attribute_origins", {})
        proto.attribute.extend(attribute_proto(name, value, origins.get(name)) for name, value in node.attrs.items())
    graph.output.extend(onnx.ValueInfoProto(name=_readable(tensor, name_of(tensor), graph, bench)) for tensor in wanted)
    opset = onnx.helper.make_opsetid("", bench.opset(nodes[0]))
    version = max(bench.model.graph.ir_version or 0, _MIN_IR_VERSION)
    return onnx.ModelProto(ir_version=version, graph=graph, opset_import=[opset]), feeds


def _readable(tensor: gs.Tensor, name: str, graph: onnx.GraphProto, bench: Workbench) -> str:
    """Return the name under which the tensor's value can be fetched."""
    dtype = bench.types[tensor].dtype
    carrier = _TRAVELS_AS.get("" if dtype is None else dtype.name)
    if carrier is None:
        return name
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(carrier))
    graph.node.append(onnx.helper.make_node("Cast", [name], [f"{name}_wide"], to=kind))
    return f"{name}_wide"


def _add_constant(constant: gs.Constant, name: str, graph: onnx.GraphProto, feeds: dict[str, np.ndarray]) -> None:
    held = payload(constant)
    if held.nbytes > _FED and np.dtype(held.dtype).kind in "fiub":
        values = held if isinstance(held, np.ndarray) else held.load()
        feeds[name] = values
        element_type = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        graph.input.append(onnx.helper.make_tensor_value_info(name, element_type, values.shape))
    elif isinstance(held, StoredSparseTensor):
        graph.initializer.append(numpy_helper.from_array(held.load(), name))
    else:
        graph.initializer.append(inline(name, held))


def attribute_proto(
    name: str, value: Any, origin: tuple[Any, onnx.AttributeProto] | None = None
) -> onnx.AttributeProto:
    """Return an attribute of a node as the file has it.

    Args:
        name: Its name.
        value: Its value in the graph; no graph.
        origin: What it was read from, which tells the type of an empty list.
    """
    if isinstance(value, OpaqueAttribute):
        return value.proto
    if isinstance(value, gs.Constant):
        held = payload(value)
        dense = held.load() if isinstance(held, StoredSparseTensor) else held
        return onnx.helper.make_attribute(name, inline("", dense))
    kind = origin[1].type if origin is not None and value == [] else None
    return onnx.helper.make_attribute(name, value, attr_type=kind)
