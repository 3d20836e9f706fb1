"""Simplify every model of a folder with graphopt and its peers: nodes, size, time, memory, sameness, latency.

    python -m benchmarks.simplifiers FOLDER [--only GLOB] [--repeat N] [--json FILE] [--markdown FILE]

The peers come with the extra ``peers``. Every run is a process of its own, start-up included, and the tools take turns,
so that a noisy machine is noisy for all; graphopt may keep its compiled modules, as any installed package has them.
Beside wall time stands the time that a process computed, which other work on the machine hardly changes.
Outputs are compared with ONNX Runtime's optimizations off. Latency is timed with them on, in interleaved pairs.
"""

from __future__ import annotations

import fnmatch
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from benchmarks.process import Run, measure
from benchmarks.zoo import find_samples
from graphopt.errors import GraphoptError
from graphopt.model import Model
from graphopt.reader import load
from graphopt.runtime.session import open_session
from graphopt.runtime.timing import paired_ratio
from graphopt.samples import open_samples, random_samples

_COMPILED = {"PYTHONDONTWRITEBYTECODE": ""}  # empty: not set
_ONNXSCRIPT = """
import sys, onnx, onnxscript.optimizer
onnx.save(onnxscript.optimizer.optimize(onnx.load(sys.argv[1])), sys.argv[2])
"""


@dataclass(frozen=True)
class Outcome:
    """What one tool made of one model; sizes in bytes, times in seconds (of the quickest run).

    Attributes:
        cpu_seconds: What the process computed in the run that computed least.
        error: Why there is no result, else empty.
        difference: Largest relative L2 difference of an output on the probes; None: not comparable.
        latency: Time over that of the original, with its 95 % interval; None: not measured.
    """

    tool: str
    nodes: int | None
    nbytes: int | None
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    difference: float | None
    error: str
    latency: tuple[float, float, float] | None = None


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", default="*", help="Glob of model names.")
@click.option("--repeat", default=3, show_default=True, help="Runs a tool; the quickest counts.")
@click.option("--latency", "seconds", default=2.0, show_default=True, help="Seconds to time each result for.")
@click.option("--python", "peers", default=sys.executable, help="Interpreter that has the peers installed.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path))
def main(
    folder: Path, only: str, repeat: int, seconds: float, peers: str, json_file: Path | None, markdown: Path | None
) -> None:
    """Simplify every model of FOLDER with every tool and print a table."""
    results: dict[str, list[Outcome]] = {}
    names = [path for path in sorted((folder / "models").glob("*.onnx")) if fnmatch.fnmatch(path.stem, only)]
    for model in names:
        results[model.stem] = compare(folder, model, commands(peers), repeat, seconds)
        click.echo(render({model.stem: results[model.stem]}).splitlines()[2], err=True)
    table = render(results)
    click.echo(table)
    if markdown is not None:
        markdown.write_text(table + "\n")
    if json_file is not None:
        encoded = {name: [asdict(outcome) for outcome in outcomes] for name, outcomes in results.items()}
        json_file.write_text(json.dumps(encoded, indent=1) + "\n")


def commands(peers: str) -> dict[str, Sequence[str]]:
    """Return the command of each tool, without the two file names."""
    scripts = Path(peers).parent
    return {
        "graphopt": (sys.executable, "-m", "graphopt"),
        "OnnxSlim": (str(scripts / "onnxslim"),),
        "onnxsim": (str(scripts / "onnxsim"),),
        "onnxscript": (peers, "-c", _ONNXSCRIPT),
    }


def compare(
    folder: Path, model: Path, tools: Mapping[str, Sequence[str]], repeat: int, seconds: float
) -> list[Outcome]:
    """Run all tools on one model, taking turns."""
    with tempfile.TemporaryDirectory() as scratch:
        outputs = {tool: Path(scratch) / tool / model.name for tool in tools}
        runs: dict[str, list[Run]] = {tool: [] for tool in tools}
        for _ in range(repeat):
            for tool, command in tools.items():
                outputs[tool].parent.mkdir(exist_ok=True)
                ours = ("-p", "fold,share", "--no-benchmark", "-q", "-o") if tool == "graphopt" else ()
                runs[tool].append(measure([*command, model, *ours, outputs[tool]], env=_COMPILED))
        original, samples = load(model), find_samples(folder, model.stem)
        before = Outcome("input", original.node_count, _nbytes(model), 0.0, 0.0, 0, None, "")
        return [before, *(_outcome(tool, runs[tool], original, outputs[tool], samples, seconds) for tool in tools)]


def _nbytes(model: Path) -> int:
    """Return the size of a model's file and of those beside it that are named after it."""
    return sum(path.stat().st_size for path in model.parent.glob(f"{model.name}*"))


def _outcome(
    tool: str, runs: Sequence[Run], original: Model, output: Path, samples: Path | None, timed: float
) -> Outcome:
    spent = (min(run.seconds for run in runs), min(run.cpu_seconds for run in runs))  # noise only ever adds
    peak = max(run.peak_bytes for run in runs)
    if runs[-1].status != 0 or not output.exists():
        lines = runs[-1].output.strip().splitlines() or [f"exit status {runs[-1].status}"]
        return Outcome(tool, None, None, *spent, peak, None, lines[-1][:200])
    nbytes = sum(path.stat().st_size for path in output.parent.iterdir())
    try:
        result = load(output)
        moved = difference(original, output, samples)
        ratio = latency(original, output, samples, timed) if timed else None
        return Outcome(tool, result.node_count, nbytes, *spent, peak, moved, "", ratio)
    except GraphoptError as error:
        return Outcome(tool, None, nbytes, *spent, peak, None, f"the result does not run: {error}"[:200])


def difference(original: Model, output: Path, samples: Path | None) -> float:
    """Return the largest relative L2 difference of any float output over up to two probes."""
    import numpy as np

    probes = open_samples(samples, original.interface) if samples else random_samples(original.interface, count=2)
    worst = 0.0
    with open_session(original, optimize=False) as before, open_session(output, optimize=False) as after:
        for feeds in probes.take(2):
            wanted, found = before.run(feeds), after.run(feeds)
            for name, value in wanted.items():
                if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
                    continue
                other = np.asarray(found[name])
                if other.shape != value.shape or other.dtype != value.dtype:
                    return float("inf")
                scale = float(np.linalg.norm(value.astype(np.float64))) or 1.0
                worst = max(worst, float(np.linalg.norm(value.astype(np.float64) - other.astype(np.float64))) / scale)
    return worst


def latency(original: Model, output: Path, samples: Path | None, seconds: float) -> tuple[float, float, float]:
    """Return the time of a result over that of the original, with its 95 % interval, on up to two inputs."""
    probes = open_samples(samples, original.interface) if samples else random_samples(original.interface, count=2)
    with open_session(original.path or original) as before, open_session(output) as after:
        ratio = paired_ratio(before, after, list(probes.take(2)), seconds=seconds)
    return ratio.median, ratio.low, ratio.high


def render(results: Mapping[str, Sequence[Outcome]]) -> str:
    """Return the Markdown table, and what it comes to."""
    tools = [outcome.tool for outcome in next(iter(results.values()))][1:] if results else []
    cells = "nodes, file, wall (CPU), memory, difference, latency"
    head = "| model | input | " + " | ".join(f"{tool}: {cells}" for tool in tools) + " |"
    rows = ["| " + " | ".join((name, *map(_cell, outcomes))) + " |" for name, outcomes in results.items()]
    return "\n".join((head, "|---" * (len(tools) + 2) + "|", *rows, "", *summary(results)))


def summary(results: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """Return on how many models graphopt does what it is to do."""
    rows = [(outcomes[0], outcomes[1], outcomes[2:]) for outcomes in results.values() if not outcomes[1].error]
    fewest = [(ours.nodes, min(peer.nodes for peer in peers if peer.nodes)) for _, ours, peers in rows]
    counts = {
        "no more nodes than any peer": sum(ours <= peer for ours, peer in fewest if ours is not None),
        "fewer nodes than any peer": sum(ours < peer for ours, peer in fewest if ours is not None),
        "a file no larger than the input": sum((ours.nbytes or 0) <= (before.nbytes or 0) for before, ours, _ in rows),
        "no more wall time than OnnxSlim": sum(ours.seconds <= peers[0].seconds for _, ours, peers in rows),
        "no more CPU time than OnnxSlim": sum(ours.cpu_seconds <= peers[0].cpu_seconds for _, ours, peers in rows),
    }
    return [f"- {what}: {count} of {len(results)} models" for what, count in counts.items()]


def _cell(outcome: Outcome) -> str:
    cost = f"{outcome.seconds:.2f} s ({outcome.cpu_seconds:.2f} s), {outcome.peak_bytes / 1e6:.0f} MB"
    if outcome.error:
        return f"FAILED ({outcome.error}), {cost}"
    assert outcome.nbytes is not None
    made = f"**{outcome.nodes}**, {outcome.nbytes / 1e6:.3f} MB"
    if outcome.tool == "input":
        return made
    timed = "" if outcome.latency is None else ", {:.2f} x ({:.2f}-{:.2f})".format(*outcome.latency)
    return f"{made}, {cost}, {outcome.difference:.0e}{timed}"


if __name__ == "__main__":
    main()
