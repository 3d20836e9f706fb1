"""Draw bytes against metric: what `pack` and `quant` reach, and what onnxruntime.quantization does.

    python -m benchmarks.rate_distortion RESULTS [--storage JSON]... --metric MODEL=NAME... --svg FILE [--markdown FILE]

RESULTS is the folder of `benchmarks.int8 make`, JSON what `benchmarks.storage --json` has written; nothing is measured
here. One panel a model: bytes on a logarithmic axis, the metric as it is. Points have the numbers of the table's rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import click

from benchmarks.int8 import outcomes
from benchmarks.storage import read

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 380, 300, 60, 34, 44  # pixels of a panel and of its margins
_COLOURS = {"graphopt": "#1f6feb", "onnxruntime": "#d9730d", "float": "#444444"}


@dataclass(frozen=True)
class Point:
    """A file and its score.

    Attributes:
        maker: Key of `_COLOURS`.
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
    svg.write_text(drawing(panels, chosen))
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


def render(panels: dict[str, list[Point]], metrics: dict[str, str]) -> str:
    """Return the Markdown table."""
    rows = ["| model | point | file | of float | bytes | metric |", "|" + "---|" * 6]
    for model, found in panels.items():
        whole = max(point.nbytes for point in found if point.maker == "float")
        rows += [
            f"| {model} | {number} | {point.maker}: `{point.label}` | 1/{whole / point.nbytes:.1f} | {point.nbytes:,} "
            f"| {metrics[model]} {point.score:.4g} |"
            for number, point in enumerate(found, 1)
        ]
    return "\n".join(rows)


def drawing(panels: dict[str, list[Point]], metrics: dict[str, str]) -> str:
    """Return the panels as SVG, side by side."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH * len(panels)}" height="{_HEIGHT + 24}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, (model, found) in enumerate(panels.items()):
        body = "".join(_panel(model, metrics[model], found))
        parts.append(f'<g transform="translate({number * _WIDTH},0)">{body}</g>')
    for number, (maker, colour) in enumerate(_COLOURS.items()):
        place = 20 + 130 * number
        parts.append(f'<circle cx="{place}" cy="{_HEIGHT + 10}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{place + 10}" y="{_HEIGHT + 14}">{maker}</text>')
    return "\n".join((*parts, "</svg>", ""))


def _panel(model: str, metric: str, found: Sequence[Point]) -> list[str]:
    sizes = [math.log10(point.nbytes) for point in found]
    scores = [point.score for point in found]
    across = _axis(min(sizes), max(sizes), _LEFT, _WIDTH - 20)
    up = _axis(min(scores), max(scores), _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<text x="{_WIDTH / 2}" y="18" text-anchor="middle" font-size="13">{escape(model)}: {escape(metric)}</text>',
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 6}" text-anchor="middle">bytes of the file</text>',
    ]
    for score in (min(scores), (min(scores) + max(scores)) / 2, max(scores)):
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 20}" y1="{up(score)}" y2="{up(score)}" stroke="#dddddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{up(score) + 4}" text-anchor="end">{score:.3g}</text>')
    for size in (min(sizes), max(sizes)):
        nbytes = f"{10**size / 1e6:.2f} MB"
        parts.append(f'<text x="{across(size)}" y="{_HEIGHT - 24}" text-anchor="middle">{nbytes}</text>')
    for number, point in enumerate(found, 1):
        x, y = across(math.log10(point.nbytes)), up(point.score)
        parts.append(f'<circle cx="{x}" cy="{y}" r="5" fill="{_COLOURS[point.maker]}">')
        parts.append(f"<title>{escape(point.label)}</title></circle>")
        parts.append(f'<text x="{x + 7}" y="{y - 6}">{number}</text>')
    return parts


def _axis(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Return what takes a value between `low` and `high` to a pixel between `start` and `end`, with a margin."""
    margin = (end - start) * 0.08

    def place(value: float) -> float:
        part = (value - low) / (high - low) if high > low else 0.5
        return round(start + margin + part * (end - start - 2 * margin), 1)

    return place


if __name__ == "__main__":
    main()
