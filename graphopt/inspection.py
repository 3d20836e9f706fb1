"""What is in a model file, without changing it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx_graphsurgeon as gs

from graphopt.cost import Figures, NodeCost, figures, held_weights, node_costs
from graphopt.errors import ModelError
from graphopt.ir.graph import payload, walk_nodes
from graphopt.reader import load
from graphopt.report import FileInfo
from graphopt.report.build import input_file
from graphopt.report.encode import figures_json
from graphopt.runtime.costs import figures_on
from graphopt.runtime.trace import Shape, own_seconds, shapes_of_run, trace
from graphopt.samples import open_samples
from graphopt.samples.generated import example
from graphopt.samples.sized import sized
from graphopt.shapes import shapes_for
from graphopt.weightfacts import WeightFacts, channel_axis, weight_facts

if TYPE_CHECKING:
    from graphopt.model import Interface, Model, TensorSpec
    from graphopt.samples import Feeds

Figure = Literal["time", "macs", "parameters", "bytes"]

_RUNS = 8  # that times are taken from, where the model is quick


@dataclass(frozen=True)
class NodeFacts(NodeCost):
    """What one node costs, and what its weight looks like.

    Attributes:
        operator: Its operator; "domain::Op" for other domains than ONNX's own.
        seconds: Time in one run, that of its bodies not included; None where the model was not timed. What the runtime
            fuses counts for one of the nodes that it fused.
        weight: The largest weight that it is the first to use, if that is more than a number.
    """

    operator: str
    seconds: float | None
    weight: WeightFacts | None

    def amount(self, figure: Figure) -> float:
        """Return a figure of the node; 0 for an unknown one."""
        found = {"time": self.seconds, "macs": self.macs, "parameters": self.parameters, "bytes": self.nbytes}[figure]
        return found or 0


@dataclass(frozen=True)
class Timing:
    """How long one run takes on the CPU.

    Attributes:
        seconds: All kernels together; None where the model was not timed.
        added: The part of kernels that belong to no node of the model, such as changes of layout.
        threads: Threads inside an operator.
        reason: Why it was not timed, else empty.
    """

    seconds: float | None
    added: float
    threads: int
    reason: str


@dataclass(frozen=True)
class Inspection:
    """Facts about a model file.

    Attributes:
        file: The file.
        producer: Name and version of the program that made it.
        ir_version: Version of the file format.
        opsets: Version by operator domain; "" is ONNX's own.
        interface: Inputs and outputs.
        sizes: Shapes of the inputs that MACs and times are for, by name; empty where none can be made.
        figures: Size and cost.
        operators: How often each operator occurs, the most frequent first; "domain::Op" for other domains.
        nodes: Facts about every node, in graph order.
        timing: How long a run takes.
    """

    file: FileInfo
    producer: str
    ir_version: int
    opsets: dict[str, int]
    interface: Interface
    sizes: Mapping[str, Shape]
    figures: Figures
    operators: dict[str, int]
    nodes: tuple[NodeFacts, ...]
    timing: Timing

    @property
    def weights(self) -> tuple[WeightFacts, ...]:
        """Facts about the weights of all nodes."""
        return tuple(node.weight for node in self.nodes if node.weight is not None)

    def total(self, figure: Figure) -> float:
        """Return a figure of all nodes together, that of kernels of the runtime's own included."""
        return sum(node.amount(figure) for node in self.nodes) + (self.timing.added if figure == "time" else 0)

    def largest(self, figure: Figure, limit: int | None = None) -> tuple[NodeFacts, ...]:
        """Return the nodes with the most of something, the largest first; none with zero."""
        found = [node for node in self.nodes if node.amount(figure)]
        return tuple(sorted(found, key=lambda node: -node.amount(figure))[:limit])

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "file": {"path": self.file.path, "sha256": self.file.sha256, "nbytes": self.file.nbytes},
            "producer": self.producer,
            "ir_version": self.ir_version,
            "opsets": self.opsets,
            "inputs": [_spec(spec) for spec in self.interface.inputs],
            "outputs": [_spec(spec) for spec in self.interface.outputs],
            "sizes": {name: list(shape) for name, shape in self.sizes.items()},
            "figures": figures_json(self.figures),
            "timing": asdict(self.timing),
            "operators": self.operators,
            "nodes": [asdict(node) for node in self.nodes],
        }


def _spec(spec: TensorSpec) -> dict[str, Any]:
    dtype = None if spec.dtype is None else spec.dtype.name
    return {"name": spec.name, "dtype": dtype, "shape": None if spec.shape is None else list(spec.shape)}


def inspect_model(
    path: Path, sizes: Sequence[str] = (), *, data: str | None = None, run: bool = True, threads: int = 1
) -> Inspection:
    """Read a model file and return the facts about it.

    Args:
        path: The file.
        sizes: Of the inputs, see `graphopt.samples.sized`; other open dimensions get small ones.
        data: Samples whose first is taken; else inputs of these sizes are made up.
        run: Whether the model is run: for times, and for shapes that cannot be inferred.
        threads: Threads inside an operator.

    Raises:
        ModelError: It cannot be read.
        SampleError: The samples cannot be read, or do not fit.
        UsageError: The sizes do not fit.
    """
    model = load(path)
    skeleton = model.skeleton()
    file = input_file(model)
    assert file is not None, "a model that was just read has a file"
    feeds = _feeds(model, sizes, data)
    shapes = _shapes(model, feeds, run=run)
    spent, timing = _times(model, feeds, threads) if run else ([], Timing(None, 0.0, threads, "not asked for"))
    return Inspection(
        file=file,
        producer=f"{skeleton.producer_name} {skeleton.producer_version}".strip(),
        ir_version=skeleton.ir_version,
        opsets={item.domain: item.version for item in skeleton.opset_import},
        interface=model.interface,
        sizes={name: tuple(value.shape) for name, value in (feeds or {}).items() if hasattr(value, "shape")},
        figures=_figures(model, shapes, feeds, run=run and timing.seconds is not None),
        operators=_operators(model),
        nodes=_nodes(model, shapes, spent),
        timing=timing,
    )


def _feeds(model: Model, sizes: Sequence[str], data: str | None) -> Feeds | None:
    interface = sized(model.interface, sizes, data)
    if data is None or data == "random":
        return example(model, interface)
    return next(iter(open_samples(data, model.interface, optional=frozenset(model.graph.defaults)).take(1)))


def _nodes(model: Model, shapes: Mapping[str, Shape], spent: Sequence[float]) -> tuple[NodeFacts, ...]:
    found = []
    costs = node_costs(model, shapes)
    for position, (cost, (node, weights)) in enumerate(zip(costs, held_weights(model), strict=True)):
        largest = max(weights, key=lambda weight: math.prod(payload(weight).shape), default=None)
        known = {field.name: getattr(cost, field.name) for field in fields(cost)}
        looks = None
        if largest is not None and math.prod(payload(largest).shape) > 1:
            looks = weight_facts(largest, channel_axis(node, largest))
        found.append(
            NodeFacts(**known, operator=_operator(node), seconds=spent[position] if spent else None, weight=looks)
        )
    return tuple(found)


def _figures(model: Model, shapes: Mapping[str, Shape], feeds: Feeds | None, *, run: bool) -> Figures:
    """Return size and cost: as they are reported before and after a pass, or by what shapes tell if it cannot run."""
    return figures_on(model, feeds) if run else figures(model, shapes)


def _shapes(model: Model, feeds: Feeds | None, *, run: bool) -> dict[str, Shape]:
    """Return the shapes of tensors; where inference leaves MACs unknown, those of a run as well."""
    shapes = shapes_for(model, feeds)
    if not run or feeds is None or all(cost.macs is not None for cost in node_costs(model, shapes)):
        return shapes
    try:
        (executions,) = trace(model, feeds, optimize=False)
    except ModelError:
        return shapes  # `_times` tells why it does not run
    return shapes_of_run(model, executions) | shapes


def _times(model: Model, feeds: Feeds | None, threads: int) -> tuple[list[float], Timing]:
    """Return the seconds of each node, and of the whole; none where the model cannot run."""
    if feeds is None:
        return [], Timing(None, 0.0, threads, "no inputs can be made for it")
    try:
        runs = trace(model, feeds, runs=_RUNS, threads=threads)
    except ModelError as error:
        return [], Timing(None, 0.0, threads, str(error))
    spent, added = own_seconds(model, runs)
    return spent, Timing(sum(spent) + added, added, threads, "")


def _operators(model: Model) -> dict[str, int]:
    roots = (model.graph, *model.graph.functions)
    counted = Counter(_operator(node) for root in roots for node in walk_nodes(root))
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


def _operator(node: gs.Node) -> str:
    return f"{node.domain}::{node.op}" if node.domain not in (None, "", "ai.onnx") else str(node.op)
