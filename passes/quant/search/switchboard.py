"""One float model in which every rounding of a plan has a switch of its own.

    x  ->  If(switch of the tensor) { DequantizeLinear(QuantizeLinear(x)) } else { x }
    Conv(x, W, b)  ->  If(switch of the weight) { Conv(x, W', b') } else { Conv(x, W, b) }

Finding out which roundings the error at the outputs comes from takes many models that differ in a few roundings only.
Writing and opening each takes many times what running it takes; with switches all of them are one session, and a
branch that is off costs next to nothing. Scales and zero points are fed, so that other ranges can be tried as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.evaluate.fixed import with_fixed_numbers
from graphopt.ir.clean import clean
from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, Node, Variable, tensor_names
from graphopt.model import Model
from graphopt.passes.quant.numbers.ranges import Affine
from graphopt.passes.quant.search.errors import OutputError
from graphopt.runtime.session import open_session

_FLOAT32, _BOOL = np.dtype(np.float32), np.dtype(np.bool_)


@dataclass(frozen=True, order=True)
class Rounding:
    """What is rounded: a tensor, or the weight of a node.

    Attributes:
        position: Of the node that makes the tensor (-1 for an input of the graph) or has the weight, among the main
            graph's for units, among those of the graph and its bodies for sites.
        tensor: Name of the tensor; empty for a weight.
        at_run_time: Whether it is a weight whose inputs are rounded with it, with ranges found at run time.
    """

    position: int
    tensor: str = ""
    at_run_time: bool = False


@dataclass(frozen=True)
class Twin:
    """What a node computes with after rounding.

    Attributes:
        node: Node of the model.
        scope: The graph or body that it is in.
        inputs: By position of an input, its replacement, float32.
        rounded_input: Whether its first input is rounded with the range of its values.
        attributes: Attributes that change.
    """

    node: gs.Node
    scope: gs.Graph
    inputs: Mapping[int, np.ndarray]
    rounded_input: bool = False
    attributes: Mapping[str, int] | None = None


class Switchboard:
    """The error at the outputs under any set of roundings; a context manager.

    Args:
        model: A copy of the float model; edited.
        twins: Of nodes of this very model.
        parameters: Of every tensor that is rounded, by rounding.
        error: What is measured.

    Raises:
        ModelError: ONNX Runtime does not take the model with switches.
    """

    def __init__(
        self, model: Model, twins: Mapping[Rounding, Twin], parameters: Mapping[Rounding, Affine], error: OutputError
    ) -> None:
        builder = _Builder(model.graph)
        self._switches = {rounding: builder.weight_switch(twin) for rounding, twin in twins.items()}
        for rounding, affine in parameters.items():
            self._switches[rounding] = builder.tensor_switch(rounding.tensor, affine.dtype)
        clean(model.graph)
        self.parameters = dict(parameters)
        self._error = error
        self._session = open_session(with_fixed_numbers(model))
        self._fed = frozenset(self._session.inputs)

    @property
    def roundings(self) -> list[Rounding]:
        """All roundings, in graph order."""
        return sorted(self._switches)

    def error(self, active: Collection[Rounding]) -> float:
        """Return the error with some roundings on and all others off.

        Raises:
            ModelError: The model does not run.
        """
        active = frozenset(active)
        state: dict[str, np.ndarray] = {}
        for rounding, switch in self._switches.items():
            state[switch] = np.asarray(rounding in active)
            if rounding in self.parameters:
                affine = self.parameters[rounding]
                state[f"{switch}/scale"] = np.asarray(affine.scale, np.float32)
                state[f"{switch}/zero"] = np.asarray(affine.zero_point, affine.dtype)
        return self._error.of(self._session, {name: value for name, value in state.items() if name in self._fed})

    def close(self) -> None:
        """Free the session."""
        self._session.close()

    def __enter__(self) -> Switchboard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Builder:
    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self._taken = tensor_names(graph)
        self._made = {tensor.name: tensor for node in graph.nodes for tensor in node.outputs}
        self._made.update({tensor.name: tensor for tensor in graph.inputs})

    def weight_switch(self, twin: Twin) -> str:
        """Put a node and its twin into the branches of an If; return the switch."""
        node, outputs = twin.node, list(twin.node.outputs)
        plain_inputs = [self._own(tensor) for tensor in node.inputs]
        inputs = list(plain_inputs)
        before: list[gs.Node] = []
        if twin.rounded_input:
            inputs[0], before = self._rounded(inputs[0], None)
        for index, values in twin.inputs.items():
            constant = Constant(self._name("twin/constant"), values)
            inputs[index : index + 1] = [constant]  # also appends a bias where there was none
        attributes = {**node.attrs, **(twin.attributes or {})}
        rounded = self._branch(Node(node.op, "", attributes, inputs, []), outputs, before)
        plain = self._branch(Node(node.op, "", dict(node.attrs), plain_inputs, []), outputs)
        for branch in (rounded, plain):
            branch.nodes[-1].domain = node.domain
        node.inputs.clear()
        node.outputs.clear()
        return self._if(twin.scope, rounded, plain, [tensor for tensor in outputs if not tensor.is_empty()])

    def tensor_switch(self, name: str, dtype: np.dtype) -> str:
        """Let every reader of a tensor see it rounded to integers of a type where its switch is on; return that."""
        tensor = self._made[name]
        seen = Variable(self._name(f"{name}/seen"), dtype=_FLOAT32)
        for reader in list(tensor.outputs):
            for index, item in enumerate(reader.inputs):
                if item is tensor:
                    reader.inputs[index] = seen
        switch = self._name("switch")
        scale = Variable(f"{switch}/scale", dtype=_FLOAT32, shape=[])
        zero = Variable(f"{switch}/zero", dtype=dtype, shape=[])
        self._graph.inputs += [scale, zero]
        self._taken |= {scale.name, zero.name}
        last, before = self._rounded(tensor, (scale, zero))
        dequantize = last.inputs[0]
        last.inputs.clear()
        rounded = self._branch(dequantize, [seen], before[:-1])
        plain = self._branch(Node("Identity", "", {}, [tensor], []), [seen])
        return self._if(self._graph, rounded, plain, [seen], switch)

    def _rounded(
        self, tensor: gs.Tensor, parameters: tuple[gs.Tensor, gs.Tensor] | None
    ) -> tuple[gs.Tensor, list[gs.Node]]:
        """Return a tensor as it is after rounding, and the nodes that do it; without parameters, with its own range."""
        codes = Variable(self._name("codes"), dtype=np.dtype(np.uint8) if parameters is None else parameters[1].dtype)
        if parameters is None:
            parameters = Variable(self._name("scale"), dtype=_FLOAT32), Variable(self._name("zero"), dtype=np.uint8)
            quantize = Node("DynamicQuantizeLinear", codes.name, {}, [tensor], [codes, *parameters])
        else:
            quantize = Node("QuantizeLinear", codes.name, {}, [tensor, *parameters], [codes])
        restored = Variable(self._name("restored"), dtype=_FLOAT32)
        dequantize = Node("DequantizeLinear", restored.name, {}, [codes, *parameters], [restored])
        return restored, [quantize, dequantize]

    def _own(self, tensor: gs.Tensor) -> gs.Tensor:
        """Return a constant of its own for what only one node reads: ONNX Runtime packs those of the same graph."""
        if not isinstance(tensor, gs.Constant) or len(tensor.outputs) > 1:
            return tensor
        return Constant(self._name(f"{tensor.name}/own"), tensor.values)

    def _branch(self, last: gs.Node, like: Sequence[gs.Tensor], before: Iterable[gs.Node] = ()) -> gs.Graph:
        """Return a body that ends in a node with as many outputs as given, empty where these are."""
        results = [
            Variable("") if tensor.is_empty() else Variable(self._name("branch"), dtype=_FLOAT32) for tensor in like
        ]
        last.outputs.clear()
        last.outputs.extend(results)
        named = [tensor for tensor in results if not tensor.is_empty()]
        last.name = named[0].name
        return gs.Graph(nodes=[*before, last], outputs=named, name=last.name, opset=self._graph.opset)

    def _if(
        self, scope: gs.Graph, then: gs.Graph, other: gs.Graph, outputs: Sequence[gs.Tensor], name: str = ""
    ) -> str:
        switch = Variable(name or self._name("switch"), dtype=_BOOL, shape=[])
        self._graph.inputs.append(switch)
        branches = {"then_branch": then, "else_branch": other}
        scope.nodes.append(Node("If", switch.name, branches, [switch], list(outputs)))
        return str(switch.name)

    def _name(self, wanted: str) -> str:
        return str(unique_name(wanted, self._taken))
