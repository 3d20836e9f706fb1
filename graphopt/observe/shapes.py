"""Shapes of inner tensors in a real run, where inference alone does not find them."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.model import Model
from graphopt.observe.observer import Observer
from graphopt.samples import Samples
from graphopt.shapes import shapes_for

_COSTLY = frozenset({"Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})


def sample_shapes(model: Model, samples: Samples | None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the first sample's run, as far as the cost of the nodes depends on them.

    Inference comes first; the model is run only if the shape of a tensor at a costly node is still open. Tensors inside
    bodies cannot be observed and may stay open.

    Args:
        model: Stays as it is.
        samples: Only the first one is run; without samples, inputs are as the model declares them.

    Raises:
        ModelError: The model cannot run on the first sample.
    """
    feeds = next(iter(samples), None) if samples is not None else None
    shapes = shapes_for(model, feeds)
    if samples is None or feeds is None:
        return shapes
    ends = [tensor for node in model.graph.nodes if node.op in _COSTLY for tensor in (*node.inputs, *node.outputs)]
    open_ends = {tensor.name for tensor in ends if isinstance(tensor, gs.Variable) and tensor.name not in shapes}
    if open_ends:
        observer = Observer(samples.take(1))
        wanted = open_ends & observer.observable(model)
        seen = observer.observe(model, {name: [] for name in sorted(wanted)})
        shapes.update((name, seen.shape(name)) for name in wanted)
    return shapes
