"""16-bit floats on every model: as storage for the CPU, and as a graph for GPUs.

    python -m benchmarks.half FOLDER [--only GLOB]... [--evaluator NAME=X]... [--markdown FILE]

Layout of FOLDER as for `benchmarks.zoo`. Of storage: file, paired latency ratio, metric. Of the graph, which is made
for the target `cuda` and needs samples: file, how many operators compute in 16 bits, how many stay in float, Casts, and
how far outputs agree with the original's, which ONNX Runtime's CPU provider computes: it has few fp16 kernels, and goes
through float for the others.
"""

from __future__ import annotations

import fnmatch
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import onnx

from benchmarks.process import measure
from benchmarks.zoo import find_evaluator, find_samples, metric_of

_HEAD = (
    "| model | stored in fp16: file | latency (95 %) | metric | "
    "fp16 graph: file | operators in fp16, in float | Casts | agreement lost |"
)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", multiple=True, default=("*",), show_default=True)
@click.option("--evaluator", "assigned", multiple=True, help="NAME=X: judge model NAME with eval_X.py.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path))
def main(folder: Path, only: tuple[str, ...], assigned: tuple[str, ...], markdown: Path | None) -> None:
    """Convert the models of FOLDER both ways and print a table."""
    evaluators = dict(item.split("=", 1) for item in assigned)
    lines = [_HEAD, "|" + "---|" * 8]
    with tempfile.TemporaryDirectory() as scratch:
        for model in sorted((folder / "models").glob("*.onnx")):
            if any(fnmatch.fnmatch(model.stem, pattern) for pattern in only):
                evaluator = find_evaluator(folder, model.stem, evaluators.get(model.stem))
                lines.append(line(model, find_samples(folder, model.stem), evaluator, Path(scratch)))
                click.echo(lines[-1], err=True)
    click.echo("\n".join(lines))
    if markdown is not None:
        markdown.write_text("\n".join(lines) + "\n")


def line(model: Path, samples: Path | None, evaluator: Path | None, scratch: Path) -> str:
    """Convert one model both ways and return its line of the table."""
    stored, graph = (scratch / f"{model.stem}_{kind}.onnx" for kind in ("stored", "graph"))
    cells = [model.stem, *storage_cells(converted(model, samples, stored, "cpu"), model, stored, evaluator)]
    cells += (
        ["no samples", "", "", ""] if samples is None else graph_cells(converted(model, samples, graph, "cuda"), graph)
    )
    return "| " + " | ".join(cells) + " |"


def converted(model: Path, samples: Path | None, output: Path, target: str) -> Mapping[str, Any]:
    """Run the command on one model and return its report."""
    record = output.with_suffix(".json")
    command: list[str | Path] = [sys.executable, "-m", "graphopt", model, "-o", output, "--report", record, "-q"]
    command += ["-p", "half", "--target", target]
    if samples is not None:
        command += ["--data", samples]
    run = measure(command)
    if run.status != 0:
        raise click.ClickException(f"{model.name}: {run.output[-500:]}")
    return dict(json.loads(record.read_text()))


def storage_cells(report: Mapping[str, Any], before: Path, after: Path, evaluator: Path | None) -> list[str]:
    """Return file, latency and metric of stored halves."""
    ratio = next((timing["ratio"] for timing in report["timings"] if timing["ratio"]), None)
    latency = "-" if ratio is None else "{median:.2f} ({low:.2f}-{high:.2f})".format(**ratio)
    first, last = metric_of(evaluator, before) or {}, metric_of(evaluator, after) or {}
    metrics = ", ".join(f"{key} {value:.4g} -> {last[key]:.4g}" for key, value in first.items())
    return [size(report), latency, metrics or "-"]


def graph_cells(report: Mapping[str, Any], graph: Path) -> list[str]:
    """Return file, operators, Casts and agreement of a graph in fp16."""
    step = report["steps"][-1]
    if step["outcome"] != "accepted":
        reasons = Counter(skip["reason"] for skip in step["skipped"]).most_common(1)
        return [f"{step['outcome']}: {step['reason'] or ''.join(reason for reason, _ in reasons)}", "", "", ""]
    counts = Counter(node.op_type for node in onnx.load(graph, load_external_data=False).graph.node)
    metrics, drop = step["metrics"], report["drop"]
    operators = f"{metrics['operators in fp16']:.0f}, {metrics['operators in float']:.0f}"
    return [size(report), operators, str(counts["Cast"]), f"{drop['value']:.2%} of {drop['samples']} samples"]


def size(report: Mapping[str, Any]) -> str:
    """Return the file after and its share of the file before."""
    before, after = report["before"]["nbytes"], report["after"]["nbytes"]
    return f"{after / 1e6:.2f} MB ({after / before:.2f})"


if __name__ == "__main__":
    main()
