"""The report as plain JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.cost import Figures
    from graphopt.evaluate import Drop
    from graphopt.pipeline import Step
    from graphopt.report import FileInfo, Report, Timing
    from graphopt.runtime.timing import Ratio


def encode(report: Report) -> dict[str, Any]:
    """Return all fields of a report but its format number."""
    return {
        "versions": dict(report.versions),
        "machine": {
            "cpu": report.machine.cpu,
            "cores": report.machine.cores,
            "instructions": list(report.machine.instructions),
        },
        "input": _file(report.input),
        "output": _file(report.output),
        "passes": report.passes,
        "target": {
            "name": report.target.name,
            "provider": report.target.provider,
            "runs_here": report.target.runs_here,
        },
        "seed": report.seed,
        "max_drop": report.max_drop,
        "strict": report.strict,
        "metric": report.metric,
        "samples": _samples(report),
        "steps": [_step(step) for step in report.steps],
        "before": figures_json(report.before),
        "after": figures_json(report.after),
        "drop": _drop(report.drop),
        "drop_reason": report.drop_reason,
        "latency": ratio_json(report.latency),
        "timings": [timing_json(timing) for timing in report.timings],
        "seconds": round(report.seconds, 3),
        "peak_memory_nbytes": report.peak_memory_nbytes,
        "warnings": list(report.warnings),
    }


def figures_json(figures: Figures) -> dict[str, Any]:
    """Return size and cost of a model."""
    return {
        "nodes": figures.nodes,
        "parameters": figures.parameters,
        "macs": figures.macs,
        "nbytes": figures.nbytes,
        "zstd_nbytes": figures.zstd_nbytes,
        "zstd_level": figures.zstd_level,
    }


def ratio_json(ratio: Ratio | None) -> dict[str, Any] | None:
    """Return a latency ratio with its interval."""
    if ratio is None:
        return None
    return {
        "median": _number(ratio.median),
        "low": _number(ratio.low),
        "high": _number(ratio.high),
        "pairs": int(ratio.pairs),
    }


def _file(file: FileInfo | None) -> dict[str, Any] | None:
    return None if file is None else {"path": file.path, "sha256": file.sha256, "nbytes": file.nbytes}


def _samples(report: Report) -> dict[str, Any] | None:
    samples = report.samples
    return None if samples is None else {"source": samples.source, "count": samples.count, "random": samples.random}


def _step(step: Step) -> dict[str, Any]:
    report = step.report
    return {
        "spec": step.spec,
        "inserted": step.inserted,
        "outcome": step.outcome,
        "reason": step.reason,
        "changed": None if report is None else report.changed,
        "before": figures_json(step.before),
        "after": figures_json(step.after),
        "drop": _drop(step.drop),
        "latency": ratio_json(step.latency),
        "verified": step.verified,
        "seconds": round(step.seconds, 3),
        "skipped": [] if report is None else [{"where": skip.where, "reason": skip.reason} for skip in report.skipped],
        "metrics": {} if report is None else _numbers(report.metrics),
        "notes": [] if report is None else list(report.notes),
        "fates": [] if report is None else [{"where": item.where, "what": item.what} for item in report.fates],
    }


def _drop(drop: Drop | None) -> dict[str, Any] | None:
    if drop is None:
        return None
    return {
        "value": _number(drop.value),
        "low": _number(drop.low),
        "high": _number(drop.high),
        "established": _number(drop.value if drop.established is None else drop.established),
        "measure": drop.measure,
        "details": _numbers(drop.details),
        "samples": int(drop.samples),
        "random": bool(drop.random),
        "steps": int(drop.steps),
        "states": dict(drop.states),
        "fixed": bool(drop.fixed),
    }


def timing_json(timing: Timing) -> dict[str, Any]:
    """Return a latency ratio with its conditions."""
    return {
        "provider": timing.provider,
        "threads": timing.threads,
        "random_inputs": timing.random_inputs,
        "ratio": ratio_json(timing.ratio),
        "reason": timing.reason,
        "chosen": {name: list(shape) for name, shape in timing.chosen.items()},
    }


def _numbers(values: Mapping[str, float]) -> dict[str, int | float | None]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: Any) -> int | float | None:
    """Return a Python number; None for what JSON has no number for."""
    plain = value.item() if hasattr(value, "item") else value
    return plain if isinstance(plain, int) or math.isfinite(plain) else None
