"""Every model of ONNX's own backend tests passes through `fold,share` with equal outputs.

The models come with the onnx package. Those of single operators (almost 1900, made by code) run with ``--slow`` only.
"""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from graphopt.context import Context
from graphopt.evaluate import Evaluator
from graphopt.ir.clean import clean
from graphopt.model import Model
from graphopt.reader import load
from graphopt.spec import parse_pipeline
from graphopt.targets import get_target
from tests.helpers import assert_same_outputs, outputs_of, random_feeds
from tests.test_laws import apply

pytestmark = pytest.mark.backend

DATA = Path(onnx.backend.test.__file__).parent / "data"
MODELS = sorted(DATA.glob("*/**/*.onnx"))
PIPELINE = "fold,share"
COUNTS: Counter[str] = Counter()
# What a runtime says of an original model with an operator, type or input that it does not have.
NOT_HERE = (ort_errors.Fail, ort_errors.InvalidGraph, ort_errors.InvalidArgument, ort_errors.NotImplemented,
            ort_errors.RuntimeException, RuntimeError, NotImplementedError, TypeError, ValueError)  # fmt: skip


def check_model(model: Model, original: onnx.ModelProto, cases: list[dict[str, Any]]) -> None:
    """Run the passes and compare, where ONNX Runtime runs the original."""
    COUNTS["models"] += 1
    copy = model.copy()
    result, changed = optimized(model)
    COUNTS["changed"] += changed
    stored = result.to_proto().SerializeToString(deterministic=True)
    assert optimized(copy)[0].to_proto().SerializeToString(deterministic=True) == stored, "two runs differ"
    assert not optimized(Model.from_proto(result.to_proto()))[1], "a second run changes the result"
    for feeds in cases:
        run = runner(original, feeds)
        if run is None:
            COUNTS["run by nobody here"] += 1
            return
        wanted = run(original, feeds)
        if not equal(run(original, feeds), wanted):
            COUNTS["random"] += 1
            return
        compare(run(result.to_proto(), feeds), wanted)
    COUNTS["compared"] += 1


def compare(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Fail unless outputs are equal up to reassociation, in half precision if one of them has it."""
    floats = [value for value in wanted.values() if isinstance(value, np.ndarray) and value.dtype.kind == "f"]
    half = any(value.dtype == np.float16 for value in floats)
    sizes = [float(np.abs(value).max()) for value in floats if value.size and np.isfinite(value).all()]
    scale = max(1.0, *sizes) if sizes else 1.0
    assert_same_outputs(found, wanted, rtol=1e-2 if half else 1e-4, atol=(1e-3 if half else 1e-6) * scale)


def equal(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether two runs of one model agree to the bit."""
    try:
        assert_same_outputs(found, wanted, rtol=0, atol=0)
    except AssertionError:
        return False
    return True


def runner(original: onnx.ModelProto, feeds: dict[str, Any]) -> Callable[..., dict[str, Any]] | None:
    """Return what can run the original: ONNX Runtime, else, for operators of old opsets, ONNX's reference evaluator."""
    for name, run in (("ONNX Runtime", outputs_of), ("the reference evaluator", reference_outputs)):
        try:
            run(original, feeds)
        except NOT_HERE:
            continue
        COUNTS[f"run by {name}"] += 1
        return run
    return None


def reference_outputs(proto: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    """Run a model in Python; slow, but every opset is there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = ReferenceEvaluator(proto).run(None, feeds)
    return dict(zip((info.name for info in proto.graph.output), outputs, strict=True))


def optimized(model: Model) -> tuple[Model, bool]:
    """Return the model after the passes, and whether any of them changed it."""
    target = get_target("cpu-avx2")
    changed = False
    for item in parse_pipeline(PIPELINE):
        context = Context(target, Evaluator(model, target, samples=None))
        candidate, report = apply(item, model, context)
        COUNTS[f"declined places ({item.name})"] += len(report.skipped)
        if report.changed:
            clean(candidate.graph)
            model, changed = candidate, True
    return model, changed


def read_value(raw: bytes, info: onnx.ValueInfoProto) -> Any:
    """Return a value of a test data set, by the type of the input it is for."""
    kind = info.type.WhichOneof("value")
    if kind == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(raw))
    if kind == "optional_type":
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(raw))
    return numpy_helper.to_array(onnx.TensorProto.FromString(raw))


def cases_of(path: Path, proto: onnx.ModelProto) -> list[dict[str, Any]]:
    """Return the inputs that lie beside a model, else random ones."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    infos = [info for info in proto.graph.input if info.name not in stored]
    cases = []
    for folder in sorted(path.parent.glob("test_data_set_*")):
        files = [folder / f"input_{number}.pb" for number in range(len(infos))]
        cases.append({i.name: read_value(f.read_bytes(), i) for i, f in zip(infos, files, strict=True) if f.exists()})
    return cases or [random_feeds(proto, seed=1)]


def model_id(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}" if path.parent.name == "light" else path.parent.name


@pytest.mark.parametrize("path", MODELS, ids=model_id)
def test_model(path: Path) -> None:
    original = onnx.load(path)
    check_model(load(path), original, cases_of(path, original))


def test_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """The comparison was not about models that do not run, and the passes found work."""
    with capsys.disabled():
        lines = [f"  {count:5d} {what}" for what, count in sorted(COUNTS.items())]
        print("\n".join(["", f"onnx {onnx.__version__} backend models through {PIPELINE}:", *lines]))  # noqa: T201
    if COUNTS["models"] < len(MODELS):
        pytest.skip("only some of the models were selected")
    assert COUNTS["compared"] >= 0.9 * len(MODELS)
    assert COUNTS["changed"] >= 10


@functools.cache
def node_cases() -> dict[str, Any]:
    """Return ONNX's tests of single operators by name."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference implementations divide by zero on purpose
        return {case.name: case for case in collect_testcases(None) if case.model is not None}


@pytest.mark.slow
def test_single_operators(capsys: pytest.CaptureFixture[str]) -> None:
    """All of them in one test: they are made by code, which takes a while."""
    COUNTS.clear()
    failures = []
    for name, case in sorted(node_cases().items()):
        names = [info.name for info in case.model.graph.input]
        cases = [dict(zip(names, inputs, strict=False)) for inputs, _ in case.data_sets]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check_model(Model.from_proto(case.model), case.model, cases)
        except Exception as error:  # the next model is of interest too
            failures.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    with capsys.disabled():
        lines = [f"  {count:5d} {what}" for what, count in sorted(COUNTS.items())]
        print("\n".join(["", f"onnx {onnx.__version__} single operators through {PIPELINE}:", *lines]))  # noqa: T201
    assert not failures, "\n".join(failures)
