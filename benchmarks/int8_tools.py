"""What is compared in `benchmarks.int8`: the tools, what they made of a model, and who must be beaten."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from graphopt.targets import get_target

OURS, ENTROPY = "graphopt", "ORT entropy"
LOSSY = f"{OURS}, 3 %"  # with a limit that is nearer to what the peers lose
SEVEN, ALL = "ORT static, 7 bits", "ORT static, all operators"
CALIBRATION = "calibration"  # not a tool: the worker that times the observation of samples
RACE = "race.json"  # what `benchmarks.int8_race` found
_PEERS = Path(__file__).with_name("int8_peers.py")
_QUICK_ENTROPY = frozenset({"efficientnet_lite0", "magika", "mnist_mlp"})  # elsewhere it takes minutes or gigabytes
_SCORES = ("top1", "acc", "f1", "mrr", "auc", "char_acc")  # what a tool is judged by: the first that there is
_EIGHT_BITS = 127  # largest magnitude of a weight
_ROUNDED = 1e-9  # of what evaluators print
_POINT = 0.01  # loss up to which the fastest peer counts as the best


@dataclass(frozen=True)
class Outcome:
    """What one tool made of one model.

    Attributes:
        tool: Name; "float" is the model as it was.
        nbytes: Of the file; None if there is none that runs.
        metric: What the evaluator says.
        conversions: QuantizeLinear and DequantizeLinear in the graph that ONNX Runtime really runs.
        inside: Nodes inside an integer region that did not become integer; see `conversions`.
        seconds: Wall time of the tool.
        cpu_seconds: Of the processor.
        peak_bytes: Largest resident set of the tool.
        steps: What became of the passes.
        error: Why there is no result, else empty.
    """

    tool: str
    nbytes: int | None
    metric: Mapping[str, float] | None
    conversions: int
    inside: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    steps: tuple[str, ...] = ()
    error: str = ""

    def score(self) -> float:
        """Return the metric that the tool is judged by; higher is better."""
        assert self.metric is not None
        return next(self.metric[key] for key in _SCORES if key in self.metric)

    def write(self, path: Path) -> None:
        """Keep it."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Outcome:
        """Return what was kept."""
        values = json.loads(path.read_text())
        return cls(**{**values, "steps": tuple(values["steps"])})


@dataclass(frozen=True)
class Speed:
    """Time over that of another model, with its 95 % interval."""

    median: float
    low: float
    high: float
    slower: bool


def command(tool: str, peers: str, model: Path, output: Path, samples: Path) -> Sequence[str | Path]:
    """Return what makes a tool quantize a model.

    Args:
        tool: One of `tools`.
        peers: Interpreter that has the peers.
        model: To quantize.
        output: To write.
        samples: To calibrate on.
    """
    if tool.startswith(OURS):
        mode = "" if tool == LOSSY else tool.removeprefix(OURS).strip()
        passes = "fold,share,quant" + (f":mode={mode}" if mode else "")
        report = ("--report", output.with_suffix(".report.json"))
        limit = ("--max-drop", "3%" if tool == LOSSY else "1%")
        command = (sys.executable, "-m", "graphopt", model, "-p", passes, "--data", samples, *limit)
        return (*command, "-q", "-o", output, *report)
    form = {ENTROPY: "entropy", "ORT dynamic": "dynamic"}.get(tool, "minmax")
    extras = {SEVEN: ("--seven-bits",), ALL: ("--all-operators",)}.get(tool, ())
    return (peers, _PEERS, form, model, output, samples, *extras)


def tools(model: str) -> tuple[str, ...]:
    """Return the names of the tools that are tried on a model; weights of 7 bits only where 8 would saturate."""
    entropy = (ENTROPY,) if model in _QUICK_ENTROPY else ()
    seven = (SEVEN,) if get_target("cpu").weight_limit < _EIGHT_BITS else ()
    return (OURS, LOSSY, f"{OURS} static", f"{OURS} dynamic", "ORT static", ALL, *seven, *entropy, "ORT dynamic")


def best_peer(outcomes: Mapping[str, Outcome], speeds: Mapping[str, Speed]) -> str:
    """Return whom to beat: the fastest peer that loses a point at most, the float model itself if none is faster."""
    real = outcomes["float"].score()
    usable = {
        tool: speeds[tool].median
        for tool, outcome in outcomes.items()
        if tool in speeds and not tool.startswith(OURS) and real - outcome.score() <= _POINT
    }
    return min(("float", *usable), key=lambda tool: usable.get(tool, 1.0))


def best_of_ours(outcomes: Mapping[str, Outcome], speeds: Mapping[str, Speed], peer: str) -> str:
    """Return our faster result of both limits that loses no more than the best peer; the default's where none does."""
    least = min(outcomes[peer].score(), outcomes["float"].score())
    usable = [tool for tool in (OURS, LOSSY) if tool in speeds and outcomes[tool].score() >= least - _ROUNDED]
    return min(usable, key=lambda tool: speeds[tool].median, default=OURS)


def conversions(graph: onnx.GraphProto, opset: int) -> tuple[int, int]:
    """Return what a graph that ONNX Runtime optimized has left of its QuantizeLinear and DequantizeLinear.

    Returns:
        Their number, and how many places there are inside an integer region: a QuantizeLinear that reads a
        DequantizeLinear, or a float node with an integer kernel that reads nothing but DequantizeLinear and is read by
        nothing but QuantizeLinear.
    """
    target = get_target("cpu")
    made = {name: node.op_type for node in graph.node for name in node.output}
    readers: dict[str, set[str]] = {item.name: {"output"} for item in graph.output}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    inside = 0
    for node in graph.node:
        sources = {made[name] for name in node.input if name in made}
        if node.op_type == "QuantizeLinear":
            inside += sources == {"DequantizeLinear"}
        elif target.kernel(node.op_type, "static", opset) or target.kernel(node.op_type, "pass-through", opset):
            drains = set().union(*(readers.get(name, set()) for name in node.output))
            inside += sources == {"DequantizeLinear"} and drains == {"QuantizeLinear"}
    return sum(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node), inside
