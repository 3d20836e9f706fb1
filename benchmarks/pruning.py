"""Structured pruning at equal multiply-accumulates: ours, with and without fitting, beside L1 filters and onnxsim.

    python -m benchmarks.pruning make FOLDER KEEP [--only GLOB] [--ratio 0.15 --ratio 0.3] [--python PEERS]
    python -m benchmarks.pruning table FOLDER KEEP [--latency SECONDS] [--markdown FILE]
    python -m benchmarks.pruning gains FOLDER [--only GLOB] [--ratio 0.3] [--markdown FILE]

FOLDER is laid out as for `benchmarks.zoo`. `make` writes every pruned model to KEEP with what it measured beside it,
and passes over what is there already. All contestants start from the same folded model. onnxsim prunes by a fraction of
channels, not of work, so that this fraction is searched; of its two rankings, by weights alone and with samples, both
are tried. Its interpreter is given by ``--python``. `table` times the models in pairs and prints everything. `gains`
runs the whole command with `prune`, with `quant` and with both.
"""

from __future__ import annotations

import fnmatch
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click

from benchmarks.onnxsim_pruning import PEERS, prune_to
from benchmarks.zoo import compress, find_evaluator, find_samples, line, metric_of
from graphopt.context import Context
from graphopt.cost import figures
from graphopt.evaluate import Evaluator
from graphopt.ir.clean import clean
from graphopt.model import Model
from graphopt.passes.fold import Fold
from graphopt.passes.prune import Prune
from graphopt.passes.prune.channels.plan import Plan, make_plan
from graphopt.passes.prune.channels.structured import in_rounds
from graphopt.passes.prune.imagined import imagining
from graphopt.reader import load
from graphopt.runtime.session import open_session
from graphopt.runtime.timing import paired_ratio
from graphopt.samples import Samples, open_samples
from graphopt.shapes import infer_shapes, shapes_for
from graphopt.targets import get_target

OURS, UNFITTED, FILTERS = "ours", "ours, not fitted", "L1 filters"
OPTIONS = {
    OURS: Prune(pattern="channels", of="macs"),
    UNFITTED: Prune(pattern="channels", of="macs", reconstruct=False),
    FILTERS: Prune(pattern="channels", of="macs", criterion="l1", scope="layer", reconstruct=False),
}


@dataclass(frozen=True)
class Entry:
    """One pruned model.

    Attributes:
        model: Name of the original.
        ratio: Wanted fraction of multiply-accumulates to go.
        method: Who pruned.
        macs: Fraction of the multiply-accumulates that is left, on the first sample; None: there is no result.
        metric: What the evaluator prints.
        seconds: Of one core, for planning and pruning; wall time of one run of onnxsim.
        note: Why there is no result.
    """

    model: str
    ratio: float
    method: str
    macs: float | None
    metric: dict[str, float]
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Case:
    """A folded model to be pruned.

    Attributes:
        path: Where the folded model lies.
        data: Where its samples lie.
        context: Has the samples and what was imagined of them.
        seconds: That it took to imagine them.
        plans: What our methods intend, as far as they have been asked, with the seconds that it took.
    """

    path: Path
    model: Model
    data: Path
    context: Context
    seconds: float
    evaluator: Path | None
    plans: dict[str, tuple[Plan, float]] = field(default_factory=dict)

    def plan(self, method: str) -> tuple[Plan, float]:
        """Return what one of our methods intends, made once for all ratios, and the seconds that it took to make."""
        name = OURS if method == UNFITTED else method
        if name not in self.plans:
            start = time.process_time()
            plan = make_plan(self.model, self.context, OPTIONS[name])
            self.plans[name] = plan, time.process_time() - start
        return self.plans[name]

    def macs(self, model: Model) -> int:
        """Return the multiply-accumulates of a version of the model on the first sample."""
        assert self.context.samples is not None
        found = figures(model, shapes_for(model, next(iter(self.context.samples)))).macs
        assert found is not None
        return found


@click.group()
def main() -> None:
    """Compare structured pruning."""


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("keep", type=click.Path(file_okay=False, path_type=Path))
@click.option("--only", default="*", help="Glob of model names.")
@click.option("--ratio", "ratios", type=float, multiple=True, default=(0.15, 0.3), show_default=True)
@click.option("--method", "methods", multiple=True, default=(OURS, UNFITTED, FILTERS, *PEERS), show_default=True)
@click.option("--samples", "count", type=int, default=64, show_default=True, help="How many of them, at most.")
@click.option("--evaluator", "assigned", multiple=True, help="NAME=X: judge model NAME with eval_X.py.")
@click.option("--python", "peers", default=sys.executable, help="Interpreter that has onnxsim.")
def make(
    folder: Path,
    keep: Path,
    only: str,
    ratios: Sequence[float],
    methods: Sequence[str],
    count: int,
    assigned: Sequence[str],
    peers: str,
) -> None:
    """Prune the models of FOLDER into KEEP."""
    evaluators = dict(item.split("=", 1) for item in assigned)
    keep.mkdir(parents=True, exist_ok=True)
    for path in sorted((folder / "models").glob("*.onnx")):
        data = find_samples(folder, path.stem)
        if data is None or not fnmatch.fnmatch(path.stem, only):
            continue
        case = _folded(path, data, keep, count, find_evaluator(folder, path.stem, evaluators.get(path.stem)))
        for ratio in ratios:
            for method in methods:
                _make(case, keep, ratio, method, peers)


def _folded(path: Path, data: Path, keep: Path, count: int, evaluator: Path | None) -> Case:
    model = load(path)
    samples = open_samples(str(data), model.interface, optional=frozenset(model.graph.defaults)).take(count)
    Fold().run(model, _context(model, samples))
    clean(model.graph)
    infer_shapes(model)
    kept = keep / f"{path.stem}.folded.onnx"
    model.save(kept)
    before = keep / f"{path.stem}.before.json"
    if not before.exists():
        before.write_text(json.dumps(metric_of(evaluator, kept)))
    start = time.process_time()
    context = imagining(model, _context(model, samples))
    return Case(kept, model, data, context, time.process_time() - start, evaluator)


def _context(model: Model, samples: Samples) -> Context:
    target = get_target("cpu")
    return Context(target, Evaluator(model, target, samples=samples), samples)


def _make(case: Case, keep: Path, ratio: float, method: str, peers: str) -> None:
    name = case.path.name.removesuffix(".folded.onnx")
    result = keep / f"{name}.{ratio:g}.{method.replace(', ', '-').replace(' ', '-')}.onnx"
    record = result.with_suffix(".json")
    if record.exists():
        return
    note = ""
    if method in PEERS:
        seconds, note = prune_to(case.path, ratio, result, method, case.data, peers, lambda path: case.macs(load(path)))
    else:
        pruned, seconds = _pruned(case, ratio, method)
        pruned.save(result)
    left = None if note else case.macs(load(result)) / case.macs(case.model)
    metric = (None if note else metric_of(case.evaluator, result)) or {}
    record.write_text(json.dumps(asdict(Entry(name, ratio, method, left, metric, seconds, note))))
    click.echo(f"{name} {ratio:g} {method}: {left} of the MACs, {metric}, {seconds:.0f} s {note}", err=True)


def _pruned(case: Case, ratio: float, method: str) -> tuple[Model, float]:
    """Return the pruned model, and the seconds of imagining, planning and carrying out."""
    options = OPTIONS[method]
    plan, planned = case.plan(method)
    model, start = case.model.copy(), time.process_time()
    in_rounds(plan, model, ratio, case.context, options)
    clean(model.graph)
    return model, case.seconds + planned + time.process_time() - start


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("keep", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--latency", "seconds", default=2.0, show_default=True, help="Seconds to time each of our models for.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path))
def table(folder: Path, keep: Path, seconds: float, markdown: Path | None) -> None:
    """Print what `make` has put into KEEP."""
    entries = [Entry(**json.loads(path.read_text())) for path in sorted(keep.glob("*.*.*.json"))]
    text = render(entries, keep, lambda entry: _latency(folder, keep, entry, seconds))
    click.echo(text)
    if markdown is not None:
        markdown.write_text(text + "\n")


def _latency(folder: Path, keep: Path, entry: Entry, seconds: float) -> str:
    """Return the time of our model over that of the folded original, with its 95 % interval."""
    before = load(keep / f"{entry.model}.folded.onnx")
    after = keep / f"{entry.model}.{entry.ratio:g}.{OURS}.onnx"
    data = find_samples(folder, entry.model)
    assert data is not None
    feeds = list(open_samples(str(data), before.interface, optional=frozenset(before.graph.defaults)).take(4))
    with open_session(before) as one, open_session(after) as other:
        ratio = paired_ratio(one, other, feeds, seconds=seconds)
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def render(entries: Sequence[Entry], keep: Path, latency: Callable[[Entry], str]) -> str:
    """Return the Markdown table, a line for each model and ratio."""
    methods = [OURS, UNFITTED, FILTERS, *PEERS]
    head = "| model | ratio | original | " + " | ".join(f"{name}: MACs left, metric" for name in methods)
    head += " | latency of ours | seconds of ours |"
    return "\n".join((head, "|---" * (head.count(" | ") + 1) + "|", *_lines(entries, keep, methods, latency)))


def _lines(
    entries: Sequence[Entry], keep: Path, methods: Sequence[str], latency: Callable[[Entry], str]
) -> Iterator[str]:
    found = {(entry.model, entry.ratio, entry.method): entry for entry in entries}
    for model, ratio in sorted({(entry.model, entry.ratio) for entry in entries}):
        before = json.loads((keep / f"{model}.before.json").read_text()) or {}
        row = [found.get((model, ratio, method)) for method in methods]
        ours = row[0]
        timed = (latency(ours), f"{ours.seconds:.0f}") if ours is not None and ours.macs is not None else ("-", "-")
        yield "| " + " | ".join((model, f"{ratio:.0%}", _metric(before), *map(_cell, row), *timed)) + " |"


def _cell(entry: Entry | None) -> str:
    if entry is None or entry.macs is None:
        return "-" if entry is None else f"none: {entry.note}"
    return f"{entry.macs:.3f}: {_metric(entry.metric)}"


def _metric(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in found.items()) or "-"


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", default="*", help="Glob of model names.")
@click.option("--ratio", default=0.3, show_default=True)
@click.option("--max-drop", default="100%", show_default=True, help="What the command is given.")
@click.option("--evaluator", "assigned", multiple=True, help="NAME=X: judge model NAME with eval_X.py.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path))
def gains(folder: Path, only: str, ratio: float, max_drop: str, assigned: Sequence[str], markdown: Path | None) -> None:
    """Print what `prune`, `quant` and both make of the models of FOLDER."""
    evaluators = dict(item.split("=", 1) for item in assigned)
    prune = f"prune:pattern=channels:of=macs:ratio={ratio:g}"
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for path in sorted((folder / "models").glob("*.onnx")):
            for passes in (prune, "quant", f"{prune},quant") if fnmatch.fnmatch(path.stem, only) else ():
                found = compress(folder, path, Path(scratch), f"fold,{passes}", max_drop, evaluators.get(path.stem))
                rows.append(line(found))
                click.echo(rows[-1], err=True)
    head = "| model | file | zstd ratio | nodes | latency ratio (95 %) | metric | wall, peak memory | passes |"
    text = "\n".join((head, "|" + "---|" * 8, *rows))
    click.echo(text)
    if markdown is not None:
        markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
