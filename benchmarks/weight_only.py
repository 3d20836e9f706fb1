"""4-bit weights: fitted to what the layers see, against rounding to nearest, judged by the models' own metrics.

    python -m benchmarks.weight_only FOLDER [--only GLOB] [--block N]... [--evaluator NAME=X]... [--markdown FILE]

Layout of FOLDER as for `benchmarks.zoo`. Rounding to nearest is done here, independently of the pass: every weight of
Conv, Gemm, MatMul and every table, ``s = max|w| / 7`` a row (or block), ``q = clip(round(w / s), -8, 7)``.
"""

from __future__ import annotations

import fnmatch
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from benchmarks.zoo import Row, compress, find_evaluator, metric_of
from graphopt.ir.clean import clean
from graphopt.passes.quant.storage.weights import find_weights
from graphopt.reader import load

_BLOCKS = (0, 32, 64)


@dataclass(frozen=True)
class Result:
    """One model with scales per channel (block 0) or block."""

    block: int
    row: Row
    rounded: Mapping[str, float]


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", multiple=True, default=("efficientnet_lite0", "ppocrv6_rec", "minilm_l6"), show_default=True)
@click.option("--block", "blocks", multiple=True, type=int, default=_BLOCKS, show_default=True)
@click.option("--evaluator", "assigned", multiple=True, help="NAME=X: judge model NAME with eval_X.py.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path))
def main(
    folder: Path, only: tuple[str, ...], blocks: tuple[int, ...], assigned: tuple[str, ...], markdown: Path | None
) -> None:
    """Compress the models of FOLDER both ways and print a table."""
    evaluators = dict(item.split("=", 1) for item in assigned)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for model in sorted((folder / "models").glob("*.onnx")):
            if not any(fnmatch.fnmatch(model.stem, pattern) for pattern in only):
                continue
            for block in blocks:
                results.append(_both(folder, model, Path(scratch), block, evaluators.get(model.stem)))
                click.echo(line(results[-1]), err=True)
    table = render(results)
    click.echo(table)
    if markdown is not None:
        markdown.write_text(table + "\n")


def _both(folder: Path, model: Path, scratch: Path, block: int, assigned: str | None) -> Result:
    row = compress(folder, model, scratch, f"fold,share,quant:mode=weights:bits=4:block={block}", "100%", assigned)
    nearest = scratch / f"{model.stem}_nearest.onnx"
    round_to_nearest(model, nearest, block)
    found = metric_of(find_evaluator(folder, model.stem, assigned), nearest)
    nearest.unlink()
    return Result(block, row, found or {})


def round_to_nearest(source: Path, result: Path, block: int) -> None:
    """Write a float model whose weights have 4-bit values."""
    model = load(source)
    clean(model.graph)
    for weight in find_weights(model)[0]:
        matrix = weight.matrix()
        inputs = matrix.shape[-1]
        size = block or inputs
        padded = np.pad(matrix, ((0, 0), (0, 0), (0, -inputs % size)))
        parts = padded.reshape(*matrix.shape[:2], -1, size)
        scale = np.abs(parts).max(axis=-1, keepdims=True) / 7
        scale[scale == 0] = 1
        rounded = (np.clip(np.rint(parts / scale), -8, 7) * scale).reshape(padded.shape)
        weight.constant.values = weight.stored(rounded[..., :inputs])
    model.save(result)


def line(result: Result) -> str:
    """Return one line of the table."""
    row, blocks = result.row, f"blocks of {result.block}" if result.block else "per channel"
    if row.status != 0 or row.after_bytes is None:
        return f"| {row.model} | {blocks} | FAILED: {row.message} | | | | |"
    first, last = row.metric_before or {}, row.metric_after or {}
    latency = "-" if row.latency is None else "{:.2f} ({:.2f}-{:.2f})".format(*row.latency)
    cells = (
        row.model,
        blocks,
        ", ".join(f"{key} {value:.4g}" for key, value in first.items()),
        ", ".join(f"{key} {value:.4g}" for key, value in result.rounded.items()),
        ", ".join(f"{key} {value:.4g}" for key, value in last.items()),
        f"{row.after_bytes / row.before_bytes:.3f} (1/{row.before_bytes / row.after_bytes:.1f})",
        f"{latency}; {row.seconds:.0f} s",
    )
    return "| " + " | ".join(cells) + " |"


def render(results: Iterable[Result]) -> str:
    """Return the Markdown table."""
    head = "| model | scales | float | rounded to nearest | fitted | file | latency (95 %); wall time |"
    return "\n".join((head, "|" + "---|" * 7, *(line(result) for result in results)))


if __name__ == "__main__":
    main()
