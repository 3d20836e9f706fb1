"""A model before and after fold, with what must hold for any model checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphopt.context import Context
from graphopt.ir.clean import clean
from graphopt.ir.graph import walk_nodes
from graphopt.model import Model
from graphopt.passes.fold import Fold
from tests.helpers import Feeds, assert_same_outputs, outputs_of, parse, random_feeds

NO_CONTEXT = cast("Context", None)  # fold needs none


class Folded:
    """Folds a model and checks honesty, interface, size, a second run, and outputs.

    Args:
        proto: The model.
        sizes: Sizes of symbolic dimensions in the run that compares; 2 where not given.
        tolerance: Relative and absolute.
        run: What computes the outputs.
        options: Of the pass.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        *,
        sizes: dict[str, int] | None = None,
        tolerance: float = 1e-5,
        run: Callable[[onnx.ModelProto, Feeds], dict[str, np.ndarray]] = outputs_of,
        **options: Any,
    ) -> None:
        self.model = Model.from_proto(proto)
        stored = self.model.to_proto()
        self.report = Fold(**options).run(self.model, NO_CONTEXT)
        if self.report.changed == 0:
            assert self.model.to_proto() == stored, "changed == 0, but the graph is another"
        clean(self.model.graph)
        self.after = self.model.to_proto()
        assert self.model.interface == Model.from_proto(proto).interface
        assert self.after.ByteSize() <= proto.ByteSize() + options.get("max_growth", 0)
        again = Fold(**options).run(Model.from_proto(self.after), NO_CONTEXT)
        assert again.changed == 0, f"a second run changes {dict(again.metrics)}"
        feeds = random_feeds(proto, sizes=sizes)
        found, wanted = run(self.after, feeds), run(proto, feeds)
        assert_same_outputs(found, wanted, rtol=tolerance, atol=tolerance)

    @property
    def ops(self) -> dict[str, int]:
        """Operators that are left, with how often."""
        roots = (self.model.graph, *self.model.graph.functions)
        return dict(Counter(node.op for root in roots for node in walk_nodes(root)))

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """Initializers of the main graph that are left."""
        return {tensor.name: numpy_helper.to_array(tensor) for tensor in self.after.graph.initializer}

    def declined(self, words: str) -> bool:
        """Whether a place was left alone for a reason that has these words in it."""
        return any(words in skip.reason for skip in self.report.skipped)


def fold(text: str, **options: Any) -> Folded:
    """Fold a model given as text."""
    return Folded(parse(text), **options)


def weight(name: str, *shape: int, dtype: Any = np.float32, seed: int = 0, low: float = -1.0) -> onnx.TensorProto:
    """Return a random weight."""
    values = np.random.default_rng(seed).uniform(low, 1.0, shape)
    return numpy_helper.from_array(values.astype(dtype), name)


def ints(name: str, *values: int) -> onnx.TensorProto:
    """Return an integer vector."""
    return numpy_helper.from_array(np.array(values, np.int64), name)


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    outputs: list[str],
    weights: list[onnx.TensorProto],
    *,
    opset: int = 17,
    ir_version: int = 8,
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """Return a model whose outputs have types without shapes."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
