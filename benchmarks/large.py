"""Pack and unpack a model whose weights, in a file beside it, are too many for one ONNX file.

    python -m benchmarks.large [--gigabytes 2.2] [--levels 16] [--markdown FILE]

The model is made here: a chain of matrix products, each weight with so many distinct values. Both commands run in
processes of their own; what comes back must have the bytes that were there at first.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.process import Run, measure
from graphopt.ir.graph import constants
from graphopt.reader import load

_WIDTH = 4096  # rows and columns of each weight


@click.command()
@click.option("--gigabytes", default=2.2, show_default=True, help="Size of the weights.")
@click.option("--levels", default=16, show_default=True, help="Distinct values of each weight, at most 256.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path))
def main(gigabytes: float, levels: int, markdown: Path | None) -> None:
    """Pack and unpack a large model and print what it takes."""
    lines = ["| command | bytes before | bytes after | wall time | peak memory |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder) / "large.onnx", gigabytes, levels)
        packed, plain = (path.with_name(f"{name}.onnx") for name in ("packed", "plain"))
        run = measure([sys.executable, "-m", "graphopt", path, "-p", "pack", "-q", "-o", packed])
        lines.append(_line("`graphopt large.onnx -p pack`", run, path, packed))
        run = measure([sys.executable, "-m", "graphopt", "unpack", packed, "-o", plain])
        lines.append(_line("`graphopt unpack packed.onnx`", run, packed, plain))
        if not same_weights(path, plain):
            raise click.ClickException("unpacked weights are not what they were")
    table = "\n".join(lines)
    click.echo(table)
    if markdown is not None:
        markdown.write_text(table + "\n")


def write_model(path: Path, gigabytes: float, levels: int) -> Path:
    """Write a chain of matrix products, and its weights beside it."""
    rng, nbytes = np.random.default_rng(0), _WIDTH**2 * 4
    nodes, weights, source = [], [], "x"
    with path.with_name(f"{path.name}.data").open("wb") as data:
        for layer in range(max(1, round(gigabytes * 1e9 / nbytes))):
            weight = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[_WIDTH, _WIDTH])
            weight.data_location = TensorProto.EXTERNAL
            for key, value in (("location", f"{path.name}.data"), ("offset", data.tell()), ("length", nbytes)):
                weight.external_data.add(key=key, value=str(value))
            values = rng.normal(scale=_WIDTH**-0.5, size=levels).astype(np.float32)
            values[rng.integers(0, levels, _WIDTH**2, dtype=np.uint8)].tofile(data)
            weights.append(weight)
            nodes.append(helper.make_node("MatMul", [source, weight.name], [f"y{layer}"]))
            source = f"y{layer}"
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", _WIDTH]) for name in ("x", source))
    graph = helper.make_graph(nodes, "large", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def same_weights(first: Path, second: Path) -> bool:
    """Whether two models have weights of the same names and bytes."""
    one, other = ({item.name: item for item in constants(load(path).graph)} for path in (first, second))
    return one.keys() == other.keys() and all(
        np.array_equal(item.values.view(np.uint32), other[name].values.view(np.uint32)) for name, item in one.items()
    )


def _line(command: str, run: Run, before: Path, after: Path) -> str:
    if run.status != 0:
        raise click.ClickException(run.output[-500:])
    sizes = " | ".join(f"{_bytes(path):,}" for path in (before, after))
    return f"| {command} | {sizes} | {run.seconds:.0f} s | {run.peak_bytes / 1e6:.0f} MB |"


def _bytes(path: Path) -> int:
    return sum(item.stat().st_size for item in path.parent.glob(f"{path.name}*"))


if __name__ == "__main__":
    main()
