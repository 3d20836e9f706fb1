"""Multiply-accumulate operations as ONNX Runtime executes them.

Shape inference does not follow every computed shape, nor does it know which branch of an If runs or how often a Loop
does. ONNX Runtime's profile does: it records every executed node with the shapes of its inputs and outputs.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_graphsurgeon as gs
import onnxruntime as ort

from graphopt.cost import Figures, figures
from graphopt.errors import ModelError
from graphopt.filesize import Scale
from graphopt.ir.graph import bodies, walk_nodes
from graphopt.macs import Shape, counts, node_macs
from graphopt.model import Model
from graphopt.runtime.messages import RUNTIME_ERRORS, one_line
from graphopt.runtime.session import CPU, Session
from graphopt.shapes import shapes_for

if TYPE_CHECKING:
    from graphopt.samples import Feeds

_SILENT = 4  # severity: only what ends the process; everything else comes as an exception as well
_SUFFIX = "_kernel_time"


def figures_on(model: Model, feeds: Feeds | None, *, scale: Scale | None = None) -> Figures:
    """Return size and cost of a model for one sample.

    Where the work depends on values (control flow, shapes that are computed), the model runs once, so that versions of
    it are counted alike, however much of it can be told from shapes.

    Args:
        model: Stays as it is.
        feeds: The sample; without one, MACs are those of the declared shapes, or unknown.
        scale: Remembers the weights that versions of a model have in common; see `graphopt.filesize`.

    Raises:
        ModelError: MACs have to be counted in a run, and ONNX Runtime cannot run the model.
    """
    found = figures(model, shapes_for(model, feeds), scale=scale)
    if feeds is None or (found.macs is not None and not _has_bodies(model)):
        return found
    return replace(found, macs=executed_macs(model, feeds))


def _has_bodies(model: Model) -> bool:
    return next((body for node in model.graph.nodes for body in bodies(node)), None) is not None


def executed_macs(model: Model, feeds: Feeds) -> int | None:
    """Run the model once on the CPU, without optimizations, and return the MACs of the nodes that were executed.

    Returns:
        The sum; None if a node's work cannot be told from its shapes (an Einsum inside a function).

    Raises:
        ModelError: ONNX Runtime cannot run the model.
    """
    attributes = {node.name: node.attrs for root in (model.graph, *model.graph.functions) for node in walk_nodes(root)}
    total = 0
    for event in _profile(model, feeds):
        name, arguments = event["name"].removesuffix(_SUFFIX), event["args"]
        if not counts(arguments["op_name"]):
            continue
        macs = _event_macs(arguments, attributes.get(name, {}))
        if macs is None:
            return None
        total += macs
    return total


def _event_macs(arguments: dict[str, Any], attributes: dict[str, Any]) -> int | None:
    op = arguments["op_name"]
    if op == "Einsum" and "equation" not in attributes:
        return None
    shapes: dict[int, Shape] = {}
    node = gs.Node(op, attrs=attributes)
    for listed, recorded in ((node.inputs, "input_type_shape"), (node.outputs, "output_type_shape")):
        for entry in arguments[recorded]:
            tensor = gs.Variable(f"{recorded}{len(listed)}")
            shapes[id(tensor)] = tuple(next(iter(entry.values())))
            listed.append(tensor)
    return node_macs(node, lambda tensor: shapes.get(id(tensor)))


def _profile(model: Model, feeds: Feeds) -> Iterator[dict[str, Any]]:
    """Yield what ONNX Runtime recorded about each executed node, in bodies too, once for every time it ran."""
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = Path(folder) / "model.onnx"
        model.write_scratch(path)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = _SILENT
        options.add_session_config_entry("session.disable_prepacking", "1")  # packed weights are not recorded
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            runtime = ort.InferenceSession(str(path), options, providers=[CPU])
        except RUNTIME_ERRORS as error:
            raise ModelError(f"ONNX Runtime does not take the model: {one_line(error)}") from error
        with Session(runtime, CPU) as session:
            session.run(feeds)
        events = json.loads(Path(runtime.end_profiling()).read_text(encoding="utf-8"))
    yield from (event for event in events if event["cat"] == "Node" and event["name"].endswith(_SUFFIX))
