"""How long each node of a model takes, as ONNX Runtime itself records it."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime as ort

from graphopt.errors import ModelError
from graphopt.model import Model
from graphopt.runtime.messages import RUNTIME_ERRORS, one_line
from graphopt.runtime.session import CPU, Session

if TYPE_CHECKING:
    from graphopt.samples import Feeds

_REPEATS = 5  # runs on each input, of which the quickest counts: what breaks in only makes a node slower
_SILENT = 4  # severity: only what ends the process; everything else comes as an exception as well
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
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = Path(folder) / "model.onnx"
        model.write_scratch(path)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = _SILENT
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            runtime = ort.InferenceSession(str(path), options, providers=[CPU])
        except RUNTIME_ERRORS as error:
            raise ModelError(f"ONNX Runtime does not take the model: {one_line(error)}") from error
        with Session(runtime, CPU) as session:
            for item in feeds:
                for _ in range(1 + _REPEATS):  # the first warms up
                    session.run(item)
        events = json.loads(Path(runtime.end_profiling()).read_text(encoding="utf-8"))
    return _summed(_by_run(events), len(feeds))


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
