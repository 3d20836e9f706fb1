"""Quantize one model with onnxruntime.quantization; runs alone, in an interpreter that has OnnxSlim as well.

    python benchmarks/int8_peers.py FORM MODEL OUTPUT [SAMPLES] [--seven-bits] [--all-operators]

FORM is ``minmax`` or ``entropy`` (static QDQ, one scale an output channel, of Conv, MatMul and Gemm, or of all
operators that the tool knows, which is its default) or ``dynamic``. The model is first simplified with OnnxSlim and,
where its operator set is older than 13, converted to 17: without the former batch normalizations stay float, without
the latter the result does not load.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxslim
from onnxruntime import quantization
from onnxruntime.quantization import calibrate

_PER_CHANNEL = 13  # least operator set with a scale a channel
_RAISED = 17
_STATIC = ["Conv", "MatMul", "Gemm"]
_AT_RUN_TIME = ["MatMul", "Gemm", "LSTM", "Gather", "Attention", "EmbedLayerNormalization"]  # Conv would be far slower
_METHODS = {"minmax": quantization.CalibrationMethod.MinMax, "entropy": quantization.CalibrationMethod.Entropy}


class OneThread(onnxruntime.SessionOptions):  # type: ignore[misc]
    """Options of a session with one thread: the tool has no option for it."""

    def __init__(self) -> None:
        super().__init__()
        self.intra_op_num_threads = 1


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Samples of an ``.npz`` stacked along the first axis, or of a folder with one ``.npz`` a sample."""

    def __init__(self, path: Path, model: Path) -> None:
        graph = onnx.load(model, load_external_data=False).graph
        self._inputs = {item.name for item in graph.input} - {item.name for item in graph.initializer}
        self._samples = self._folder(path) if path.is_dir() else self._stack(path)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next sample, or None at the end."""
        return next(self._samples, None)

    def _folder(self, path: Path) -> Iterator[dict[str, np.ndarray]]:
        for file in sorted(path.glob("*.npz")):
            with np.load(file) as arrays:
                yield {name: arrays[name] for name in arrays.files if name in self._inputs}

    def _stack(self, path: Path) -> Iterator[dict[str, np.ndarray]]:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files if name in self._inputs}
        for index in range(min(map(len, arrays.values()))):
            yield {name: values[index : index + 1] for name, values in arrays.items()}


def main() -> None:
    """Quantize."""
    parser = argparse.ArgumentParser()
    parser.add_argument("form", choices=[*_METHODS, "dynamic"])
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("samples", type=Path, nargs="?")
    parser.add_argument("--seven-bits", action="store_true")
    parser.add_argument("--all-operators", action="store_true")
    arguments = parser.parse_args()
    calibrate.onnxruntime.SessionOptions = OneThread
    with tempfile.TemporaryDirectory() as folder:
        model = prepare(arguments.model, Path(folder))
        if arguments.form == "dynamic":
            quantization.quantize_dynamic(
                model, arguments.output, _AT_RUN_TIME, per_channel=True, reduce_range=arguments.seven_bits
            )
            return
        quantization.quantize_static(
            model,
            arguments.output,
            Reader(arguments.samples, model),
            op_types_to_quantize=None if arguments.all_operators else _STATIC,
            per_channel=True,
            reduce_range=arguments.seven_bits,
            activation_type=quantization.QuantType.QUInt8,
            calibrate_method=_METHODS[arguments.form],
        )


def prepare(path: Path, folder: Path) -> Path:
    """Return the model as the peer can take it."""
    model = onnxslim.slim(onnx.load(path))
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    if opset < _PER_CHANNEL:
        model = onnx.version_converter.convert_version(model, _RAISED)
    prepared = folder / path.name
    onnx.save(model, prepared)
    return prepared


if __name__ == "__main__":
    main()
