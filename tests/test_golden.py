"""Golden cases: graphs in ONNX's own text, before and after some passes.

A case is a file `cases/<pass>/<behaviour>.txt`::

    # passes: fold
    agraph (float[2] x) => (float[2] y) { ... }
    # output
    # changed: fold 1
    # skipped node: reason
    <the model after the passes, as onnx.printer writes it>

Without a `# output` part, the passes must not change the model. `pytest --update-golden` rewrites the output parts;
read the difference before you commit it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from graphopt import registry
from graphopt.base import PassReport
from graphopt.ir.clean import clean
from graphopt.model import Model
from graphopt.shapes import infer_shapes
from graphopt.spec import parse_pipeline
from tests.helpers import assert_same_outputs, outputs_of, parse, random_feeds
from tests.test_laws import assert_close, context_for

CASES = Path(__file__).parent / "cases"
FILES = sorted(CASES.glob("*/*.txt"))


@dataclass(frozen=True)
class Case:
    """One file, taken apart.

    Attributes:
        passes: Pipeline text.
        source: Model text.
        expected: Lines after "# output", or None.
    """

    passes: str
    source: str
    expected: str | None


def read(path: Path) -> Case:
    """Return a case from its file."""
    head, marker, expected = path.read_text().partition("\n# output\n")
    lines = head.splitlines()
    found = [line.removeprefix("# passes:").strip() for line in lines if line.startswith("# passes:")]
    assert len(found) == 1, f"{path}: the first line must be '# passes: ...'"
    source = "\n".join(line for line in lines if not line.startswith("#"))
    return Case(found[0], source, expected if marker else None)


def outcome(case: Case) -> tuple[onnx.ModelProto, str, bool]:
    """Run the passes; return the model after them, the text for the output part, and whether anything changed."""
    model = Model.from_proto(parse(case.source))
    lines, changed = [], False
    for item in parse_pipeline(case.passes):
        context = context_for(model)
        candidate = model.copy()
        infer_shapes(candidate)
        report = item.run(candidate, context)
        clean(candidate.graph)
        lines += told(item.name, report)
        if report.changed:
            model, changed = candidate, True
    proto = model.to_proto()
    text = onnx.printer.to_text(proto)
    return proto, "\n".join([*lines, rounded(text), ""]), changed


def told(name: str, report: PassReport) -> list[str]:
    """Return what a pass reports, as lines of a case."""
    lines = [f"# changed: {name} {report.changed}"]
    lines += [f"# skipped {skip.where}: {rounded(skip.reason)}" for skip in report.skipped]
    return lines + [f"# note: {rounded(note)}" for note in report.notes]


def rounded(text: str) -> str:
    """Return the text with its floats cut to four digits, since the last ones differ between processors."""
    return re.sub(r"-?\d+\.\d+(e[+-]?\d+)?", lambda match: f"{float(match[0]):.4g}", text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_case(path: Path, update_golden: bool) -> None:
    case = read(path)
    proto, text, changed = outcome(case)
    if update_golden:
        head = path.read_text().partition("\n# output\n")[0].rstrip("\n")
        path.write_text(f"{head}\n# output\n{text}")
        return
    if case.expected is None:
        assert not changed, text
    else:
        assert text == case.expected
    onnx.checker.check_model(proto)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_expectation_computes_the_same(path: Path) -> None:
    """What a case expects is not only what came out once, but right."""
    case = read(path)
    before = parse(case.source)
    after, _, _ = outcome(case)
    feeds = random_feeds(before, seed=3, sizes={"N": 3})
    if any(node.domain not in ("", "ai.onnx") for node in before.graph.node):
        return  # custom operators do not run
    lossless = all(item.lossless for item in parse_pipeline(case.passes))
    found, wanted = outputs_of(after, feeds), outputs_of(before, feeds)
    if lossless:
        assert_same_outputs(found, wanted, rtol=1e-5, atol=1e-6)
    else:
        assert_close(found, wanted)


@pytest.mark.parametrize("name", registry.BUILTIN)
def test_each_pass_has_cases(name: str) -> None:
    """With something done, something skipped, and nothing to do."""
    cases = [read(path) for path in sorted((CASES / name).glob("*.txt"))]
    assert cases
    texts = [case.expected or "" for case in cases]
    assert any(re.search(rf"^# changed: {name} [1-9]", text, re.M) for text in texts)
    assert any(re.search(rf"^# changed: {name} 0$", text, re.M) or not text for text in texts)


def test_golden_text_has_no_long_digits() -> None:
    assert rounded("x = {1.23456789, -0.1} 3 1.5e-07 2") == "x = {1.235, -0.1} 3 1.5e-07 2"
