"""Multiply-accumulates as `graphopt inspect` counts them, beside another implementation.

    python -m benchmarks.macs FOLDER [--python PYTHON] [--only GLOB] [--markdown FILE]

FOLDER is laid out as for `benchmarks.zoo`. PYTHON has onnx-tool. Both count for the same shapes of inputs; compared are
the operators that are sums of products, node by node where names are unique.
"""

from __future__ import annotations

import fnmatch
import json
import subprocess
import sys
from pathlib import Path

import click

from graphopt.inspection import Inspection, inspect_model

_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "GRU", "LSTM")
_HEAD = "| model | operator | nodes | graphopt | onnx-tool | difference |"
_PEER = """
import json, sys
import numpy as np
from onnx_tool import Model

path, ops, feeds = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
graph = Model(path, {"verbose": False}).graph
values = {name: np.ones(shape, dtype) for name, (dtype, shape) in feeds.items()}
graph.shape_infer(values)
graph.profile()
found = [(node.op_type, float(np.sum(node.macs[0]))) for node in graph.nodemap.values() if node.op_type in ops]
print("FOUND " + json.dumps(found))
"""


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--python", "peer", default=sys.executable, help="Interpreter that has onnx-tool.")
@click.option("--only", default="*", help="Glob of model names.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path))
def main(folder: Path, peer: str, only: str, markdown: Path | None) -> None:
    """Count the MACs of every model of FOLDER twice, and print a table."""
    lines = [_HEAD, "|" + "---|" * (_HEAD.count("|") - 1)]
    for path in sorted((folder / "models").glob("*.onnx")):
        if fnmatch.fnmatch(path.stem, only):
            lines += _rows(inspect_model(path, run=True), path, peer)
    click.echo("\n".join(lines))
    if markdown is not None:
        markdown.write_text("\n".join(lines) + "\n")


def _rows(ours: Inspection, path: Path, peer: str) -> list[str]:
    theirs, reason = _theirs(ours, path, peer)
    rows = []
    for op in _OPS:
        mine = [node.macs for node in ours.nodes if node.operator == op]
        if not mine:
            continue
        known = sum(macs or 0 for macs in mine)
        count = f"{known:,}" + (" + ?" if None in mine else "")
        if theirs is None:
            rows.append(f"| {path.stem} | {op} | {len(mine)} | {count} | {reason} | |")
            continue
        other = sum(int(macs) for name, macs in theirs if name == op)
        rows.append(f"| {path.stem} | {op} | {len(mine)} | {count} | {other:,} | {other - known:,} |")
    return rows


def _theirs(ours: Inspection, path: Path, peer: str) -> tuple[list[tuple[str, float]] | None, str]:
    """Return operator and MACs of each node as the peer counts them, or why it does not."""
    types = {spec.name: spec.dtype for spec in ours.interface.inputs}
    feeds = {name: (str(types[name]), list(shape)) for name, shape in ours.sizes.items()}
    command = [peer, "-c", _PEER, str(path), json.dumps(_OPS), json.dumps(feeds)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    found = [line.removeprefix("FOUND ") for line in run.stdout.splitlines() if line.startswith("FOUND ")]
    if run.returncode != 0 or not found:
        return None, (run.stderr.strip().splitlines() or ["no answer"])[-1][:60].replace("|", "/")
    return json.loads(found[-1]), ""


if __name__ == "__main__":
    main()
