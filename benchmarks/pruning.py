"""Structured pruning at equal multiply-accumulates: ours, with and without fitting, beside L1 filters and onnxsim.

    python -m benchmarks.pruning make FOLDER KEEP [--only GLOB] [--ratio 0.15 --ratio 0.3] [--python PEERS]
    python -m benchmarks.pruning gains FOLDER KEEP [--only GLOB] [--ratio 0.3]
    python -m benchmarks.pruning auto FOLDER KEEP [--only GLOB] [--max-drop 5%]
    python -m benchmarks.pruning table FOLDER KEEP [--latency SECONDS] [--remark TEXT ...] [--markdown FILE]

FOLDER is laid out as for `benchmarks.zoo`. `make` writes every pruned model to KEEP with what it measured beside it,
and passes over what is there already. All contestants start from the same folded model. onnxsim prunes by a fraction of
channels, not of work, so that this fraction is searched; of its two rankings, by weights alone and with samples, both
are tried. Its interpreter is given by ``--python``. `gains` runs the whole command with `prune`, with `quant` and with
both, `auto` with as much pruning as the limit allows. `table` times the models in pairs and writes the page.
"""

from __future__ import annotations

import fnmatch
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click

from benchmarks.onnxsim_pruning import PEERS, prune_to
from benchmarks.pruning_page import FILTERS, OURS, UNFITTED, Entry, page
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
from graphopt.reader import load
from graphopt.runtime.session import open_session
from graphopt.runtime.timing import paired_ratio
from graphopt.samples import Samples, open_samples
from graphopt.shapes import infer_shapes, shapes_for
from graphopt.targets import get_target

OPTIONS = {
    OURS: Prune(pattern="channels", of="macs"),
    UNFITTED: Prune(pattern="channels", of="macs", reconstruct=False),
    FILTERS: Prune(pattern="channels", of="macs", criterion="l1", scope="layer", reconstruct=False),
}


@dataclass(frozen=True)
class Case:
    """A folded model to be pruned.

    Attributes:
        path: Where the folded model lies.
        data: Where its samples lie.
        context: Has the samples.
        plans: What our methods intend, as far as they have been asked, with the seconds that it took.
    """

    path: Path
    model: Model
    data: Path
    context: Context
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
    return Case(kept, model, data, _context(model, samples), evaluator)


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
    """Return the pruned model, and the seconds of planning and carrying out."""
    options = OPTIONS[method]
    plan, planned = case.plan(method)
    model, start = case.model.copy(), time.process_time()
    in_rounds(plan, model, ratio, case.context, options)
    clean(model.graph)
    return model, planned + time.process_time() - start


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("keep", type=click.Path(file_okay=False, path_type=Path))
@click.option("--only", default="*", help="Glob of model names.")
@click.option("--ratio", default=0.3, show_default=True)
@click.option("--max-drop", default="100%", show_default=True, help="What the command is given.")
@click.option("--evaluator", "assigned", multiple=True, help="NAME=X: judge model NAME with eval_X.py.")
def gains(folder: Path, keep: Path, only: str, ratio: float, max_drop: str, assigned: Sequence[str]) -> None:
    """Run the whole command with `prune`, with `quant` and with both on the models of FOLDER."""
    prune = f"prune:pattern=channels:of=macs:ratio={ratio:g}"
    _commands(folder, keep, only, [prune, "quant", f"{prune},quant"], max_drop, assigned)


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("keep", type=click.Path(file_okay=False, path_type=Path))
@click.option("--only", default="*", help="Glob of model names.")
@click.option("--max-drop", default="5%", show_default=True, help="What the command is given.")
@click.option("--evaluator", "assigned", multiple=True, help="NAME=X: judge model NAME with eval_X.py.")
def auto(folder: Path, keep: Path, only: str, max_drop: str, assigned: Sequence[str]) -> None:
    """Run the whole command with as much pruning as the limit on the loss allows."""
    _commands(folder, keep, only, ["prune:pattern=channels:of=macs:ratio=auto:budget=1"], max_drop, assigned)


def _commands(
    folder: Path, keep: Path, only: str, passes: Sequence[str], max_drop: str, assigned: Sequence[str]
) -> None:
    """Run the command with each of some passes on each model; what was measured goes to KEEP."""
    evaluators = dict(item.split("=", 1) for item in assigned)
    keep.mkdir(parents=True, exist_ok=True)
    for path in sorted((folder / "models").glob("*.onnx")):
        if not fnmatch.fnmatch(path.stem, only):
            continue
        for index, spec in enumerate(passes):
            record = keep / f"{path.stem}.{'auto' if 'auto' in spec else f'gain{index}'}.command.json"
            if record.exists():
                continue
            with tempfile.TemporaryDirectory() as scratch:
                row = compress(folder, path, Path(scratch), f"fold,{spec}", max_drop, evaluators.get(path.stem))
            record.write_text(json.dumps({"max_drop": max_drop, "row": asdict(row)}))
            click.echo(line(row), err=True)


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("keep", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--latency", "seconds", default=2.0, show_default=True, help="Seconds to time each of our models for.")
@click.option("--remark", "remarks", multiple=True, help="A paragraph above the tables.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path))
def table(folder: Path, keep: Path, seconds: float, remarks: Sequence[str], markdown: Path | None) -> None:
    """Write what the other commands have put into KEEP as one page."""
    text = page(keep, lambda entry: _latency(folder, keep, entry, seconds), remarks)
    click.echo(text)
    if markdown is not None:
        markdown.write_text(text + "\n")


def _latency(folder: Path, keep: Path, entry: Entry, seconds: float) -> str:
    """Return the time of our model over that of the folded original, with its 95 % interval; measured once."""
    record = keep / f"{entry.model}.{entry.ratio:g}.latency"
    if not record.exists():
        before = load(keep / f"{entry.model}.folded.onnx")
        after = keep / f"{entry.model}.{entry.ratio:g}.{OURS}.onnx"
        data = find_samples(folder, entry.model)
        assert data is not None
        feeds = list(open_samples(str(data), before.interface, optional=frozenset(before.graph.defaults)).take(4))
        with open_session(before) as one, open_session(after) as other:
            ratio = paired_ratio(one, other, feeds, seconds=seconds)
        record.write_text(f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})")
    return record.read_text()


if __name__ == "__main__":
    main()
