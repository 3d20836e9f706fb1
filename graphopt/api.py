"""The library's front door: load a model, compress it, keep the record."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import onnx

from graphopt.base import Pass
from graphopt.context import Context
from graphopt.errors import ModelError, UsageError
from graphopt.evaluate import Evaluator, Metric
from graphopt.evaluate.inputs import open_inputs
from graphopt.model import Model
from graphopt.observe import Observer
from graphopt.pipeline import Pipeline
from graphopt.plugins import load_metric, metric_name
from graphopt.progress import Progress, SilentProgress
from graphopt.reader import load
from graphopt.report import Report
from graphopt.report.build import Finished, build_report
from graphopt.report.environment import file_info, peak_memory
from graphopt.samples import Samples
from graphopt.samples.sized import sized
from graphopt.targets import Target, get_target

__all__ = ["DEFAULT_PASSES", "Result", "compress", "load"]

DEFAULT_PASSES = "fold,share,prune,quant"


@dataclass(frozen=True)
class Result:
    """What `compress` hands back.

    Attributes:
        model: The compressed model.
        report: Everything that was done and measured.
    """

    model: Model
    report: Report

    def save(self, path: str | Path, *, external_data: bool | None = None) -> Result:
        """Write the model, see `Model.save`, and return a result whose report names the file and what it left unused.

        Raises:
            ModelError: It cannot be written; nothing is left behind.
        """
        saved = self.model.save(path, external_data=external_data)
        output = replace(file_info(saved.path, saved.nbytes), path=str(path))
        warnings = (*self.report.warnings, *map(_left_over, saved.left_over))
        report = replace(self.report, output=output, peak_memory_nbytes=peak_memory(), warnings=warnings)
        return replace(self, report=report)


def compress(
    model: Model | onnx.ModelProto | str | Path,
    passes: str | Sequence[Pass | str] = DEFAULT_PASSES,
    *,
    data: Any = None,
    target: str = "cpu",
    seed: int = 0,
    max_drop: float = 0.01,
    metric: Metric | str | None = None,
    benchmark: bool = True,
    threads: int = 1,
    shapes: Sequence[str] = (),
    strict: bool = False,
    zstd_level: int | None = 3,
    progress: Progress | None = None,
) -> Result:
    """Run passes over a model and measure what they did. The model itself stays as it is.

    Args:
        model: A model, or the path of one.
        passes: Text such as ``"fold,prune:ratio=0.3"``, or a sequence of passes and such texts; they run in
            this order.
        data: Samples to calibrate and judge on: a path, ``"random"``, ``"module:function"``, arrays or feeds; see
            `graphopt.samples.open_samples`.
        target: Where the result will run; ``"cpu"`` is this machine's processor.
        seed: Root of all randomness, 0 or more. Same model, options and seed: same bytes.
        max_drop: Largest loss of the metric, or without one of agreement with the original; a fraction in [0, 1].
        metric: ``metric(run)`` returns a score, higher is better; ``run(feeds)`` returns the outputs by name. Also as
            text, ``"module:function"``.
        benchmark: Whether to time the result. Without it, no pass is rolled back for being slow either.
        threads: Threads inside an operator, 1 or more.
        shapes: Sizes that made-up inputs shall have, such as ``"image=1,3,224,224"`` or ``"batch=4"``; see
            `graphopt.samples.sized`.
        strict: Whether a pass that fails or breaks its contract is an error.
        zstd_level: Of the compressed sizes in the report; None: do not measure them, which saves seconds a gigabyte.
        progress: Where long steps report.

    Raises:
        UsageError: An option is wrong.
        ModelError: The model cannot be read, carried or run.
        SampleError: The samples do not fit the model.
        PassError: A pass was rolled back in a strict run.
        GraphoptError: The metric failed on the original model.
    """
    run = _Run(
        pipeline=_pipeline(passes),
        target=get_target(target),
        metric=None if metric is None else load_metric(metric),
        metric_name=None if metric is None else metric_name(metric),
        seed=int(_within("seed", seed, 0, math.inf)),
        max_drop=_within("max_drop", max_drop, 0, 1),
        threads=int(_within("threads", threads, 1, 1024)),
        benchmark=benchmark,
        shapes=tuple(shapes),
        strict=strict,
        zstd_level=zstd_level,
        progress=progress if progress is not None else SilentProgress(),
        start=time.perf_counter(),
    )
    return run.compress(_as_model(model), data)


@dataclass(frozen=True)
class _Run:
    """A run with checked options; attributes as the arguments of `compress`."""

    pipeline: Pipeline
    target: Target
    metric: Metric | None
    metric_name: str | None
    seed: int
    max_drop: float
    threads: int
    benchmark: bool
    shapes: tuple[str, ...]
    strict: bool
    zstd_level: int | None
    progress: Progress
    start: float

    def compress(self, original: Model, data: Any) -> Result:
        interface = sized(original.interface, self.shapes, data)
        samples = None
        if data is not None:
            samples = open_inputs(data, original, interface, seed=self.seed, threads=self.threads)
        context = self.context(original, samples)
        _refuse_unrunnable(original, context.evaluator)
        if self.metric is not None:
            context.evaluator.metric_of_original()  # a metric that fails ends the run here, not every pass later
        model, steps = self.pipeline.run(original, context, strict=self.strict, zstd_level=self.zstd_level)
        finished = Finished(
            pipeline=self.pipeline,
            original=original,
            model=model,
            steps=steps,
            context=context,
            evaluator_for=lambda other: self.evaluator(original, samples, other),
            metric=self.metric_name,
            benchmark=self.benchmark,
            threads=self.threads,
            strict=self.strict,
            start=self.start,
        )
        return Result(model, build_report(finished))

    def context(self, original: Model, samples: Samples | None) -> Context:
        observer = None
        if samples is not None:
            observer = Observer(samples, threads=self.threads, progress=self.progress)
        return Context(
            target=self.target,
            evaluator=self.evaluator(original, samples, self.target),
            samples=samples,
            seed=self.seed,
            max_drop=self.max_drop,
            observer=observer,
            progress=self.progress,
        )

    def evaluator(self, original: Model, samples: Samples | None, target: Target) -> Evaluator:
        kind = Evaluator if self.benchmark else _UntimedEvaluator
        return kind(
            original,
            target,
            samples=samples,
            interface=sized(original.interface, self.shapes),
            metric=self.metric,
            seed=self.seed,
            threads=self.threads,
            progress=self.progress,
        )


class _UntimedEvaluator(Evaluator):
    """Judges loss but not latency."""

    times: ClassVar[bool] = False


def _left_over(path: Path) -> str:
    return f"'{path}' holds weights of the model that was replaced; remove it unless another model uses it"


def _pipeline(passes: str | Sequence[Pass | str]) -> Pipeline:
    if isinstance(passes, str):
        return Pipeline.parse(passes)
    groups = (Pipeline.parse(item).passes if isinstance(item, str) else (item,) for item in passes)
    return Pipeline(tuple(chain.from_iterable(groups)))


def _within(name: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high:
        allowed = f"{low} or more" if math.isinf(high) else f"between {low} and {high}"
        raise UsageError(f"{name} must be {allowed}, not {value}")
    return value


def _as_model(model: Model | onnx.ModelProto | str | Path) -> Model:
    if isinstance(model, Model):
        return model
    return Model.from_proto(model) if isinstance(model, onnx.ModelProto) else load(model)


def _refuse_unrunnable(model: Model, evaluator: Evaluator) -> None:
    """Raise where ONNX Runtime cannot open the model: nothing about it could be proved or measured."""
    try:
        evaluator.open_original()
    except ModelError as error:
        raise ModelError(f"'{model.path or model.graph.name}': {error}") from error
