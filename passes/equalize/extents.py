"""How far the channels of tensors reach on samples, found inside ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.clean import clean
from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, Node, Variable, tensor_names
from graphopt.model import Model
from graphopt.passes.equalize.roles import Axes
from graphopt.progress import Progress
from graphopt.runtime.session import open_session
from graphopt.samples import Samples

_AXES_AS_INPUT = 18  # first opset in which ReduceMax takes its axes as an input


def extents(
    model: Model, tensors: Sequence[tuple[gs.Tensor, Axes]], samples: Samples, progress: Progress
) -> dict[str, np.ndarray]:
    """Return the largest magnitude of each channel over all samples, by name of the tensor.

    Args:
        model: Stays as it is.
        tensors: Tensors of its main graph, and the axes that count their channels.
        samples: Run once; a sample that gives NaN or infinities anywhere is left out.
        progress: Where it reports.

    Returns:
        float64 [channels] each.

    Raises:
        ModelError: The model cannot run on a sample.
    """
    probe, names = _probe(model, tensors)
    found = {name: np.zeros(1) for name in names}
    with open_session(probe) as session:
        for feeds in progress.track(samples, "ranges of channels", len(samples)):
            seen = session.run(feeds, list(names.values()))
            if all(np.isfinite(item).all() for item in seen.values()):
                found = {name: np.maximum(found[name], seen[shown].ravel()) for name, shown in names.items()}
    return found


def _probe(model: Model, tensors: Sequence[tuple[gs.Tensor, Axes]]) -> tuple[Model, dict[str, str]]:
    """Return a copy of the model whose outputs are the extents for one sample, and their names by tensor."""
    probe = model.copy()
    graph = probe.graph
    graph.outputs.clear()
    known = {tensor.name: tensor for node in graph.nodes for tensor in node.outputs}
    taken, names = tensor_names(graph), {}
    for tensor, axes in tensors:
        size, shown = (
            Variable(unique_name(f"{tensor.name}_{kind}", taken), tensor.dtype) for kind in ("size", "extent")
        )
        graph.nodes.append(Node("Abs", size.name, {}, [known[tensor.name]], [size]))
        over = [axis for axis in range(len(tensor.shape)) if axis not in axes]
        if graph.opset >= _AXES_AS_INPUT:
            inputs = [size, Constant(unique_name("extent_axes", taken), np.array(over, np.int64))]
            graph.nodes.append(Node("ReduceMax", shown.name, {"keepdims": 0}, inputs, [shown]))
        else:
            graph.nodes.append(Node("ReduceMax", shown.name, {"keepdims": 0, "axes": over}, [size], [shown]))
        graph.outputs.append(shown)
        names[tensor.name] = shown.name
    clean(graph)
    return probe, names
