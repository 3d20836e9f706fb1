"""ONNX's own tests through graphopt and its peers: who changes what, and whose results are wrong.

    python -m benchmarks.node_tests FOLDER [--python PEERS] [--only GLOB] [--markdown FILE]

The models are all that `onnx.backend.test` has: those of single operators, made by its code, and its stored sets
(simple, pytorch, light). Every tool runs in a process of its own; where it dies, that is counted and another one goes
on. Of graphopt the bare passes run, without the checks by which the command rolls wrong results back. Outputs are
compared with ONNX Runtime's optimizations off, or in ONNX's reference evaluator where ONNX Runtime does not have the
operator. FOLDER keeps models, results and answers: a second run goes on where the first one stopped.
"""

from __future__ import annotations

import fnmatch
import json
import pickle
import queue
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnx.backend.test
from onnx import numpy_helper

from benchmarks.node_worker import TOOLS

_WORKER = Path(__file__).with_name("node_worker.py")
_SECONDS = 60  # for one model
_COLUMNS = ("changed, equal", "unchanged, equal", "wrong", "does not run", "failed", "died", "nodes")


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--only", default="*", help="Glob of model names.")
@click.option("--python", "peers", default=sys.executable, help="Interpreter that has the peers installed.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path))
def main(folder: Path, only: str, peers: str, markdown: Path | None) -> None:
    """Simplify every model with every tool, compare outputs, and print a table."""
    names = fnmatch.filter(prepare(folder), only)
    answers: dict[str, dict[str, dict[str, Any]]] = {}
    for tool in TOOLS:
        (folder / tool).mkdir(exist_ok=True)
        answers[tool] = ask(tool, sys.executable if tool == "graphopt" else peers, folder, names)
    verdicts = ask("judge", sys.executable, folder, names)
    table = render(names, answers, verdicts)
    click.echo(table)
    if markdown is not None:
        markdown.write_text(table + "\n")


def prepare(folder: Path) -> list[str]:
    """Write models and inputs where they are not there yet, and return the names."""
    models = folder / "models"
    complete = models / "complete"
    if not complete.exists():
        models.mkdir(parents=True, exist_ok=True)
        for name, proto, cases in (*_single_operators(), *_stored()):
            (models / f"{name}.onnx").write_bytes(proto.SerializeToString())
            (models / f"{name}.pickle").write_bytes(pickle.dumps(cases))
        complete.touch()
    return sorted(path.stem for path in models.glob("*.onnx"))


def _single_operators() -> Iterator[tuple[str, onnx.ModelProto, list[dict[str, Any]]]]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference implementations divide by zero on purpose
        for case in collect_testcases(None):
            if case.model is not None and case.data_sets is not None:
                inputs = [info.name for info in case.model.graph.input]
                yield case.name, case.model, [dict(zip(inputs, given, strict=False)) for given, _ in case.data_sets]


def _stored() -> Iterator[tuple[str, onnx.ModelProto, list[dict[str, Any]]]]:
    data = Path(onnx.backend.test.__file__).parent / "data"
    for path in sorted(data.glob("*/**/*.onnx")):
        proto = onnx.load(path)
        name = f"{path.parent.name}-{path.stem}" if path.parent.name == "light" else path.parent.name
        yield name, proto, _stored_cases(path, proto)


def _stored_cases(path: Path, proto: onnx.ModelProto) -> list[dict[str, Any]]:
    """Return the inputs that lie beside a model, else random ones."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    infos = [info for info in proto.graph.input if info.name not in stored]
    cases = [
        {info.name: _value((data / f"input_{number}.pb").read_bytes(), info) for number, info in enumerate(infos)}
        for data in sorted(path.parent.glob("test_data_set_*"))
        if all((data / f"input_{number}.pb").exists() for number in range(len(infos)))
    ]
    return cases or [{info.name: _random(info) for info in infos}]


def _value(raw: bytes, info: onnx.ValueInfoProto) -> Any:
    kind = info.type.WhichOneof("value")
    if kind == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(raw))
    if kind == "optional_type":
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(raw))
    return numpy_helper.to_array(onnx.TensorProto.FromString(raw))


def _random(info: onnx.ValueInfoProto) -> np.ndarray:
    tensor = info.type.tensor_type
    shape = [dim.dim_value or 1 for dim in tensor.shape.dim]
    values = np.random.default_rng(0).uniform(0, 1, shape)
    return np.asarray(values, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))


def ask(task: str, python: str, folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a worker's answer on each model; those of earlier runs are taken from the folder."""
    log = folder / f"{task}.jsonl"
    known = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    answers = {answer["name"]: answer for answer in known}
    waiting = [name for name in names if name not in answers]
    with log.open("a", buffering=1) as file, click.progressbar(waiting, label=task, file=sys.stderr) as bar:
        worker = Worker(task, python, folder)
        for name in bar:
            answers[name] = worker.ask(name)
            file.write(json.dumps(answers[name]) + "\n")
        worker.stop()
    return answers


class Worker:
    """A process that answers on models, started afresh when it dies or takes too long."""

    def __init__(self, task: str, python: str, folder: Path) -> None:
        ours = python == sys.executable and task in ("graphopt", "judge")
        script = ["-m", "benchmarks.node_worker"] if ours else [str(_WORKER)]
        self._command = [python, *script, task, str(folder)]
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()

    def ask(self, name: str) -> dict[str, Any]:
        """Return the answer on one model."""
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(name + "\n")
        process.stdin.flush()
        try:
            line = self._lines.get(timeout=_SECONDS)
        except queue.Empty:
            line = ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        timed_out = process.poll() is None
        self.stop()
        return {
            "name": name,
            "outcome": "died",
            "reason": "no end" if timed_out else f"exit status {process.returncode}",
        }

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lines = queue.Queue()
        threading.Thread(target=_read, args=(process, self._lines), daemon=True).start()
        return process

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _read(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    """Pass the lines of a process on; an empty one marks its end."""
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    process.wait()
    lines.put("")


def render(
    names: Sequence[str],
    answers: Mapping[str, Mapping[str, Mapping[str, Any]]],
    verdicts: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return the counts as a Markdown table, and below it what went wrong."""
    run = [name for name in names if verdicts[name].get("runner", "none") != "none"]
    runners = Counter(verdicts[name]["runner"] for name in run)
    lines = [
        f"{len(names)} models; {runners['onnxruntime']} run in ONNX Runtime, {runners['onnx']} in ONNX's reference "
        f"evaluator; the other {len(names) - len(run)} (random, or run by neither) are not compared.",
        "",
        f"| tool | {' | '.join(_COLUMNS)} |",
        "|---" * (len(_COLUMNS) + 1) + "|",
    ]
    faults: list[str] = []
    for tool, given in answers.items():
        counts: Counter[str] = Counter()
        for name in run:
            kind, reason = _outcome(given[name], verdicts[name].get(tool, {}))
            counts[kind] += 1
            counts["before"] += verdicts[name].get(tool, {}).get("nodes", [0, 0])[0]
            counts["after"] += verdicts[name].get(tool, {}).get("nodes", [0, 0])[1]
            if kind not in _COLUMNS[:2]:
                faults.append(f"- {tool}: `{name}` {kind}: {reason}")
        cells = [str(counts[column]) for column in _COLUMNS[:-1]]
        lines.append(f"| {tool} | {' | '.join(cells)} | {counts['before']} -> {counts['after']} |")
    declined = sum(answer.get("declined", 0) for answer in answers["graphopt"].values())
    lines += ["", f"graphopt left {declined} places alone with a reason."]
    return "\n".join([*lines, "", *faults])


def _outcome(answer: Mapping[str, Any], verdict: Mapping[str, Any]) -> tuple[str, str]:
    """Return which column a model belongs to, and why where that is a fault."""
    if answer["outcome"] != "done":
        return answer["outcome"], answer["reason"]
    if verdict["verdict"] == "equal":
        return ("changed, equal" if verdict["changed"] else "unchanged, equal"), ""
    return verdict["verdict"], verdict["reason"]


if __name__ == "__main__":
    main()
