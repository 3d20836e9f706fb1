"""What equalization is worth to a plain int8 quantizer: onnxruntime.quantization with and without it.

    python -m benchmarks.equalize FOLDER [--only GLOB]... [--evaluator NAME=X]... [--markdown FILE]

Layout of FOLDER as for `benchmarks.zoo`. Each model is folded, equalized in two ways or not at all, and quantized to
static int8 (QDQ, ranges from minimum to maximum, weights of 7 bits so that AVX2 does not saturate) with one scale a
tensor and with one a channel; the models' own metrics judge. Latency is the float model's, paired with the folded one.
"""

from __future__ import annotations

import fnmatch
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from onnxruntime import quantization

from benchmarks.zoo import find_evaluator, find_samples, metric_of
from graphopt.reader import load
from graphopt.runtime.session import open_session
from graphopt.runtime.timing import Ratio, reopened_ratio
from graphopt.samples import Feeds, Samples, open_samples

_METHODS = ("", "equalize:method=cle", "equalize:method=smooth")
_LAYERS = ["Conv", "MatMul", "Gemm"]
_COMPARED = 8  # samples on which outputs are compared bit by bit


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Samples, as onnxruntime.quantization takes them."""

    def __init__(self, samples: Samples) -> None:
        self._rest = iter(samples)

    def get_next(self) -> Feeds | None:
        """Return the next sample, or None at the end."""
        return next(self._rest, None)


@dataclass(frozen=True)
class Result:
    """One model, equalized in one way.

    Attributes:
        model: Its name.
        method: The pass, or an empty text.
        floats: Metrics of the float model.
        tensors: Metrics with a scale a tensor.
        channels: Metrics with a scale a channel.
        latency: Of the float model, over that of the folded one.
        same_bits: Whether the float model gives the same outputs to the last bit.
    """

    model: str
    method: str
    floats: Mapping[str, float]
    tensors: Mapping[str, float]
    channels: Mapping[str, float]
    latency: Ratio | None
    same_bits: bool | None


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", multiple=True, default=("efficientnet_lite0", "minilm_l6"), show_default=True)
@click.option("--evaluator", "assigned", multiple=True, help="NAME=X: judge model NAME with eval_X.py.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path))
def main(folder: Path, only: tuple[str, ...], assigned: tuple[str, ...], markdown: Path | None) -> None:
    """Quantize the models of FOLDER and print a table."""
    evaluators = dict(item.split("=", 1) for item in assigned)
    lines = [
        "| model | equalized | float | int8, a scale a tensor | int8, a scale a channel | latency of the float model |"
    ]
    lines.append("|" + "---|" * 6)
    for path in sorted((folder / "models").glob("*.onnx")):
        samples = find_samples(folder, path.stem)
        if samples is None or not any(fnmatch.fnmatch(path.stem, pattern) for pattern in only):
            continue
        evaluator = find_evaluator(folder, path.stem, evaluators.get(path.stem))
        with tempfile.TemporaryDirectory() as scratch:
            for method in _METHODS:
                lines.append(line(measured(path, samples, evaluator, method, Path(scratch))))
                click.echo(lines[-1], err=True)
    click.echo("\n".join(lines))
    if markdown is not None:
        markdown.write_text("\n".join(lines) + "\n")


def measured(model: Path, samples: Path, evaluator: Path | None, method: str, scratch: Path) -> Result:
    """Equalize, quantize and judge one model; the first method must be none."""
    plain = scratch / f"{model.stem}.onnx"
    result = scratch / f"{model.stem}_equalized.onnx" if method else plain
    passes = ",".join(filter(None, ("fold", method)))
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "graphopt",
        model,
        "-p",
        passes,
        "-o",
        result,
        "--data",
        samples,
        "-q",
    ]
    subprocess.run(command, check=True)
    found = []
    for per_channel in (False, True):
        quantized = scratch / "quantized.onnx"
        quantize(result, samples, quantized, per_channel=per_channel)
        found.append(metric_of(evaluator, quantized) or {})
    floats = metric_of(evaluator, result) or {}
    latency, same = compared(plain, result, samples) if method else (None, None)
    return Result(model.stem, method, floats, found[0], found[1], latency, same)


def quantize(model: Path, samples: Path, output: Path, *, per_channel: bool) -> None:
    """Quantize statically with onnxruntime.quantization."""
    quantization.quantize_static(
        model,
        output,
        Reader(open_samples(samples, load(model).interface)),
        op_types_to_quantize=_LAYERS,
        per_channel=per_channel,
        reduce_range=True,
        activation_type=quantization.QuantType.QUInt8,
    )


def compared(plain: Path, result: Path, samples: Path) -> tuple[Ratio, bool]:
    """Return the latency ratio of two models, and whether their outputs are the same to the last bit."""
    drawn = open_samples(samples, load(plain).interface)
    feeds = list(drawn.take(min(_COMPARED, len(drawn))))
    with open_session(plain, optimize=False) as first, open_session(result, optimize=False) as second:
        pairs = [(first.run(each), second.run(each)) for each in feeds]
    same = all(np.array_equal(ours[name], theirs[name]) for ours, theirs in pairs for name in ours)
    return reopened_ratio(lambda: open_session(plain), lambda: open_session(result), feeds), same


def line(result: Result) -> str:
    """Return one line of the table."""
    texts = [
        ", ".join(f"{key} {value:.4g}" for key, value in metrics.items())
        for metrics in (result.floats, result.tensors, result.channels)
    ]
    ratio = result.latency
    latency = "" if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"
    latency += "; same bits" if result.same_bits else ""
    return "| " + " | ".join((result.model, result.method or "no", *texts, latency)) + " |"


if __name__ == "__main__":
    main()
