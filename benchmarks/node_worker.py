"""One tool, or the judge, as a process: reads names of models, answers with one line of JSON for each.

    python node_worker.py TASK FOLDER

It needs nothing of this package unless TASK is graphopt, so that it runs where a peer is installed.
`benchmarks.node_tests` starts it, gives it one name at a time, and starts another one where it dies.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Outputs = list[Any]
_KEPT = 300  # characters of an error
_REPEATED = 4  # runs that tell whether a model is random


def with_graphopt(source: Path, target: Path) -> dict[str, Any]:
    """Run the bare passes: the command would check their results and roll back wrong ones."""
    from typing import cast

    from graphopt.context import Context
    from graphopt.ir.clean import clean
    from graphopt.reader import load
    from graphopt.shapes import infer_shapes
    from graphopt.spec import parse_pipeline

    model, declined = load(source), 0
    for item in parse_pipeline("fold,share"):
        infer_shapes(model)
        declined += len(item.run(model, cast("Context", None)).skipped)  # neither of them asks for samples
        clean(model.graph)
    model.save(target)
    return {"declined": declined}


def with_onnxslim(source: Path, target: Path) -> dict[str, Any]:
    """Run OnnxSlim."""
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), target)
    return {}


def with_onnxsim(source: Path, target: Path) -> dict[str, Any]:
    """Run onnxsim; a result that fails its own check is none."""
    import onnxsim

    model, valid = onnxsim.simplify(onnx.load(source))
    if not valid:
        raise RuntimeError("its own check failed")
    onnx.save(model, target)
    return {}


def with_onnxscript(source: Path, target: Path) -> dict[str, Any]:
    """Run onnxscript's optimizer."""
    import onnxscript.optimizer

    onnx.save(onnxscript.optimizer.optimize(onnx.load(source)), target)
    return {}


TOOLS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "graphopt": with_graphopt,
    "OnnxSlim": with_onnxslim,
    "onnxsim": with_onnxsim,
    "onnxscript": with_onnxscript,
}


def simplify(tool: str, folder: Path, name: str) -> dict[str, Any]:
    """Let a tool write its version of a model."""
    target = folder / tool / f"{name}.onnx"
    target.unlink(missing_ok=True)
    try:
        return {"outcome": "done"} | TOOLS[tool](folder / "models" / f"{name}.onnx", target)
    except Exception as error:  # of any tool, whatever it raises
        return {"outcome": "failed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:_KEPT]}"}


def judge(folder: Path, name: str, tools: list[str]) -> dict[str, Any]:
    """Compare what every tool made of a model with the original, on the inputs of its test."""
    original = onnx.load(folder / "models" / f"{name}.onnx")
    cases = pickle.loads((folder / "models" / f"{name}.pickle").read_bytes())
    runner, wanted = _reference(original, cases)
    if runner is None:
        return {"runner": "none"}
    found: dict[str, Any] = {"runner": runner.__name__.removeprefix("run_in_")}
    for tool in tools:
        path = folder / tool / f"{name}.onnx"
        if path.exists():
            found[tool] = _verdict(original, onnx.load(path), cases, wanted, runner)
    return found


def _reference(model: onnx.ModelProto, cases: list[dict[str, Any]]) -> tuple[Callable[..., Outputs] | None, list[Any]]:
    """Return what runs the original, and its outputs; a model that gives other outputs each time is run by nobody."""
    for runner in (run_in_onnxruntime, run_in_onnx):
        try:
            wanted = [runner(model, feeds) for feeds in cases]
            again = [[runner(model, feeds) for feeds in cases] for _ in range(_REPEATED)]
        except Exception:  # it is of interest only whether it runs
            continue
        return (runner, wanted) if all(_equal(outputs, wanted) for outputs in again) else (None, [])
    return None, []


def _verdict(
    original: onnx.ModelProto,
    model: onnx.ModelProto,
    cases: list[Any],
    wanted: list[Any],
    runner: Callable[..., Outputs],
) -> dict[str, Any]:
    changed = operators(model) != operators(original)
    nodes = [sum(operators(proto).values()) for proto in (original, model)]
    try:
        found = [runner(model, feeds) for feeds in cases]
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:_KEPT]}"
        return {"verdict": "does not run", "changed": changed, "nodes": nodes, "reason": reason}
    verdict = "equal" if all(map(_equal, found, wanted)) else "wrong"
    return {"verdict": verdict, "changed": changed, "nodes": nodes, "reason": ""}


def run_in_onnxruntime(model: onnx.ModelProto, feeds: dict[str, Any]) -> Outputs:
    """Run a model in ONNX Runtime with its optimizations off."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: Outputs = session.run(None, feeds)
    return outputs


def run_in_onnx(model: onnx.ModelProto, feeds: dict[str, Any]) -> Outputs:
    """Run a model in ONNX's reference evaluator: slow, but every operator set is there."""
    from onnx.reference import ReferenceEvaluator

    return list(ReferenceEvaluator(model).run(None, feeds))


def operators(model: onnx.ModelProto) -> Counter[str]:
    """Count the operators of a model, those in bodies and functions too."""
    counts: Counter[str] = Counter()
    waiting = [list(model.graph.node), *(list(function.node) for function in model.functions)]
    while waiting:
        for node in waiting.pop():
            counts[f"{node.domain}.{node.op_type}"] += 1
            waiting.extend(list(attribute.g.node) for attribute in node.attribute if attribute.HasField("g"))
    return counts


def _equal(found: Any, wanted: Any) -> bool:
    """Compare outputs up to the order of float sums: 1e-4 of the largest element, 1e-2 for types below 32 bits."""
    if isinstance(wanted, (list, tuple)):
        return isinstance(found, type(wanted)) and len(found) == len(wanted) and all(map(_equal, found, wanted))
    if not isinstance(wanted, (np.ndarray, np.generic)):
        return type(found) is type(wanted) and found == wanted
    found, wanted = np.asarray(found), np.asarray(wanted)
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        return False
    if wanted.dtype.kind not in "fcV":
        return bool(np.array_equal(found, wanted))
    narrow = wanted.dtype.itemsize < 4
    kind = np.complex128 if wanted.dtype.kind == "c" else np.float64
    left, right = found.astype(kind), wanted.astype(kind)
    finite = np.abs(right[np.isfinite(right)])
    tolerance = (1e-2 if narrow else 1e-4) * (float(finite.max()) if finite.size else 1.0)
    return bool(np.allclose(left, right, rtol=1e-3, atol=tolerance, equal_nan=True))


def main(task: str, folder: Path) -> None:
    """Answer one line for each that comes in; what tools print goes nowhere."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        name = line.strip()
        answer = judge(folder, name, list(TOOLS)) if task == "judge" else simplify(task, folder, name)
        answers.write(json.dumps({"name": name} | answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
