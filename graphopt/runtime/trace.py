"""What ONNX Runtime does node by node: the time of each, and the shapes that it really reads and writes.

The nodes and what they write are renamed by the nodes' positions before the model runs: of what the runtime fuses,
replaces or inlines it makes the names from these.
"""

from __future__ import annotations

import re
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.ir.graph import bodies, walk_nodes
from graphopt.model import Model
from graphopt.runtime.recording import record
from graphopt.runtime.session import Session, refuse_hazards

if TYPE_CHECKING:
    from graphopt.samples import Feeds

Shape = tuple[int, ...]

_KERNEL = "_kernel_time"
_MARK = re.compile(r"~(\d+)~")
_LONGEST = 8  # nodes that are fused in a row: a convolution with its normalization, activation and sum


@dataclass(frozen=True)
class Execution:
    """One execution of a kernel.

    Attributes:
        node: Position of the node it comes from, as `nodes_of` counts; None for what the runtime added of its own. Of
            nodes that were fused it is the one that the kernel is named for, or else the last.
        kernel: Operator that ran, such as FusedConv.
        seconds: Time, that of the node's bodies included.
        inputs: Shapes of the dense tensors that it read, inputs that are left out not counted.
        outputs: Shapes of the dense tensors that it wrote.
    """

    node: int | None
    kernel: str
    seconds: float
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]


def nodes_of(model: Model) -> list[gs.Node]:
    """Return the nodes of the main graph, of its bodies and of the functions, in the order that positions count."""
    return [node for root in (model.graph, *model.graph.functions) for node in walk_nodes(root)]


def trace(
    model: Model, feeds: Feeds, *, runs: int = 1, seconds: float = 2.0, optimize: bool = True, threads: int = 1
) -> list[list[Execution]]:
    """Run a model several times on the CPU and return what was executed in each run.

    Args:
        model: Stays as it is.
        feeds: One sample.
        runs: How often at most; the first run is slower than the others.
        seconds: After this time no run is begun, but for the second one.
        optimize: Whether the runtime's graph optimizations are on, as they are for users; without them the shapes of
            weights are told too.
        threads: Threads inside an operator.

    Raises:
        ModelError: ONNX Runtime does not take the model, or it does not run.
    """

    def run(session: Session) -> None:
        try:
            _repeat(session, feeds, runs, seconds)
        except ModelError as error:
            raise ModelError(_with_names(str(error), model)) from error

    if optimize:
        refuse_hazards(model)
    return list(_by_run(record(_marked(model), run, optimize=optimize, threads=threads), nodes_of(model)))


def own_seconds(model: Model, runs: Sequence[Sequence[Execution]]) -> tuple[list[float], float]:
    """Return the seconds of each node in one run, by position, and those of what the runtime added of its own.

    Each is the median over the runs but the first; the time of a node's bodies is its bodies' nodes'.

    Args:
        model: The one that was traced.
        runs: As `trace` returns them; if there is only one, it counts.
    """
    settled = runs[1:] or runs
    totals: list[dict[int | None, float]] = []
    for executions in settled:
        total: dict[int | None, float] = defaultdict(float)
        for execution in executions:
            total[execution.node] += execution.seconds
        totals.append(total)
    nodes = nodes_of(model)
    spent = [statistics.median(total[position] for total in totals) for position in range(len(nodes))]
    positions = {id(node): position for position, node in enumerate(nodes)}
    inner = [[positions[id(each)] for body in bodies(node) for each in body.nodes] for node in nodes]
    own = [max(0.0, spent[position] - sum(spent[each] for each in inner[position])) for position in range(len(nodes))]
    return own, statistics.median(total[None] for total in totals)


def shapes_of_run(model: Model, executions: Sequence[Execution]) -> dict[str, Shape]:
    """Return the shapes that the tensors of the main graph and of its bodies had in a run without optimizations.

    Args:
        model: The one that was traced.
        executions: Of one run.

    Returns:
        Shape by tensor name; what had several shapes is left out.
    """
    nodes = list(walk_nodes(model.graph))
    found: dict[str, set[Shape]] = defaultdict(set)
    for execution in executions:
        if execution.node is None or execution.node >= len(nodes):
            continue
        written = [tensor for tensor in nodes[execution.node].outputs if not tensor.is_empty()]
        if len(written) == len(execution.outputs):
            for tensor, shape in zip(written, execution.outputs, strict=True):
                found[tensor.name].add(shape)
    return {name: shapes.pop() for name, shapes in found.items() if len(shapes) == 1}


def _repeat(session: Session, feeds: Feeds, runs: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    for done in range(runs):
        if done < 2 or time.monotonic() < end:
            session.run(feeds)


def _with_names(message: str, model: Model) -> str:
    """Return a message of the runtime with the nodes' own names in it."""
    nodes = nodes_of(model)
    return _MARK.sub(lambda found: nodes[int(found[1])].name or nodes[int(found[1])].op, message)


def _marked(model: Model) -> Model:
    """Return a copy in which nodes and the tensors that they write are called by the nodes' positions."""
    copy = model.copy()
    for position, node in enumerate(nodes_of(copy)):
        node.name = f"~{position}~"
        for index, tensor in enumerate(node.outputs):
            if tensor.name:
                tensor.name = f"~{position}~{index}"
    return copy


def _by_run(events: list[dict[str, Any]], nodes: Sequence[gs.Node]) -> Iterator[list[Execution]]:
    """Yield the executions of each run; the event of a run comes after those of its nodes."""
    positions = {id(node): position for position, node in enumerate(nodes)}
    executions: list[Execution] = []
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(_KERNEL):
            found = _MARK.search(event["name"])
            node = None if found is None else _named_for(nodes[int(found[1])], event["args"]["op_name"])
            executions.append(_execution(event, None if node is None else positions[id(node)]))
        elif event["cat"] == "Session" and event["name"] == "model_run":
            yield executions
            executions = []


def _named_for(last: gs.Node, kernel: str) -> gs.Node:
    """Return the node of a fused chain that a kernel is named for, as Conv for FusedConv; the last if there is none."""
    node = last
    for _ in range(_LONGEST):
        if node.op in kernel:
            return node
        source = next((tensor.inputs[0] for tensor in node.inputs if tensor.inputs), None)
        if source is None or len(source.outputs[0].outputs) != 1:
            break
        node = source
    return last


def _execution(event: Mapping[str, Any], node: int | None) -> Execution:
    return Execution(
        node=node,
        kernel=event["args"]["op_name"],
        seconds=float(event["dur"]) * 1e-6,
        inputs=_shapes(event["args"].get("input_type_shape", ())),
        outputs=_shapes(event["args"].get("output_type_shape", ())),
    )


def _shapes(typed: list[dict[str, list[int]]]) -> tuple[Shape, ...]:
    return tuple(tuple(shape) for item in typed for shape in item.values())
