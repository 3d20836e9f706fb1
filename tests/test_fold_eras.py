"""The same networks as exporters wrote them from operator set 7 to the newest, in every float type."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.foldcase import Folded
from tests.helpers import Feeds, outputs_of

VISION, VISION_OLD = 5, 9  # nodes; before operator set 11 there is no raising to one with HardSwish
TEXT, TEXT_OLD = 17, 25  # or with LayerNormalization
OPSETS = (7, 9, 10, 11, 12, 13, 14, 15, 17, 18, 20, 21, 22, 23)
TYPES = {
    "float": (np.dtype(np.float32), 1e-4),
    "half": (np.dtype(np.float16), 2e-2),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), 0.15),
    "double": (np.dtype(np.float64), 1e-9),
}


@dataclass
class Era:
    """A model in the forms that an operator set has.

    Attributes:
        opset: Its version.
        dtype: Of all floats.
    """

    opset: int
    dtype: np.dtype
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(3))

    def op(self, kind: str, *inputs: str, **attrs: Any) -> str:
        """Add a node with one output and return its name."""
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"n{len(self.nodes)}", **attrs))
        return output

    def moved(self, kind: str, since: int, source: str, **attrs: Any) -> str:
        """Add a node whose lists became inputs with some operator set."""
        if self.opset < since:
            return self.op(kind, source, **attrs)
        lists = [self.store(np.array(value, np.int64)) for value in attrs.values()]
        return self.op(kind, source, *lists)

    def store(self, values: np.ndarray) -> str:
        """Add a weight and return its name."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def number(self, value: float) -> str:
        return self.store(np.array(value, self.dtype))

    def random(self, *shape: int) -> str:
        return self.store(self.rng.uniform(0.25, 0.75, shape).astype(self.dtype))

    def clip(self, source: str, low: float, high: float) -> str:
        if self.opset < 11:
            return self.op("Clip", source, min=low, max=high)
        return self.op("Clip", source, self.number(low), self.number(high))

    def pad(self, source: str, pads: list[int]) -> str:
        return self.moved("Pad", 11, source, pads=pads)

    def mean(self, source: str) -> str:
        if self.opset < 18:
            return self.op("ReduceMean", source, axes=[-1])
        return self.op("ReduceMean", source, self.store(np.array([-1], np.int64)))

    def size(self, source: str, axis: int) -> str:
        """Return a size as a vector, the long way round."""
        shape = self.op("Shape", source)
        size = self.op("Gather", shape, self.store(np.array(axis, np.int64)), axis=0)
        return self.moved("Unsqueeze", 13, size, axes=[0])

    def model(self, output: str, shape: list[int | str]) -> onnx.ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        inputs = [helper.make_tensor_value_info("x", kind, shape)]
        listed = [helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in self.weights]
        old = self.opset < 9
        graph = helper.make_graph(
            self.nodes,
            "era",
            inputs + (listed if old else []),
            [helper.make_tensor_value_info(output, kind, None)],
            self.weights,
        )
        imports = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=imports, ir_version=3 if old else 8 if self.opset < 21 else 10)


def vision(era: Era) -> onnx.ModelProto:
    """Return Pad, Conv, BatchNormalization, hard swish written out, pooling, and a head that flattens by shapes."""
    padded = era.pad("x", [0, 0, 1, 1, 0, 0, 1, 1])
    maps = era.op("Conv", padded, era.random(4, 3, 3, 3))
    normed = era.op("BatchNormalization", maps, *(era.random(4) for _ in range(4)))
    gate = era.clip(era.op("Add", normed, era.number(3.0)), 0.0, 6.0)
    active = era.op("Identity", era.op("Div", era.op("Mul", normed, gate), era.number(6.0)))
    turned = era.op("Transpose", era.op("Transpose", active, perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2])
    pooled = era.op("GlobalAveragePool", turned)
    rest = era.store(np.array([-1], np.int64))
    flat = era.op("Reshape", pooled, era.op("Concat", era.size(pooled, 0), rest, axis=0))
    head = era.op("Add", era.op("MatMul", flat, era.random(4, 5)), era.random(5))
    return era.model(era.op("Softmax", head, axis=-1 if era.opset >= 13 else 1), ["N", 3, 8, 8])


def text(era: Era) -> onnx.ModelProto:
    """Return layer normalization and attention in elementary operators, reshaped by sizes of the input."""
    centered = era.op("Sub", "x", era.mean("x"))
    spread = era.mean(era.op("Mul", centered, centered))
    root = era.op("Sqrt", era.op("Add", spread, era.number(1e-3)))
    normed = era.op("Add", era.op("Mul", era.op("Div", centered, root), era.random(8)), era.random(8))
    sizes = (era.size("x", 0), era.size("x", 1), era.store(np.array([2], np.int64)), era.store(np.array([4], np.int64)))
    heads = [era.op("Reshape", era.op("MatMul", normed, era.random(8, 8)), era.op("Concat", *sizes, axis=0))
             for _ in range(3)]  # fmt: skip
    query, key, value = (era.op("Transpose", head, perm=[0, 2, 1, 3]) for head in heads)
    scores = era.op("MatMul", query, era.op("Transpose", key, perm=[0, 1, 3, 2]))
    weights = era.op("Softmax", era.op("Div", scores, era.number(2.0)), axis=3)
    mixed = era.op("Transpose", era.op("MatMul", weights, value), perm=[0, 2, 1, 3])
    back = era.op("Concat", era.size("x", 0), era.size("x", 1), era.store(np.array([8], np.int64)), axis=0)
    return era.model(era.op("Dropout", era.op("Add", era.op("Reshape", mixed, back), "x")), ["N", "T", 8])


def referred(model: onnx.ModelProto, feeds: Feeds) -> dict[str, np.ndarray]:
    """Run a model in ONNX's reference evaluator: ONNX Runtime has no kernels for these types."""
    names = [output.name for output in model.graph.output]
    found = zip(names, ReferenceEvaluator(model).run(None, dict(feeds)), strict=True)
    return {name: value.astype(np.float64) for name, value in found}


@pytest.mark.parametrize("network", [vision, text])
@pytest.mark.parametrize("opset", OPSETS)
def test_networks_of_every_era_become_the_same_few_nodes(network: Any, opset: int) -> None:
    before = network(Era(opset, np.dtype(np.float32)))
    done = Folded(before, sizes={"N": 2, "T": 3}, tolerance=1e-4)
    left = Counter(done.ops) - Counter({"Constant": 100})  # up to IR version 3, where constants are nodes
    assert not set(left) & {"Pad", "BatchNormalization", "Identity", "Dropout", "Shape", "Gather", "Unsqueeze"}
    if network is vision:
        assert sum(left.values()) == (VISION_OLD if opset < 11 else VISION), left
    else:
        assert sum(left.values()) == (TEXT_OLD if opset < 11 else TEXT), left


@pytest.mark.parametrize("network", [vision, text])
@pytest.mark.parametrize("kind", TYPES)
def test_networks_of_every_type_are_folded(network: Any, kind: str) -> None:
    dtype, tolerance = TYPES[kind]
    run = outputs_of if kind in ("float", "half") else referred
    done = Folded(network(Era(18, dtype)), sizes={"N": 2, "T": 3}, tolerance=tolerance, run=run)
    assert not set(done.ops) & {"Pad", "BatchNormalization", "Identity", "Dropout", "Shape", "Gather", "Unsqueeze"}
    stored = {tensor.data_type for tensor in done.after.graph.initializer} - {TensorProto.INT64}
    assert stored == {helper.np_dtype_to_tensor_dtype(dtype)}, "weights keep their type"
