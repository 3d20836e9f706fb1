"""Pack the models of a folder in several modes and tabulate size, load time, latency and metric.

    python -m benchmarks.storage FOLDER [--only GLOB] [--mode SPEC]... [--max-drop 1%] [--add JSON]... [--json FILE]
        [--against FOLDER] [--keep FOLDER] [--markdown FILE]

Layout of FOLDER as for `benchmarks.zoo`. `--add` puts results of earlier runs into the table, so that one model can be
measured at a time. `--against` compares with the models of another folder, of which those of FOLDER were made: what one
command has pruned, the next one packs, each within a limit of its own. Load time and peak memory are those of a fresh
process that imports only onnxruntime and opens the file; the latency ratio is graphopt's own, paired, of the last
command. The column of zstd compares what is left of both files at level 19. That of integer kernels counts them in the
graph that ONNX Runtime runs: of the result with plain weights, and of the result. That of packing is wall time and peak
memory of the command.
"""

from __future__ import annotations

import fnmatch
import json
import statistics
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import zstandard

from benchmarks.process import measure
from benchmarks.zoo import Row, compress, find_evaluator, metric_of
from graphopt.passes.pack.unpack import unpack
from graphopt.reader import load
from graphopt.runtime.session import op_counts, optimized_model

MODES = (
    "fold,share,prune:ratio=0.3,pack",
    "fold,share,pack:bits=8",
    "fold,share,pack:bits=6",
    "fold,share,pack:bits=5",
    "fold,share,pack:bits=4",
    "fold,share,pack:bits=auto",
)
_ZSTD = 19  # level: what a download server would take
_INTEGER = (
    "QLinear",
    "QGemm",
    "Integer",
    "DynamicQuantizeMatMul",
    "MatMulNBits",
    "QAttention",
)  # parts of kernels' names
_OPENINGS = 5  # fresh processes a file; the median counts
_OPEN = """
import sys, time
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
start = time.perf_counter()
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
print("SECONDS", time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Loading:
    """What opening a file takes in a fresh process.

    Attributes:
        seconds: Median wall time of making the session.
        peak_bytes: Least peak resident set of the process, libraries included.
    """

    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Result:
    """One model in one mode.

    Attributes:
        mode: Passes.
        row: What the command reported.
        before: Opening the input.
        after: Opening the result; None if there is none.
        zstd_before: Bytes of the input after zstd.
        zstd_after: Bytes of the result after zstd.
        kernels: Integer kernels that run, of the result with plain weights and of the result.
    """

    mode: str
    row: Row
    before: Loading
    after: Loading | None
    zstd_before: int | None = None
    zstd_after: int | None = None
    kernels: tuple[int, int] = (0, 0)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", default="*", help="Glob of model names.")
@click.option("--mode", "modes", multiple=True, default=MODES, show_default=True, help="Pipeline; may be repeated.")
@click.option("--evaluator", "assigned", multiple=True, help="NAME=X: judge model NAME with eval_X.py.")
@click.option("--max-drop", default="1%", show_default=True)
@click.option("--add", "earlier", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="Keep the results here.")
@click.option("--against", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path))
def main(
    folder: Path,
    only: str,
    modes: tuple[str, ...],
    assigned: tuple[str, ...],
    max_drop: str,
    earlier: tuple[Path, ...],
    keep: Path | None,
    against: Path | None,
    json_file: Path | None,
    markdown: Path | None,
) -> None:
    """Pack every model of FOLDER in every mode and print a table."""
    evaluators = dict(item.split("=", 1) for item in assigned)
    results = [result for path in earlier for result in read(path)]
    with tempfile.TemporaryDirectory() as scratch:
        target = keep or Path(scratch)
        target.mkdir(parents=True, exist_ok=True)
        for model in sorted((folder / "models").glob("*.onnx")):
            if fnmatch.fnmatch(model.stem, only):
                for mode in modes:
                    evaluator = evaluators.get(model.stem)
                    row, first = compress(folder, model, target, mode, max_drop, evaluator), model
                    if against is not None:
                        first = against / "models" / model.name
                        row = beside(row, first, find_evaluator(folder, model.stem, evaluator))
                    results.append(measured(mode, row, first, target / model.name))
                    click.echo(line(results[-1]), err=True)
    table = render(results, max_drop)
    click.echo(table)
    if markdown is not None:
        markdown.write_text(table + "\n")
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")


def read(path: Path) -> list[Result]:
    """Return the results that `--json` has written."""
    return [
        Result(
            item["mode"],
            Row(**item["row"]),
            Loading(**item["before"]),
            None if item["after"] is None else Loading(**item["after"]),
            item.get("zstd_before"),
            item.get("zstd_after"),
            tuple(item.get("kernels", (0, 0))),
        )
        for item in json.loads(path.read_text())
    ]


def beside(row: Row, first: Path, evaluator: Path | None) -> Row:
    """Return a row with the bytes and the metric of another input."""
    return replace(row, before_bytes=first.stat().st_size, metric_before=metric_of(evaluator, first))


def measured(mode: str, row: Row, model: Path, output: Path) -> Result:
    """Return what can be seen of a model and what became of it."""
    before, dense = loading(model), compressed_bytes(model)
    if row.status != 0:
        return Result(mode, row, before, None, dense)
    return Result(mode, row, before, loading(output), dense, compressed_bytes(output), integer_kernels(output))


def integer_kernels(path: Path) -> tuple[int, int]:
    """Return how many integer kernels run of a model with plain weights, and of the model as it is."""
    model = load(path)
    plain = model.copy()
    unpack(plain)
    first, second = (
        sum(count for op, count in op_counts(optimized_model(each)).items() if any(part in op for part in _INTEGER))
        for each in (plain, model)
    )
    return first, second


def loading(model: Path) -> Loading:
    """Open a file in fresh processes and return what that took."""
    runs = [measure([sys.executable, "-c", _OPEN, model.resolve()], cwd=model.parent) for _ in range(_OPENINGS)]
    failed = next((run for run in runs if run.status != 0), None)
    if failed is not None:
        raise click.ClickException(f"onnxruntime does not open {model}: {failed.output[-500:]}")
    seconds = statistics.median(float(run.output.split("SECONDS")[1]) for run in runs)
    return Loading(seconds, min(run.peak_bytes for run in runs))


def compressed_bytes(model: Path) -> int:
    """Return the bytes of a file after zstd at level 19."""
    return len(zstandard.ZstdCompressor(level=_ZSTD, threads=-1).compress(model.read_bytes()))


def line(result: Result) -> str:
    """Return one line of the table."""
    row, before, after = result.row, result.before, result.after
    if after is None or row.after_bytes is None:
        return f"| {row.model} | {result.mode} | FAILED: {row.message} | | | | | | | | |"
    latency = "-" if row.latency is None else "{:.2f} ({:.2f}-{:.2f})".format(*row.latency)
    first, last = row.metric_before or {}, row.metric_after or {}
    cells = (
        row.model,
        f"`{result.mode}`",
        f"{row.after_bytes / row.before_bytes:.3f} (1/{row.before_bytes / row.after_bytes:.1f})",
        "-" if not result.zstd_before or result.zstd_after is None else f"{result.zstd_after / result.zstd_before:.3f}",
        f"{after.seconds / before.seconds:.2f} ({before.seconds:.3f} -> {after.seconds:.3f} s)",
        f"{after.peak_bytes / before.peak_bytes:.2f}",
        latency,
        "{} -> {}".format(*result.kernels) if any(result.kernels) else "-",
        ", ".join(f"{key} {first[key]:.4g} -> {last[key]:.4g}" for key in first) or "-",
        "; ".join(row.steps),
        f"{row.seconds:.0f} s, {row.peak_bytes / 1e6:.0f} MB",
    )
    return "| " + " | ".join(cells) + " |"


def render(results: Iterable[Result], max_drop: str) -> str:
    """Return the Markdown table."""
    results = list(results)
    columns = ("model", "passes", "file", "zstd -19", "load time", "load memory", "latency (95 %)", "integer kernels")
    head = "| " + " | ".join((*columns, "metric", "steps", "packing")) + " |"
    table = (f"`--max-drop {max_drop}`", "", head, "|" + "---|" * 11, *(line(result) for result in results))
    return "\n".join((*table, "", *means(results)))


def means(results: Iterable[Result]) -> list[str]:
    """Return one line a mode: how much smaller its files are, on geometric average."""
    ratios: dict[str, list[float]] = {}
    for result in results:
        if result.row.after_bytes:
            ratios.setdefault(result.mode, []).append(result.row.before_bytes / result.row.after_bytes)
    return [
        f"`{mode}`: 1/{statistics.geometric_mean(found):.2f} of the file, geometric mean of {len(found)} models"
        for mode, found in ratios.items()
    ]


if __name__ == "__main__":
    main()
