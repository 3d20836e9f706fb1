"""Compress every model of a folder and tabulate size, latency, metric, wall time and peak memory.

    python -m benchmarks.zoo FOLDER [--passes SPEC] [--only GLOB] [--random] [--json FILE] [--markdown FILE]

Layout of FOLDER: ``models/NAME.onnx``; ``calib/NAME.npz`` or ``calib/NAME/`` with samples; and, where a real metric
exists, an evaluator ``eval_X.py`` that prints a line ``JSON {...}`` for the model file it is given. X is a prefix of
NAME, or is assigned with ``--evaluator NAME=X``. With ``--random``, models without samples get made-up ones.
"""

from __future__ import annotations

import fnmatch
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.process import Run, measure

DEFAULT_PASSES = "fold,share,prune:ratio=0.3,quant"
_NOT_METRICS = frozenset(
    {"model", "n", "chars", "lines", "frames", "pos", "gt", "pages", "classes", "n_pairs", "n_tokens", "chance"}
)


@dataclass(frozen=True)
class Row:
    """Figures of one model; sizes in bytes, times in seconds."""

    model: str
    status: int
    before_bytes: int
    after_bytes: int | None
    before_zstd: int | None
    after_zstd: int | None
    nodes: tuple[int, int] | None
    latency: tuple[float, float, float] | None
    drop: Mapping[str, Any] | None
    metric_before: Mapping[str, float] | None
    metric_after: Mapping[str, float] | None
    steps: tuple[str, ...]
    seconds: float
    peak_bytes: int
    message: str


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--passes", default=DEFAULT_PASSES, show_default=True, help="Pipeline to run.")
@click.option("--only", default="*", help="Glob of model names.")
@click.option("--evaluator", "assigned", multiple=True, help="NAME=X: judge model NAME with eval_X.py.")
@click.option("--max-drop", default="1%", show_default=True)
@click.option("--random", "made_up", is_flag=True, help="Make samples up where there are none.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="Keep the compressed models here.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path))
def main(
    folder: Path,
    passes: str,
    only: str,
    assigned: tuple[str, ...],
    max_drop: str,
    made_up: bool,
    keep: Path | None,
    json_file: Path | None,
    markdown: Path | None,
) -> None:
    """Compress every model of FOLDER and print a table."""
    evaluators = dict(item.split("=", 1) for item in assigned)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        target = keep or Path(scratch)
        target.mkdir(parents=True, exist_ok=True)
        for model in sorted((folder / "models").glob("*.onnx")):
            if fnmatch.fnmatch(model.stem, only):
                row = compress(folder, model, target, passes, max_drop, evaluators.get(model.stem), made_up=made_up)
                rows.append(row)
                click.echo(line(row), err=True)
    table = render(rows, passes, max_drop)
    click.echo(table)
    if markdown is not None:
        markdown.write_text(table + "\n")
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    failed = [row.model for row in rows if row.status != 0]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def compress(
    folder: Path, model: Path, target: Path, passes: str, max_drop: str, assigned: str | None, *, made_up: bool = False
) -> Row:
    """Run the command on one model, then the model's evaluator on both files."""
    output, report_file = target / model.name, target / f"{model.stem}.json"
    command: list[str | Path] = [sys.executable, "-m", "graphopt", model, "-p", passes, "-o", output, "-q"]
    command += ["--max-drop", max_drop, "--report", report_file]
    samples = find_samples(folder, model.stem)
    if samples is not None or made_up:
        command += ["--data", samples or "random"]
    run = measure(command)
    if run.status != 0:
        return _failed(model, run)
    report = json.loads(report_file.read_text())
    evaluator = find_evaluator(folder, model.stem, assigned)
    return _row(model, run, report, metric_of(evaluator, model), metric_of(evaluator, output))


def find_samples(folder: Path, name: str) -> Path | None:
    """Return the calibration samples of a model, or None."""
    candidates = (folder / "calib" / f"{name}.npz", folder / "calib" / name)
    return next((path for path in candidates if path.exists()), None)


def find_evaluator(folder: Path, name: str, assigned: str | None) -> Path | None:
    """Return the evaluator of a model: the assigned one, else the one with the longest matching prefix."""
    if assigned is not None:
        return folder / f"eval_{assigned}.py"
    fitting = [path for path in folder.glob("eval_*.py") if name.startswith(path.stem.removeprefix("eval_"))]
    return max(fitting, key=lambda path: len(path.stem), default=None)


def metric_of(evaluator: Path | None, model: Path) -> dict[str, float] | None:
    """Return what the evaluator prints, counts and absolute times left out."""
    if evaluator is None:
        return None
    run = measure([sys.executable, evaluator.resolve(), model.resolve()], cwd=evaluator.parent)
    found = [text.removeprefix("JSON ") for text in run.output.splitlines() if text.startswith("JSON ")]
    if run.status != 0 or not found:
        raise click.ClickException(f"{evaluator.name} failed on {model}: {run.output[-500:]}")
    values = json.loads(found[-1])
    return {key: value for key, value in values.items() if key not in _NOT_METRICS and "ms" not in key.split("_")}


def _failed(model: Path, run: Run) -> Row:
    message = run.output.strip().splitlines()[-1] if run.output.strip() else f"exit status {run.status}"
    nothing = dict.fromkeys(
        ("after_bytes", "before_zstd", "after_zstd", "nodes", "latency", "drop", "metric_before", "metric_after")
    )
    return Row(
        model=model.stem,
        status=run.status,
        before_bytes=model.stat().st_size,
        steps=(),
        seconds=run.seconds,
        peak_bytes=run.peak_bytes,
        message=message,
        **nothing,
    )


def _row(
    model: Path, run: Run, report: Mapping[str, Any], before: dict[str, float] | None, after: dict[str, float] | None
) -> Row:
    first, last = report["before"], report["after"]
    latency = next((timing["ratio"] for timing in report["timings"] if timing["ratio"]), None)
    return Row(
        model=model.stem,
        status=run.status,
        before_bytes=first["nbytes"],
        after_bytes=last["nbytes"],
        before_zstd=first["zstd_nbytes"],
        after_zstd=last["zstd_nbytes"],
        nodes=(first["nodes"], last["nodes"]),
        latency=(latency["median"], latency["low"], latency["high"]) if latency else None,
        drop=report.get("drop"),
        metric_before=before,
        metric_after=after,
        steps=tuple(_step(step) for step in report["steps"]),
        seconds=run.seconds,
        peak_bytes=run.peak_bytes,
        message="",
    )


def _step(step: Mapping[str, Any]) -> str:
    return f"{step['spec']}: {step['outcome']}" + (f" ({step['reason']})" if step["reason"] else "")


def line(row: Row) -> str:
    """Return the row as one line of a Markdown table."""
    if row.status != 0:
        return f"| {row.model} | FAILED: {row.message} | | | | | | |"
    assert row.after_bytes is not None
    assert row.after_zstd is not None
    assert row.before_zstd
    assert row.nodes is not None
    latency = "-" if row.latency is None else "{:.2f} ({:.2f}-{:.2f})".format(*row.latency)
    cells = (
        row.model,
        f"{row.before_bytes / 1e6:.2f} -> {row.after_bytes / 1e6:.2f} MB ({row.after_bytes / row.before_bytes:.2f})",
        f"{row.after_zstd / row.before_zstd:.2f}",
        f"{row.nodes[0]} -> {row.nodes[1]}",
        latency,
        _metrics(row.metric_before, row.metric_after) or _agreement(row.drop),
        f"{row.seconds:.1f} s, {row.peak_bytes / 1e6:.0f} MB",
        "; ".join(row.steps),
    )
    return "| " + " | ".join(cells) + " |"


def _metrics(before: Mapping[str, float] | None, after: Mapping[str, float] | None) -> str:
    if before is None or after is None:
        return ""
    return ", ".join(f"{key} {before[key]:.4g} -> {after[key]:.4g}" for key in before)


def _agreement(drop: Mapping[str, Any] | None) -> str:
    return "-" if drop is None else f"agreement lost {drop['value']:.2%}" + (", random inputs" * bool(drop["random"]))


def render(rows: Iterable[Row], passes: str, max_drop: str) -> str:
    """Return the Markdown table."""
    head = "| model | file | zstd ratio | nodes | latency ratio (95 %) | metric | wall, peak memory | passes |"
    rule = "|" + "---|" * 8
    return "\n".join((f"`-p {passes} --max-drop {max_drop}`", "", head, rule, *(line(row) for row in rows)))


if __name__ == "__main__":
    main()
