"""Adding nodes to a copy of a model, in the dialect of its operator set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import tensor_names
from graphopt.ir.importer import default_opset
from graphopt.model import Model

_NEW_OPSET = 17  # for models that use no standard operator so far
_AXES_ARE_INPUTS = {"ReduceMin": 18, "ReduceMax": 18, "ReduceMean": 18}  # since which version


class Wiring:
    """Appends nodes to a model's main graph under names that are free.

    Attributes:
        opset: Version of the standard operator set.
    """

    def __init__(self, model: Model) -> None:
        graph = model.graph
        if default_opset(graph.import_domains or ()) is None:
            graph.import_domains = [*(graph.import_domains or ()), onnx.helper.make_opsetid("", _NEW_OPSET)]
            graph.opset = _NEW_OPSET
        self.opset = model.opset
        self._graph = graph
        self._taken = tensor_names(graph)
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], gs.Constant] = {}

    def name(self) -> str:
        """Return a free tensor name."""
        return unique_name(f"graphopt_probe_{len(self._taken)}", self._taken)

    def node(self, op: str, *inputs: gs.Tensor, **attributes: object) -> gs.Variable:
        """Append a node and return its output."""
        output = gs.Variable(self.name())
        self._graph.nodes.append(gs.Node(op, attrs=attributes, inputs=list(inputs), outputs=[output]))
        return output

    def constant(self, values: np.ndarray) -> gs.Constant:
        """Return a constant; equal ones are one."""
        key = (values.dtype.str, values.tobytes(), values.shape)
        if key not in self._constants:
            self._constants[key] = gs.Constant(self.name(), values)
        return self._constants[key]

    def integers(self, *values: int) -> gs.Constant:
        """Return a constant int64 vector."""
        return self.constant(np.array(values, np.int64))

    def scalar(self, value: float) -> gs.Constant:
        """Return a constant float32 scalar."""
        return self.constant(np.array(value, np.float32))

    def cast(self, tensor: gs.Tensor, dtype: int) -> gs.Variable:
        """Convert to an element type of onnx.TensorProto."""
        return self.node("Cast", tensor, to=int(dtype))

    def reduce(
        self, op: str, tensor: gs.Tensor, axes: Sequence[int] | None = None, *, keepdims: bool = False
    ) -> gs.Variable:
        """Reduce over some axes, by default over all."""
        attributes: dict[str, object] = {"keepdims": int(keepdims)}
        if axes is None:
            return self.node(op, tensor, **attributes)
        if self.opset >= _AXES_ARE_INPUTS[op]:
            return self.node(op, tensor, self.integers(*axes), **attributes)
        return self.node(op, tensor, axes=list(axes), **attributes)
