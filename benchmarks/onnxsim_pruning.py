"""Structured pruning by onnxsim to a wanted amount of work, in an interpreter that has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.process import measure

PEERS = {"onnxsim, weights": "apply_structured_pruning", "onnxsim, samples": "apply_structured_wanda_pruning"}
_BISECTIONS = 6  # of onnxsim's fraction of channels
_SHOWN = 8  # samples that onnxsim ranks by, its default
_ONNXSIM = """
import glob, os, sys, numpy, onnx, onnxsim
model, result, function, sparsity, samples, count = sys.argv[1:]
options = dict(sparsity=float(sparsity))
if "wanda" in function:
    if os.path.isdir(samples):
        files = sorted(glob.glob(os.path.join(samples, "*.npz")))[: int(count)]
        options["calibration_data"] = [dict(numpy.load(file)) for file in files]
    else:
        arrays = numpy.load(samples)
        options["calibration_data"] = [{key: arrays[key][i : i + 1] for key in arrays} for i in range(int(count))]
onnx.save(getattr(onnxsim, function)(onnx.load(model), **options), result)
"""


def prune_to(
    model: Path, ratio: float, result: Path, method: str, data: Path, python: str, work: Callable[[Path], int]
) -> tuple[float, str]:
    """Let onnxsim prune the fraction of channels that comes nearest to a fraction of the work.

    Args:
        model: What is pruned.
        ratio: Fraction of the work that is to go.
        result: Where the nearest result goes, if there is one.
        method: One of `PEERS`.
        data: Samples.
        python: Interpreter that has onnxsim.
        work: Returns the multiply-accumulates of a model file.

    Returns:
        Wall time of one run in seconds, and why there is no result, or nothing.
    """
    full, low, high = work(model), 0.0, 1.0
    nearest, seconds, note = 1.0, 0.0, "it removes nothing"
    trial = result.with_suffix(".trial.onnx")
    for _ in range(_BISECTIONS):
        sparsity = (low + high) / 2
        run = measure([python, "-c", _ONNXSIM, model, trial, PEERS[method], str(sparsity), data, str(_SHOWN)])
        if run.status != 0:
            return run.seconds, (run.output.strip().splitlines() or ["failed"])[-1][:200]
        gone = 1 - work(trial) / full
        low, high = (sparsity, high) if gone < ratio else (low, sparsity)
        if gone > 0 and abs(gone - ratio) < nearest:
            nearest, seconds, note = abs(gone - ratio), run.seconds, ""
            trial.replace(result)
    trial.unlink(missing_ok=True)
    return seconds, note
