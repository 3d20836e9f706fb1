"""Sparse patterns: magnitude beside pruning that compensates, at the same number of zeros.

    python -m benchmarks.sparsity FOLDER KEEP [--only GLOB] [--pattern unstructured --pattern 2of4]
        [--evaluator MODEL=NAME]... [--remark TEXT]... [--markdown FILE]

FOLDER is laid out as for `benchmarks.zoo`. Three of four calibration samples are fitted to; the output error is
measured on the rest: squared error over energy, before a final Softmax. The evaluators' data are used for nothing but
the metric. Rows are kept in KEEP and not measured again; the page has all that lie there.
"""

from __future__ import annotations

import fnmatch
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.machine import described
from benchmarks.zoo import find_evaluator, find_samples, metric_of
from graphopt.context import Context
from graphopt.cost import Figures, figures
from graphopt.evaluate import Evaluator
from graphopt.evaluate.error import OutputError
from graphopt.ir.clean import clean
from graphopt.model import Model
from graphopt.passes.fold import Fold
from graphopt.passes.prune import Prune
from graphopt.reader import load
from graphopt.samples import Samples, open_samples
from graphopt.shapes import infer_shapes
from graphopt.targets import get_target

_JUDGES = 32  # samples that the error is measured on
_TITLE = """# Half of the weights zero: magnitude beside graphopt

    python -m benchmarks.sparsity zoo kept --evaluator efficientnet_lite0=imagenet ... --markdown sparsity.md

{machine}, one thread;
seconds are of the processor. "Error" is the squared error of the outputs over their energy, on samples that nothing
was fitted to. The aim is at most half of magnitude's."""
_HEAD = (
    "| model | pattern | zeros | output error: magnitude | ours | ratio | metric: float | magnitude | ours "
    "| zstd: float | magnitude | ours | seconds |"
)


@dataclass(frozen=True)
class Case:
    """A folded model with its samples in two parts."""

    name: str
    model: Model
    fitted: Samples
    held: Samples
    evaluator: Path | None

    def pruned(self, options: Prune) -> tuple[Model, float, float]:
        """Return the model after the pass, its sparsity and the seconds it took."""
        target, result = get_target("cpu"), self.model.copy()
        infer_shapes(result)
        context = Context(target, Evaluator(self.model, target, samples=self.fitted), self.fitted)
        start = time.process_time()
        report = options.run(result, context)
        return result, report.metrics["sparsity"], time.process_time() - start


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("keep", type=click.Path(file_okay=False, path_type=Path))
@click.option("--only", default="*", help="Glob of model names.")
@click.option("--pattern", "patterns", multiple=True, default=("unstructured", "2of4"), show_default=True)
@click.option("--evaluator", "evaluators", multiple=True, metavar="MODEL=NAME", help="eval_NAME.py judges MODEL.")
@click.option("--remark", "remarks", multiple=True, help="A paragraph above the table.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path))
def main(
    folder: Path,
    keep: Path,
    only: str,
    patterns: tuple[str, ...],
    evaluators: tuple[str, ...],
    remarks: tuple[str, ...],
    markdown: Path | None,
) -> None:
    """Prune every model of FOLDER that has samples, half of its weights, and write a page."""
    assigned = dict(text.split("=", 1) for text in evaluators)
    keep.mkdir(parents=True, exist_ok=True)
    for path in sorted((folder / "models").glob("*.onnx")):
        missing = [item for item in patterns if not _record(keep, path, item).exists()]
        if not missing or not fnmatch.fnmatch(path.stem, only) or find_samples(folder, path.stem) is None:
            continue
        rows = _rows(_case(folder, path, assigned.get(path.stem)), missing)
        for pattern, line in zip(missing, rows, strict=True):
            click.echo(line, err=True)
            _record(keep, path, pattern).write_text(line)
    kept = [record.read_text() for record in sorted(keep.glob("*.row"))]
    table = "\n".join((_HEAD, "|" + "---|" * _HEAD.count(" | ") + "---|", *kept))
    text = "\n\n".join((_TITLE.format(machine=described()), *remarks, table))
    click.echo(text)
    if markdown is not None:
        markdown.write_text(text + "\n")


def _record(keep: Path, model: Path, pattern: str) -> Path:
    return keep / f"{model.stem}.{pattern}.row"


def _case(folder: Path, path: Path, evaluator: str | None = None) -> Case:
    model, source = load(path), find_samples(folder, path.stem)
    samples = open_samples(str(source), model.interface, optional=frozenset(model.graph.defaults))
    target = get_target("cpu")
    Fold().run(model, Context(target, Evaluator(model, target, samples=samples), samples))
    clean(model.graph)
    fitted, held = samples.without_every(4)
    return Case(path.stem, model, fitted, held, find_evaluator(folder, path.stem, evaluator))


def _rows(case: Case, patterns: Sequence[str]) -> Iterator[str]:
    error = OutputError(_before_softmax(case.model), case.held.take(min(_JUDGES, len(case.held))))
    before = (figures(case.model), _metric(case, case.model))
    for pattern in patterns:
        plain = Prune(pattern=pattern, ratio=0.5, scope="layer", criterion="l1", reconstruct=False)
        magnitude, zeros, _ = case.pruned(plain)
        ours, same, seconds = case.pruned(Prune(pattern=pattern, ratio=0.5))
        errors = error(_before_softmax(magnitude)), error(_before_softmax(ours))
        results = [before, *((figures(model), _metric(case, model)) for model in (magnitude, ours))]
        cells = (
            case.name,
            pattern,
            f"{zeros:.1%}, {same:.1%}",
            *(f"{value:.3g}" for value in (*errors, errors[1] / errors[0])),
            *(metric for _, metric in results),
            *(_megabytes(found) for found, _ in results),
            f"{seconds:.0f}",
        )
        yield "| " + " | ".join(cells) + " |"


def _before_softmax(model: Model) -> Model:
    """Return a copy whose outputs are the logits of those that are results of a Softmax, which hides errors."""
    copy = model.copy()
    for index, output in enumerate(copy.graph.outputs):
        if output.inputs and output.inputs[0].op == "Softmax":
            copy.graph.outputs[index] = output.inputs[0].inputs[0]
    infer_shapes(copy)
    return copy


def _metric(case: Case, model: Model) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"{case.name}.onnx"
        model.save(path)
        found = metric_of(case.evaluator, path) or {}
    return ", ".join(f"{name} {value:.4g}" for name, value in found.items()) or "-"


def _megabytes(found: Figures) -> str:
    assert found.zstd_nbytes is not None
    return f"{found.zstd_nbytes / 1e6:.2f} MB"


if __name__ == "__main__":
    main()
