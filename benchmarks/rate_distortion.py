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
from benchmarks.plots import COLOURS, figure, save
from benchmarks.storage import read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = {"graphopt": "o", "onnxruntime": "s", "float": "D"}
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
            maker = tool if tool == "float" else tool.split(" ")[0].replace("ORT", "onnxruntime")
            found.append(Point(maker, "quant" if tool == "graphopt" else tool, made.nbytes, made.metric[metric]))
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
        _panel(place, found, metrics[model])
        place.set_title(model, fontsize=10)
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
    axes.set_xlabel("MB")
    axes.set_ylabel(metric)
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    if metric in _LOWER_IS_BETTER:
        axes.invert_yaxis()


def _told(found: Sequence[Point]) -> list[Point]:
    """Return the points that get a label: of those at one place only the first."""
    places: dict[tuple[str, float, float], Point] = {}
    for point in found:
        places.setdefault((point.maker, round(point.nbytes, -4), round(point.score, 3)), point)
    return list(places.values())


def _short(label: str) -> str:
    for prefix in _PREFIXES:
        label = label.replace(prefix, "")
    return "" if label == "float" else label.removeprefix("ORT ").removeprefix("graphopt ")


if __name__ == "__main__":
    main()
