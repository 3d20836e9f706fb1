"""Draw bytes against metric: what `pack` and `quant` reach, and what onnxruntime.quantization does.

    python -m benchmarks.rate_distortion RESULTS [--storage JSON]... --metric MODEL=NAME... --svg FILE [--markdown FILE]

RESULTS is the folder of `benchmarks.int8 make`, JSON what `benchmarks.storage --json` has written; nothing is measured
here. One panel a model: bytes on a logarithmic axis, the metric so that up is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks.int8 import outcomes
from benchmarks.int8_tools import OURS
from benchmarks.plots import COLOURS, figure, save
from benchmarks.storage import read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAKERS = {OURS: "graphopt", "ORT": "onnxruntime", "float": "float"}  # by how names of tools begin
_MARKERS = {"graphopt": "o", "onnxruntime": "s", "float": "D"}
_TOGETHER = 0.04  # of the range of scores, and three times that of bytes
_REACH = 4  # times what our own files lose at most
_TICKS = tuple(digit * 10.0**power for power in range(-2, 4) for digit in (1, 2, 5))  # MB
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
            maker = next(maker for start, maker in _MAKERS.items() if tool.startswith(start))
            found.append(Point(maker, tool.replace(OURS, "quant"), made.nbytes, made.metric[metric]))
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
        inside = _inside(found)
        _panel(place, inside, metrics[model])
        outside = f" ({len(found) - len(inside)} far below)" * (len(inside) < len(found))
        place.set_title(model + outside, fontsize=10)
    axes[0].legend(loc="lower right", fontsize=7)
    save(drawn, path)


def _panel(axes: Axes, found: Sequence[Point], metric: str) -> None:
    for maker, colour in COLOURS.items():
        mine = [point for point in found if point.maker == maker]
        sizes, scores = [point.nbytes / 1e6 for point in mine], [point.score for point in mine]
        axes.scatter(sizes, scores, s=28, c=colour, marker=_MARKERS[maker], label=maker, zorder=3)
    for point in _told(found):
        where = (point.nbytes / 1e6, point.score)
        axes.annotate(_short(point.label), where, (4, 4), textcoords="offset points", fontsize=6)
    axes.set_xscale("log")
    sizes = [point.nbytes / 1e6 for point in found]
    ticks = [tick for tick in _TICKS if min(sizes) / 1.2 < tick < 1.2 * max(sizes)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("MB")
    axes.set_ylabel(metric)
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    if metric in _LOWER_IS_BETTER:
        axes.invert_yaxis()


def _inside(found: Sequence[Point]) -> list[Point]:
    """Return all points but those so much worse than the float model that the others would lie on one line."""
    whole = next(point.score for point in found if point.maker == "float")
    reach = _REACH * max(abs(point.score - whole) for point in found if point.maker == "graphopt")
    return [point for point in found if abs(point.score - whole) <= reach]


def _told(found: Sequence[Point]) -> list[Point]:
    """Return the points that get a label: of those that lie together only the first."""
    scores = [point.score for point in found]
    near = _TOGETHER * (max(scores) - min(scores))
    told: list[Point] = []
    for point in found:
        if not any(point.nbytes < (1 + 3 * _TOGETHER) * other.nbytes and abs(point.score - other.score) < near
                   for other in told):  # fmt: skip
            told.append(point)
    return told


def _short(label: str) -> str:
    for prefix in _PREFIXES:
        label = label.replace(prefix, "")
    return "" if label == "float" else label.removeprefix("ORT ")


if __name__ == "__main__":
    main()
