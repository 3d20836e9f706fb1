"""Quantize every model of a folder to int8 with graphopt and onnxruntime.quantization, and judge who is better.

    python -m benchmarks.int8 make FOLDER RESULTS [--only GLOB] [--tool GLOB] [--python PEERS] [--evaluator NAME=X]
    python -m benchmarks.int8 time FOLDER RESULTS [--only GLOB] [--seconds N]
    python -m benchmarks.int8 race FOLDER RESULTS [--only GLOB] [--rounds N] [--python PEERS]
    python -m benchmarks.int8 table RESULTS [--markdown FILE]

FOLDER is laid out as for `benchmarks.zoo`; models without samples or evaluator are left out. ``make`` runs every tool
in a process of its own, with one thread, and keeps model and figures in RESULTS; what is there is not made again.
``time`` measures latencies, in interleaved pairs in one process, in processor time; ``race`` times whole runs of
quant beside the peer's with entropy calibration, in turn; ``table`` prints what was found, and on which models the best
peer is not reached.
"""

from __future__ import annotations

import fnmatch
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks.cpu_timing import paired_cpu_ratio
from benchmarks.int8_race import race, write
from benchmarks.int8_table import render
from benchmarks.int8_tools import (
    CALIBRATION,
    RACE,
    Outcome,
    Speed,
    best_of_ours,
    best_peer,
    command,
    conversions,
    tools,
)
from benchmarks.process import Run, measure
from benchmarks.zoo import find_evaluator, find_samples, metric_of
from graphopt.errors import GraphoptError
from graphopt.reader import load
from graphopt.runtime.session import open_session, optimized_model
from graphopt.samples import open_samples

_TIMED = 4  # samples


@click.group()
def main() -> None:
    """Compare int8 quantizers."""


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("results", type=click.Path(file_okay=False, path_type=Path))
@click.option("--only", default="*", help="Glob of model names.")
@click.option("--tool", "wanted", default="*", help="Glob of tools.")
@click.option("--python", "peers", default=sys.executable, help="Interpreter that has the peers installed.")
@click.option("--evaluator", "assigned", multiple=True, help="NAME=X: judge model NAME with eval_X.py.")
def make(folder: Path, results: Path, only: str, wanted: str, peers: str, assigned: tuple[str, ...]) -> None:
    """Quantize the models of FOLDER and keep what comes out in RESULTS."""
    evaluators = dict(item.split("=", 1) for item in assigned)
    for model, samples, evaluator in _models(folder, only, evaluators):
        kept = results / model.stem
        kept.mkdir(parents=True, exist_ok=True)
        for tool in ("float", CALIBRATION, *tools(model.stem)):
            figures = kept / f"{tool}.json"
            if figures.exists() or not fnmatch.fnmatch(tool, wanted):
                continue
            if tool == CALIBRATION:
                _keep_calibration(model, samples, figures)
                continue
            outcome = (
                _float(model, evaluator) if tool == "float" else _made(tool, peers, model, samples, evaluator, kept)
            )
            outcome.write(figures)
            click.echo(f"{model.stem}, {tool}: {outcome.error or outcome.metric}, {outcome.seconds:.1f} s", err=True)


@main.command("time")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", default="*", help="Glob of model names.")
@click.option("--seconds", default=2.0, show_default=True, help="Seconds to time each result for.")
def time_(folder: Path, results: Path, only: str, seconds: float) -> None:
    """Time what is in RESULTS against the models of FOLDER, and ours against the best peer's."""
    for name in sorted(path.name for path in results.iterdir() if fnmatch.fnmatch(path.name, only)):
        model, samples = folder / "models" / f"{name}.onnx", find_samples(folder, name)
        assert samples is not None
        made = {tool: item for tool, item in outcomes(results / name).items() if tool != "float" and not item.error}
        files = {tool: results / name / f"{tool}.onnx" for tool in made} | {"float": model}
        speeds = {tool: _speed(model, files[tool], samples, seconds) for tool in made}
        best = best_peer(outcomes(results / name), speeds)
        mine = best_of_ours(outcomes(results / name), speeds, best)
        ours = _speed(files[best], files[mine], samples, seconds) if mine in made else None
        figures = {
            "speeds": {tool: asdict(speed) for tool, speed in speeds.items()},
            "best": best,
            "mine": mine,
            "ours": None if ours is None else asdict(ours),
        }
        (results / name / "latency.json").write_text(json.dumps(figures, indent=1) + "\n")
        click.echo(f"{name}: {figures}", err=True)


@main.command("race")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("results", type=click.Path(file_okay=False, path_type=Path))
@click.option("--only", default="*", help="Glob of model names.")
@click.option("--rounds", default=3, show_default=True, help="Runs of each tool.")
@click.option("--python", "peers", default=sys.executable, help="Interpreter that has the peers installed.")
def race_(folder: Path, results: Path, only: str, rounds: int, peers: str) -> None:
    """Time whole runs, in turn, and keep the times in RESULTS."""
    for model in sorted((folder / "models").glob(f"{only}.onnx")):
        samples = find_samples(folder, model.stem)
        if samples is None:
            continue
        (results / model.stem).mkdir(parents=True, exist_ok=True)
        write(race(model, samples, peers, rounds), results / model.stem / RACE)


@main.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path))
def table(results: Path, markdown: Path | None) -> None:
    """Print the tables of RESULTS."""
    text = render({path.parent.name: path.parent for path in sorted(results.glob("*/float.json"))}, outcomes)
    click.echo(text)
    if markdown is not None:
        markdown.write_text(text + "\n")


def outcomes(folder: Path) -> dict[str, Outcome]:
    """Return what is kept of one model, the tools in the order of trying."""
    files = {tool: folder / f"{tool}.json" for tool in ("float", *tools(folder.name))}
    return {tool: Outcome.read(path) for tool, path in files.items() if path.exists()}


def _models(folder: Path, only: str, evaluators: Mapping[str, str]) -> Iterator[tuple[Path, Path, Path]]:
    for model in sorted((folder / "models").glob("*.onnx")):
        samples = find_samples(folder, model.stem)
        evaluator = find_evaluator(folder, model.stem, evaluators.get(model.stem))
        if fnmatch.fnmatch(model.stem, only) and samples is not None and evaluator is not None:
            yield model, samples, evaluator


def _float(model: Path, evaluator: Path) -> Outcome:
    return Outcome("float", model.stat().st_size, metric_of(evaluator, model), 0, 0, 0.0, 0.0, 0)


def _made(tool: str, peers: str, model: Path, samples: Path, evaluator: Path, kept: Path) -> Outcome:
    output = kept / f"{tool}.onnx"
    run = measure(command(tool, peers, model, output, samples))
    if run.status != 0 or not output.exists():
        lines = run.output.strip().splitlines() or [f"exit status {run.status}"]
        return _failed(tool, run, lines[-1])
    try:
        result = load(output)
        left, inside = conversions(optimized_model(result).graph, result.opset)
        metric = metric_of(evaluator, output)
    except (GraphoptError, click.ClickException) as error:
        return _failed(tool, run, f"the result does not run: {error}")
    steps = _steps(output.with_suffix(".report.json"))
    nbytes, costs = output.stat().st_size, (run.seconds, run.cpu_seconds, run.peak_bytes)
    return Outcome(tool, nbytes, metric, left, inside, *costs, steps)


def _failed(tool: str, run: Run, why: str) -> Outcome:
    return Outcome(tool, None, None, 0, 0, run.seconds, run.cpu_seconds, run.peak_bytes, (), why[:200])


def _steps(report: Path) -> tuple[str, ...]:
    if not report.exists():
        return ()
    steps = json.loads(report.read_text())["steps"]
    return tuple(f"{step['spec']}: {step['outcome']}" for step in steps)


def _keep_calibration(model: Path, samples: Path, figures: Path) -> None:
    run = measure([sys.executable, "-m", "benchmarks.int8_calibration", model, samples])
    if run.status != 0:
        raise click.ClickException(f"calibration of {model.stem} failed: {run.output[-500:]}")
    figures.write_text(run.output.splitlines()[-1] + "\n")


def _speed(before: Path, after: Path, samples: Path, seconds: float) -> Speed:
    feeds = list(open_samples(samples, load(before).interface).take(_TIMED))
    with open_session(before) as first, open_session(after) as second:
        ratio = paired_cpu_ratio(first, second, feeds, seconds=seconds)
    return Speed(ratio.median, ratio.low, ratio.high, ratio.slower)


if __name__ == "__main__":
    main()
