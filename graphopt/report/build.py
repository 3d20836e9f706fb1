"""The last measurements of a run, and the report made from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.errors import UnjudgedError
from graphopt.evaluate.sameness import NOT_VERIFIED
from graphopt.ir.graph import constants, declared, payload
from graphopt.ir.payload import StoredTensor, external_reference
from graphopt.pipeline import Pipeline, Step, with_required
from graphopt.report import Report, SampleInfo, Timing
from graphopt.report.environment import file_info, machine, peak_memory, versions
from graphopt.runtime.costs import figures_on
from graphopt.runtime.session import available_providers
from graphopt.targets import Target, get_target

if TYPE_CHECKING:
    from pathlib import Path

    from graphopt.context import Context
    from graphopt.cost import Figures
    from graphopt.evaluate import Drop, Evaluator
    from graphopt.model import Model
    from graphopt.report import FileInfo

_ALWAYS_TIMED = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda"}
_UNJUDGED = "there are no samples (--data) and no metric (--metric) to judge on"


@dataclass(frozen=True)
class Finished:
    """A pipeline that has run.

    Attributes:
        pipeline: What was asked for.
        original: The model that went in.
        model: The model that came out.
        steps: Record of every pass.
        context: Surroundings of the run.
        evaluator_for: Makes an evaluator for another target.
        metric: Name of the user's metric, or None.
        benchmark: Whether latency is to be measured.
        threads: Threads inside an operator.
        strict: Whether a roll-back was to be an error.
        start: `time.perf_counter` when the run began.
    """

    pipeline: Pipeline
    original: Model
    model: Model
    steps: tuple[Step, ...]
    context: Context
    evaluator_for: Callable[[Target], Evaluator]
    metric: str | None
    benchmark: bool
    threads: int
    strict: bool
    start: float


def build_report(run: Finished) -> Report:
    """Measure loss and latency of the result and return the whole record."""
    context, samples = run.context, run.context.samples
    drop, drop_reason = final_drop(run)
    before, after = _end_figures(run)
    timings = measure_timings(run)
    return Report(
        versions=versions(),
        machine=machine(),
        input=input_file(run.original),
        output=None,
        passes=str(run.pipeline),
        target=context.target,
        seed=context.seed,
        max_drop=context.max_drop,
        strict=run.strict,
        metric=run.metric,
        samples=None if samples is None else SampleInfo(samples.source, len(samples), samples.is_random),
        steps=run.steps,
        before=before,
        after=after,
        drop=drop,
        drop_reason=drop_reason,
        timings=timings,
        seconds=time.perf_counter() - run.start,
        peak_memory_nbytes=peak_memory(),
        warnings=tuple(warnings_for(run, drop)),
    )


def final_drop(run: Finished) -> tuple[Drop | None, str]:
    """Return the result's loss, or why there is none; that of the last accepted pass is not measured again."""
    accepted = [step for step in run.steps if step.outcome == "accepted"]
    if accepted and accepted[-1].drop is not None:
        return accepted[-1].drop, ""
    try:
        drop = run.context.evaluator.drop(run.model)
    except UnjudgedError as error:
        return None, str(error)
    return drop, _UNJUDGED if drop is None else ""


def _end_figures(run: Finished) -> tuple[Figures, Figures]:
    if run.steps:
        return run.steps[0].before, run.steps[-1].after
    feeds = next(iter(run.context.samples), None) if run.context.samples is not None else None
    only = figures_on(run.original, feeds)
    return only, only


def measure_timings(run: Finished) -> tuple[Timing, ...]:
    """Time the result against the original on the target's provider, and on CPU and CUDA."""
    own, samples, chosen = run.context.target, run.context.samples, run.context.evaluator.inputs.chosen()
    others = [get_target(name) for provider, name in _ALWAYS_TIMED.items() if provider != own.provider]
    timings = []
    for target in (own, *others):
        ratio, reason = None, _untimed(run, target)
        if not reason:
            evaluator = run.context.evaluator if target is own else run.evaluator_for(target)
            ratio = evaluator.latency(run.original, run.model)
            reason = "" if ratio is not None else "the model does not run on random inputs; give samples with --data"
        is_random = samples is None or samples.is_random
        timings.append(Timing(target.provider, run.threads, is_random, ratio, reason, chosen))
    return tuple(timings)


def _untimed(run: Finished, target: Target) -> str:
    """Return why latency cannot or need not be measured on a target, or an empty text."""
    if target.provider not in available_providers():
        return "the installed onnxruntime does not have it"
    if not target.runs_here:
        return f"this machine lacks instructions of {target.name} ({', '.join(sorted(target.instructions))})"
    if not run.benchmark:
        return "it was switched off"
    if all(step.outcome != "accepted" for step in run.steps):
        return "no pass changed the model"
    return ""


def warnings_for(run: Finished, drop: Drop | None) -> Sequence[str]:
    """Return what the user should know before using the result."""
    rolled_back = [step for step in run.steps if step.outcome == "rolled back"]
    lines = [f"pass '{step.spec}' was rolled back: {step.reason}" for step in rolled_back]
    lines += _unverified(run)
    samples, limit = run.context.samples, run.context.max_drop
    if samples is not None and samples.is_random:
        lines.append("the samples are random: calibration, agreement and latency rest on invented inputs")
    planned = with_required(run.pipeline.passes)
    lossy = [
        item.name
        for (item, _), step in zip(planned, run.steps, strict=True)
        if not item.lossless and step.outcome == "accepted"
    ]
    if drop is None:
        if lossy:
            lines.append(f"nothing judged the loss of {' and '.join(lossy)}: give samples with --data")
        return lines
    if not drop.within(limit):
        lines.append(f"the result as a whole lost {drop.compare(limit)}")
    return lines


def _unverified(run: Finished) -> list[str]:
    """Return a line for each kind of reason that outputs of accepted lossless passes could not be compared."""
    reasons: dict[str, str] = {}
    names: dict[str, list[str]] = {}
    for (item, _), step in zip(with_required(run.pipeline.passes), run.steps, strict=True):
        if step.outcome == "accepted" and step.verified.startswith(NOT_VERIFIED):
            reason = step.verified.removeprefix(NOT_VERIFIED)
            kind = reason.partition(":")[0]
            reasons.setdefault(kind, reason)
            names.setdefault(kind, []).append(item.name)
    hint = "" if run.context.samples is not None else "; give samples with --data"
    return [f"nothing verified {' and '.join(names[kind])}: {reason}{hint}" for kind, reason in reasons.items()]


def data_files(model: Model) -> frozenset[Path]:
    """Return the files of external data that the model still reads from."""
    roots = (model.graph, *model.graph.functions)
    held = (payload(constant) for root in roots for constant in (*constants(root), *declared(root)))
    return frozenset(
        item.folder / external_reference(item.tensor)[0]
        for item in held
        if isinstance(item, StoredTensor) and item.folder is not None
    )


def input_file(model: Model) -> FileInfo | None:
    """Return the file a model was read from, or None."""
    if model.path is None or not model.path.is_file():
        return None
    return file_info(model.path, sum(path.stat().st_size for path in {model.path, *data_files(model)}))
