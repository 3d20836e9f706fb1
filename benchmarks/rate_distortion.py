"""Draw bytes against metric: what `pack` and `quant` reach, and what onnxruntime.quantization does.

    python -m benchmarks.rate_distortion RESULTS [--storage JSON]... --metric MODEL=NAME... --svg FILE [--markdown FILE]

RESULTS is the folder of `benchmarks.int8 make`, JSON what `benchmarks.storage --json` has written; nothing is measured
here. One panel a model: bytes on a logarithmic axis, the metric so that up is better. A point that is far worse than
all others is in the table only; of points that lie on each other one has its label.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks.int8 import outcomes
from benchmarks.plots import COLOURS, figure, save
from benchmarks.storage import read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = {"graphopt": "o", "onnxruntime": "s", "float": "D"}
_MAKERS = {"graphopt": "graphopt", "ORT": "onnxruntime"}  # by the first letters of a tool
_FAR = 5  # times as far from the original as the next: such a point would leave no room for the others
_WIDE, _HIGH = 0.22, 0.04  # of a panel that a label takes up
_LOWER_IS_BETTER = frozenset({"nll", "perplexity"})
_PREFIXES = ("fold,", "share,", "prune:pattern=", "pack:")  # left out of labels: what all have in common


@dataclass(frozen=True)
class Point:
    """A file and its score.

    Attributes:
        maker: Key of `COLOURS`.
        label: Passes or tool.
        nbytes: Bytes of the file.
        score: The metric.
    """

    maker: str
    label: str
    nbytes: int
    score: float


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--storage", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--metric", "metrics", multiple=True, required=True, help="MODEL=NAME: the metric to draw.")
@click.option("--svg", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path))
def main(results: Path, storage: tuple[Path, ...], metrics: tuple[str, ...], svg: Path, markdown: Path | None) -> None:
    """Draw one panel a model, and print the points as a table."""
    chosen = dict(item.split("=", 1) for item in metrics)
    panels = {model: points(model, name, results, storage) for model, name in chosen.items()}
    draw(panels, chosen, svg)
    table = render(panels, chosen)
    click.echo(table)
    if markdown is not None:
        markdown.write_text(table + "\n")


def points(model: str, metric: str, results: Path, storage: Sequence[Path]) -> list[Point]:
    """Return the files of one model, the smallest first."""
    found = []
    for tool, made in outcomes(results / model).items():
        if made.metric and made.nbytes:
            maker = next((maker for start, maker in _MAKERS.items() if tool.startswith(start)), tool)
            label = tool.replace("graphopt", "quant", 1) if maker == "graphopt" else tool
            found.append(Point(maker, label, made.nbytes, made.metric[metric]))
    for result in (item for path in storage for item in read(path)):
        if result.row.model == model and result.row.after_bytes and result.row.metric_after:
            score = result.row.metric_after[metric]
            found.append(Point("graphopt", result.mode, result.row.after_bytes, score))
    return sorted(found, key=lambda point: point.nbytes)


def render(panels: Mapping[str, Sequence[Point]], metrics: Mapping[str, str]) -> str:
    """Return the Markdown table."""
    rows = ["| model | made by | file | of float | bytes | metric |", "|" + "---|" * 6]
    for model, found in panels.items():
        whole = max(point.nbytes for point in found if point.maker == "float")
        rows += [
            f"| {model} | {point.maker} | `{point.label}` | 1/{whole / point.nbytes:.1f} | {point.nbytes:,} "
            f"| {metrics[model]} {point.score:.4g} |"
            for point in found
        ]
    return "\n".join(rows)


def draw(panels: Mapping[str, Sequence[Point]], metrics: Mapping[str, str], path: Path) -> None:
    """Write the panels as SVG, side by side."""
    drawn, axes = figure(len(panels), height=3.6)
    for place, (model, found) in zip(axes, panels.items(), strict=True):
        _panel(place, _near(found), metrics[model])
        place.set_title(model, fontsize=10)
    axes[0].legend(loc="lower right", fontsize=7)
    save(drawn, path)


def _panel(axes: Axes, found: Sequence[Point], metric: str) -> None:
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    for maker, colour in COLOURS.items():
        mine = [point for point in found if point.maker == maker]
        sizes, scores = [point.nbytes / 1e6 for point in mine], [point.score for point in mine]
        axes.scatter(sizes, scores, s=28, c=colour, marker=_MARKERS[maker], label=maker, zorder=3)
    for point in _told(found):
        where = (point.nbytes / 1e6, point.score)
        axes.annotate(_short(point.label), where, (4, 4), textcoords="offset points", fontsize=6)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("MB")
    axes.set_ylabel(metric)
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    if metric in _LOWER_IS_BETTER:
        axes.invert_yaxis()


def _near(found: Sequence[Point]) -> list[Point]:
    """Return the points without one that is far worse than all others, which only the table shows."""
    whole = next(point.score for point in found if point.maker == "float")
    *others, last = sorted(found, key=lambda point: abs(point.score - whole))
    return others if abs(last.score - whole) > _FAR * abs(others[-1].score - whole) else list(found)


def _told(found: Sequence[Point]) -> list[Point]:
    """Return the points that get a label: none beside another one that has its own."""
    scores, sizes = [point.score for point in found], [math.log(point.nbytes) for point in found]
    high, wide = max(scores) - min(scores), max(sizes) - min(sizes)
    told: list[Point] = []
    for point in found:
        if not any(
            abs(math.log(point.nbytes / other.nbytes)) < _WIDE * wide and abs(point.score - other.score) < _HIGH * high
            for other in told
        ):
            told.append(point)
    return told


def _short(label: str) -> str:
    for prefix in _PREFIXES:
        label = label.replace(prefix, "")
    return "" if label == "float" else label.removeprefix("ORT ").removeprefix("graphopt ")


if __name__ == "__main__":
    main()
