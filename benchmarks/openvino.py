"""Prove the target `openvino` in OpenVINO itself: quantize by its conventions, run there, beside the float model.

    python -m benchmarks.openvino FOLDER [--only GLOB]... [--markdown FILE]

Layout of FOLDER as for `benchmarks.zoo`; models without samples are left out. In an interpreter that has OpenVINO. Per
model: file, time over the float model's (both in OpenVINO, interleaved, one thread), operators that it executes in
8 bits, and squared errors over energy: of int8 in OpenVINO to float in ONNX Runtime, and to int8 in ONNX Runtime.
"""

from __future__ import annotations

import fnmatch
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.process import measure
from benchmarks.zoo import find_samples
from graphopt.reader import load
from graphopt.runtime.session import open_session
from graphopt.samples import open_samples

_HEAD = "| model | file | time in OpenVINO | operators in 8 bits | error to float | error to ONNX Runtime's int8 |"
_SAMPLES = 32
_EXACT = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", multiple=True, default=("*",), show_default=True)
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path))
def main(folder: Path, only: tuple[str, ...], markdown: Path | None) -> None:
    """Quantize the models of FOLDER for OpenVINO, run them there, and print a table."""
    lines = [_HEAD, "|" + "---|" * 6]
    with tempfile.TemporaryDirectory() as scratch:
        for model in sorted((folder / "models").glob("*.onnx")):
            samples = find_samples(folder, model.stem)
            if samples is not None and any(fnmatch.fnmatch(model.stem, pattern) for pattern in only):
                lines.append(f"| {model.stem} | {' | '.join(_cells(model, samples, Path(scratch)))} |")
                click.echo(lines[-1], err=True)
    click.echo("\n".join(lines))
    if markdown is not None:
        markdown.write_text("\n".join(lines) + "\n")


def _cells(model: Path, samples: Path, scratch: Path) -> list[str]:
    output = scratch / model.name
    command: list[str | Path] = [sys.executable, "-m", "graphopt", model, "-p", "fold,share,quant"]
    run = measure([*command, "--target", "openvino", "--data", samples, "-q", "-o", output])
    if run.status != 0:
        raise click.ClickException(f"{model.name}: {run.output[-500:]}")
    first, second = _compiled(model), _compiled(output)
    integers = sum(_precision(op) in ("i8", "u8") for op in second.get_runtime_model().get_ops() if _computes(op))
    file = f"{output.stat().st_size / model.stat().st_size:.2f}"
    if integers == 0:
        return [file, "left float", "0", "", ""]
    times, float_error, integer_error = _compared(model, output, samples, _runner(first), _runner(second))
    return [file, f"{times:.2f}", str(integers), f"{float_error:.2g}", f"{integer_error:.2g}"]


def _compared(model: Path, output: Path, samples: Path, float_run: Run, run: Run) -> tuple[float, float, float]:
    """Return the median time ratio and both errors, over all outputs of all samples."""
    before, after = load(model), load(output)
    ratios, errors, energies = [], np.zeros(2), np.zeros(2)
    with open_session(before) as real, open_session(after) as integer:
        for feeds in open_samples(samples, before.interface).take(_SAMPLES):
            found, seconds = _timed(run, feeds)
            ratios.append(seconds / _timed(float_run, feeds)[1])
            for place, expected in enumerate((real.run(feeds), integer.run(feeds))):
                for name, value in expected.items():
                    wanted = np.asarray(value, np.float64)
                    errors[place] += np.square(wanted - found[name]).sum()
                    energies[place] += np.square(wanted).sum()
    return float(np.median(ratios)), *(errors / energies)


def _compiled(path: Path) -> Any:
    import openvino

    return openvino.Core().compile_model(path, "CPU", _EXACT)


def _runner(compiled: Any) -> Run:
    names = [output.get_any_name() for output in compiled.outputs]

    def run(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        return dict(zip(names, compiled(dict(feeds)).values(), strict=True))

    return run


def _timed(run: Run, feeds: Mapping[str, Any]) -> tuple[Mapping[str, Any], float]:
    run(feeds)
    start = time.process_time()
    return run(feeds), time.process_time() - start


def _precision(operator: Any) -> str:
    return str(operator.get_rt_info()["runtimePrecision"].astype(str))


def _computes(operator: Any) -> bool:
    return operator.get_rt_info()["layerType"].astype(str) not in ("Const", "Input", "Output", "Reorder", "Reshape")


if __name__ == "__main__":
    main()
