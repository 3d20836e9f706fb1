"""Second moments of what linear layers see, computed inside ONNX Runtime.

For each layer the model is extended by nodes that form ``X^T X`` of the layer's input in im2col form, so that only a
matrix of [groups, inputs, inputs] leaves the runtime, whatever the size of the activations. Layers are taken in batches
that fit a budget of memory, each batch one stream over the samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.clean import clean
from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, Node, Variable, tensor_names
from graphopt.layers import LinearLayer, linear_layer
from graphopt.model import Model
from graphopt.progress import Progress, SilentProgress
from graphopt.runtime.session import open_session
from graphopt.samples import Samples

_BUDGET = 2**28  # bytes of accumulated moments at a time
_POSITIONS = 64, 4096  # least and most patches of one sample that count; neighbours add cost but little knowledge
_EVIDENCE = 64  # patches for each input of a layer, over all samples


@dataclass(frozen=True, eq=False)
class LayerMoments:
    """What a layer sees, mean over samples and positions.

    Attributes:
        layer: The layer.
        second: Second moment of its inputs, float64 [groups, inputs, inputs].
        mean: Their mean, float64 [groups, inputs].
    """

    layer: LinearLayer
    second: np.ndarray
    mean: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """What counts where a bias makes up for the mean, float64 [groups, inputs, inputs]."""
        centred: np.ndarray = self.second - self.mean[:, :, None] * self.mean[:, None, :]
        return centred


def layer_moments(
    model: Model,
    layers: Sequence[LinearLayer],
    samples: Samples,
    *,
    budget: int = _BUDGET,
    threads: int = 1,
    progress: Progress | None = None,
) -> Iterator[LayerMoments]:
    """Yield the moments of each layer's inputs, in the order of the layers.

    Args:
        model: Stays as it is; the layers are nodes of its main graph.
        layers: What to look at.
        samples: Run once for each batch of layers.
        budget: Bytes of moments to hold at a time; a larger layer is a batch of its own.
        threads: Threads inside an operator.
        progress: Where it reports.

    Raises:
        ModelError: The model cannot run on a sample.
    """
    progress = progress or SilentProgress()
    for batch in _batches(layers, budget):
        probe, names = _probe(model, batch, max(len(samples), 1))
        seconds = [np.zeros((layer.groups, layer.inputs, layer.inputs)) for layer in batch]
        means = [np.zeros((layer.groups, layer.inputs)) for layer in batch]
        counts = [0] * len(batch)
        with open_session(probe, threads=threads) as session:
            for feeds in progress.track(samples, "second moments", len(samples)):
                found = session.run(feeds, [name for triple in names for name in triple])
                for index, (second, mean, count) in enumerate(names):
                    seconds[index] += found[second]
                    means[index] += found[mean][..., 0]
                    counts[index] += int(found[count])
        for layer, total, sums, seen in zip(batch, seconds, means, counts, strict=True):
            yield LayerMoments(layer, total / max(seen, 1), sums / max(seen, 1))


def _batches(layers: Iterable[LinearLayer], budget: int) -> Iterator[list[LinearLayer]]:
    batch: list[LinearLayer] = []
    used = 0
    for layer in layers:
        size = 8 * layer.groups * layer.inputs**2
        if batch and used + size > budget:
            yield batch
            batch, used = [], 0
        batch.append(layer)
        used += size
    if batch:
        yield batch


def _probe(model: Model, layers: Sequence[LinearLayer], samples: int) -> tuple[Model, list[tuple[str, str, str]]]:
    """Return a copy of the model with outputs for each layer's moments and their number of positions."""
    positions = {id(node): index for index, node in enumerate(model.graph.nodes)}
    probe = model.copy()
    graph = probe.graph
    builder = _Builder(graph)
    graph.outputs.clear()  # what no moment needs is not computed
    names = []
    for layer in layers:
        twin = linear_layer(graph.nodes[positions[id(layer.node)]])
        assert twin is not None
        least, most = _POSITIONS
        kept = min(max(_EVIDENCE * layer.inputs // samples, least), most)
        columns = (builder.patches if twin.node.op == "Conv" else builder.features)(twin, kept)
        names.append(builder.moment(columns))
    clean(graph)
    return probe, names


class _Builder:
    """Adds the nodes of moments to a graph."""

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self._taken = tensor_names(graph)

    def features(self, layer: LinearLayer, kept: int) -> gs.Tensor:
        """Return the input of a Gemm or MatMul as columns, [1, inputs, positions]."""
        rows = self._node("Reshape", [self._float(layer.input), self._const(np.array([1, -1, layer.inputs]))])
        return self._node("Transpose", [self._thin(rows, 1, kept)], perm=[0, 2, 1])

    def patches(self, layer: LinearLayer, kept: int) -> gs.Tensor:
        """Return the patches of a convolution as columns, [groups, inputs, positions].

        A depthwise convolution with one-hot kernels copies each position of the kernel to a channel of its own, with
        the layer's own strides, pads and dilations.
        """
        kernel = tuple(layer.weight.shape[2:])
        area, channels = int(np.prod(kernel)), layer.weight.shape[1] * layer.groups
        image = self._float(layer.input)
        attrs = {key: value for key, value in layer.node.attrs.items() if key not in ("group", "kernel_shape")}
        if area > 1 or attrs:
            one_hot = np.tile(np.eye(area, dtype=np.float32), (channels, 1)).reshape(channels * area, 1, *kernel)
            image = self._node("Conv", [image, self._const(one_hot)], group=channels, **attrs)
        shape = np.array([0, layer.groups, layer.inputs, -1])  # 0 keeps the batch
        columns = self._node("Reshape", [image, self._const(shape)])
        columns = self._node("Transpose", [self._thin(columns, 3, kept)], perm=[1, 2, 0, 3])
        return self._node("Reshape", [columns, self._const(np.array([layer.groups, layer.inputs, -1]))])

    def moment(self, columns: gs.Tensor) -> tuple[str, str, str]:
        """Make the sums over positions of x x^T and x, and their number, outputs of the graph; return the names."""
        transposed = self._node("Transpose", [columns], perm=[0, 2, 1])
        moment = self._node("MatMul", [columns, transposed], dtype=np.float32)
        whole = self._node("Gather", [self._node("Shape", [columns]), self._const(np.array([2]))])
        column = self._node("Concat", [whole, self._const(np.array([1]))], axis=0)
        one = self._node("ConstantOfShape", [column], value=Constant("", np.ones(1, np.float32)))
        mean = self._node("MatMul", [columns, one], dtype=np.float32)  # no ReduceSum, whose axes moved in opset 13
        shape = self._node("Shape", [columns])
        count = self._node("Gather", [shape, self._const(np.array(2))], dtype=np.int64)
        self._graph.outputs.extend((moment, mean, count))
        return moment.name, mean.name, count.name

    def _thin(self, tensor: gs.Tensor, axis: int, kept: int) -> gs.Tensor:
        """Keep every n-th position so that at most so many are left."""
        size = self._node("Gather", [self._node("Shape", [tensor]), self._const(np.array([axis]))])
        step = self._node("Div", [size, self._const(np.array([kept]))])
        step = self._node("Add", [step, self._const(np.array([1]))])
        start, axes = self._const(np.array([0])), self._const(np.array([axis]))
        return self._node("Slice", [tensor, start, size, axes, step])

    def _float(self, tensor: gs.Tensor) -> gs.Tensor:
        return self._node("Cast", [tensor], to=onnx.TensorProto.FLOAT)

    def _const(self, values: np.ndarray) -> gs.Constant:
        values = values.astype(np.int64) if values.dtype.kind == "i" else values
        return Constant(unique_name("moment/constant", self._taken), values)

    def _node(self, op: str, inputs: Sequence[gs.Tensor], dtype: Any = None, **attrs: Any) -> gs.Tensor:
        output = Variable(unique_name(f"moment/{op}", self._taken), dtype=dtype)
        self._graph.nodes.append(Node(op, output.name, attrs, list(inputs), [output]))
        return output
