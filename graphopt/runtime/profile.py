"""How long each node of a model takes, as ONNX Runtime itself records it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.model import Model
from graphopt.runtime.recording import record
from graphopt.runtime.session import Session, refuse_hazards

if TYPE_CHECKING:
    from graphopt.samples import Feeds

_REPEATS = 5  # runs on each input, of which the quickest counts: what breaks in only makes a node slower
_SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class NodeTime:
    """One node of the optimized graph.

    Attributes:
        name: As ONNX Runtime calls it; what it fused has a name that begins with that of a node, or of an output.
        op: Operator, such as "QLinearConv".
        seconds: In one run with all its executions, mean over the inputs.
    """

    name: str
    op: str
    seconds: float


def node_times(model: Model, feeds: Sequence[Feeds], *, threads: int = 1) -> list[NodeTime]:
    """Return the time of each node that runs on the CPU once ONNX Runtime has optimized the model.

    Args:
        model: Stays as it is.
        feeds: Inputs, each run several times.
        threads: Threads inside an operator.

    Raises:
        ModelError: ONNX Runtime does not take the model, or it does not run.
    """

    def run(session: Session) -> None:
        for item in feeds:
            for _ in range(1 + _REPEATS):  # the first warms up
                session.run(item)

    refuse_hazards(model)
    return _summed(_by_run(record(model, run, threads=threads)), len(feeds))


def _by_run(events: Sequence[dict[str, object]]) -> list[dict[tuple[str, str], float]]:
    """Return the seconds by name and operator, of each run."""
    runs: list[dict[tuple[str, str], float]] = [defaultdict(float)]
    for event in events:  # a run is recorded after its nodes
        name = str(event["name"])
        if event["cat"] == "Session" and name == "model_run":
            runs.append(defaultdict(float))
        elif event["cat"] == "Node" and name.endswith(_SUFFIX):
            arguments = event["args"]
            assert isinstance(arguments, dict)
            runs[-1][name.removesuffix(_SUFFIX), str(arguments["op_name"])] += float(str(event["dur"])) * 1e-6
    return [run for run in runs if run]


def _summed(runs: Sequence[dict[tuple[str, str], float]], feeds: int) -> list[NodeTime]:
    """Return the mean over the inputs of the quickest run on each, warm-up left out."""
    length = 1 + _REPEATS
    total: dict[tuple[str, str], float] = defaultdict(float)
    for start in range(0, feeds * length, length):
        group = runs[start + 1 : start + length]
        for key in {key for run in group for key in run}:
            total[key] += min(run.get(key, 0.0) for run in group) / feeds
    return [NodeTime(name, op, seconds) for (name, op), seconds in total.items()]
