"""How fold grows: time over the number of nodes, and over gigabytes of weights that nobody touches.

    python -m benchmarks.scaling [--nodes N] [--gigabytes G] [--markdown FILE]

The models are made here. Those of `benchmarks.growing` are folded at a quarter, a half and all of the nodes: blocks as
exporters write them (Shape, Gather, Concat, Reshape, Identity, arithmetic with constants) in a row and side by side,
repetitions, choices inside of choices, and many weights. The last has its weights in a file beside it, and only its
graph changes: load, fold and save, in a process of its own.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import cast

import click
import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.growing import SHAPES
from benchmarks.process import measure
from graphopt.context import Context
from graphopt.ir.clean import clean
from graphopt.model import Model
from graphopt.passes.fold import Fold

_FOLD = """
import sys
from pathlib import Path
from graphopt.ir.clean import clean
from graphopt.passes.fold import Fold
from graphopt.reader import load
model = load(Path(sys.argv[1]))
report = Fold().run(model, None)
clean(model.graph)
nodes = model.node_count
if sys.argv[2] == "save":
    model.save(Path(sys.argv[3]))
print(report.changed, nodes)
"""


@click.command()
@click.option("--nodes", default=20000, show_default=True, help="Nodes of the largest graphs.")
@click.option("--gigabytes", default=1.6, show_default=True, help="Size of the weights.")
@click.option(
    "--repeat",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Runs of each graph; the quickest counts.",
)
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path))
def main(nodes: int, gigabytes: float, repeat: int, markdown: Path | None) -> None:
    """Fold models that grow and print what it takes."""
    lines = ["| model | before | after | seconds | seconds per 1000 nodes | peak memory |", "|---|---|---|---|---|---|"]
    for name, make in SHAPES.items():
        for count in (nodes // 4, nodes // 2, nodes):
            lines.append(_row(name, make(count), repeat))
            click.echo(lines[-1], err=True)
    with tempfile.TemporaryDirectory() as folder:
        path = write_large(Path(folder) / "large.onnx", gigabytes)
        lines += [_large_row(path, gigabytes, mode) for mode in ("fold", "save")]
    table = "\n".join(lines)
    click.echo(table)
    if markdown is not None:
        markdown.write_text(table + "\n")


def _row(name: str, proto: onnx.ModelProto, repeat: int) -> str:
    before, seconds = 0, []
    for _ in range(repeat):
        model = Model.from_proto(proto)
        before = model.node_count
        start = time.process_time()  # one thread; other work on the machine hardly changes it
        Fold().run(model, cast("Context", None))  # it asks for none
        clean(model.graph)
        seconds.append(time.process_time() - start)
    best = min(seconds)
    return f"| {name} | {before} | {model.node_count} | {best:.2f} | {best / before * 1000:.3f} | |"


def _large_row(path: Path, gigabytes: float, mode: str) -> str:
    run = measure([sys.executable, "-c", _FOLD, path, mode, path.with_name("result.onnx")])
    if run.status != 0:
        raise click.ClickException(run.output)
    what = "load and fold" if mode == "fold" else "load, fold and save"
    before = onnx.load(path, load_external_data=False)
    after = run.output.split()[-1]
    memory = f"{run.peak_bytes / 1e6:.0f} MB"
    return f"| {gigabytes} GB beside it: {what} | {len(before.graph.node)} | {after} | {run.seconds:.2f} | | {memory} |"


def write_large(path: Path, gigabytes: float) -> Path:
    """Write a chain of matrix products with no-ops between them, and its weights beside it."""
    width, layers = 4096, max(1, round(gigabytes * 1e9 / (4096 * 4096 * 4)))
    nodes, weights = [], []
    source = "x"
    with path.with_name(f"{path.name}.data").open("wb") as data:
        for layer in range(layers):
            weight = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[width, width])
            weight.data_location = TensorProto.EXTERNAL
            places = (
                ("location", f"{path.name}.data"),
                ("offset", str(data.tell())),
                ("length", str(width * width * 4)),
            )
            for key, value in places:
                weight.external_data.add(key=key, value=value)
            np.full(width * width, 1e-3 * (layer + 1), np.float32).tofile(data)
            weights.append(weight)
            nodes += [
                helper.make_node("Identity", [source], [f"i{layer}"]),
                helper.make_node("MatMul", [f"i{layer}", f"w{layer}"], [f"p{layer}"]),
                helper.make_node("Cast", [f"p{layer}"], [f"c{layer}"], to=TensorProto.FLOAT),
                helper.make_node("Tanh", [f"c{layer}"], [f"y{layer}"]),
            ]
            source = f"y{layer}"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])
    y = helper.make_tensor_value_info(source, TensorProto.FLOAT, ["N", width])
    graph = helper.make_graph(nodes, "large", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


if __name__ == "__main__":
    main()
