"""What holds for every pass, on generated models; a new pass is covered by being registered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import ClassVar

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings

from graphopt import registry
from graphopt.base import Pass, PassReport
from graphopt.context import Context
from graphopt.errors import GraphoptError
from graphopt.evaluate import Evaluator
from graphopt.ir.clean import clean
from graphopt.ir.graph import constants
from graphopt.model import Model
from graphopt.observe import Observer
from graphopt.pipeline import with_required
from graphopt.samples import random_samples
from graphopt.shapes import infer_shapes
from graphopt.spec import format_pass, options, parse_pass
from graphopt.targets import get_target
from tests.graphs import models
from tests.helpers import assert_same_model, assert_same_outputs, outputs_of, random_feeds

# Options that make a pass work on models as small as the generated ones; each pass also runs with its defaults.
EAGER = {
    "pack": ("pack:min-bytes=64", "pack:min-bytes=64:bits=6"),
    "prune": ("prune:ratio=0.25",),
    "equalize": ("equalize:method=cle",),
    "half": ("half:min-bytes=0", "half:compute=graph", "half:type=bf16:min-bytes=0"),
    "quant": ("quant:mode=weights", "quant:mode=weights:form=nbits"),
}
WORST = 0.5  # largest energy of a lossy pass's error, as a fraction of the output's
DRASTIC = frozenset({"prune"})  # specs that no such bound holds for, on networks without redundancy
SETTLES = {
    "prune": 3,
    "quant": 3,
}  # runs after which a pass must have nothing more to do: what one way took, the others leave

NAMES = tuple(registry.BUILTIN)
SPECS = [spec for name in NAMES for spec in (name, *EAGER.get(name, ()))]

every_pass = pytest.mark.parametrize("spec", SPECS)
few = settings(
    max_examples=settings().max_examples * 3 // 5,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class Untimed(Evaluator):
    """Judges all but time, which differs from run to run and is long."""

    times: ClassVar[bool] = False


def context_for(model: Model, seed: int = 0) -> Context:
    """Return the surroundings of a run with random samples, the same on every machine."""
    target = get_target("cpu-avx2")
    samples = random_samples(model.interface, seed=seed, count=4, optional=frozenset(model.graph.defaults))
    evaluator = Untimed(model, target, samples=samples, seed=seed)
    return Context(target, evaluator, samples, seed=seed, max_drop=WORST, observer=Observer(samples))


def apply(item: Pass, model: Model, context: Context) -> tuple[Model, PassReport]:
    """Run a pass as the pipeline does, without its judgement."""
    candidate = model.copy()
    infer_shapes(candidate)
    report = item.run(candidate, context)
    return candidate, report


def prepared(item: Pass, proto: onnx.ModelProto) -> Model:
    """Return the model after the passes that this one requires."""
    model = Model.from_proto(proto)
    for required, inserted in with_required((item,)):
        if inserted:
            model, _ = apply(required, model, context_for(model))
            clean(model.graph)
    return model


def both_ways(proto: onnx.ModelProto) -> list[dict[str, np.ndarray]]:
    """Return inputs that go through both branches of every If."""
    feeds = random_feeds(proto, sizes={"N": 3})
    return [feeds | {"flag": np.array(flag)} for flag in (True, False)]


@pytest.mark.parametrize("name", NAMES)
def test_declaration_is_complete(name: str) -> None:
    cls = registry.pass_class(name)
    assert cls.__doc__
    assert cls.__doc__.splitlines()[0].endswith(".")
    assert isinstance(cls().lossless, bool)
    assert all(required in registry.available() for required in cls.requires)
    documented = cls.__doc__.partition("Attributes:")[2]
    for option in fields(cls):
        assert f"    {option.name}: " in documented, f"option {option.name} is not documented"
    assert cls() == cls()
    assert hash(cls()) == hash(cls())
    assert len(options(cls)) == len(fields(cls))


@every_pass
def test_spec_round_trip(spec: str) -> None:
    item = parse_pass(spec)
    assert parse_pass(format_pass(item)) == item
    assert format_pass(parse_pass(item.name)) == item.name


@every_pass
@few
@given(proto=models())
def test_outputs(spec: str, proto: onnx.ModelProto) -> None:
    """Lossless: equal up to the rounding of floats. Lossy: types, shapes, and most of the signal."""
    item = parse_pass(spec)
    model = prepared(item, proto)
    result, _ = apply(item, model, context_for(model))
    clean(result.graph)
    onnx.checker.check_model(result.skeleton())
    for feeds in both_ways(proto):
        before, after = outputs_of(model, feeds), outputs_of(result, feeds)
        if item.lossless:
            scale = max((float(np.abs(value).max()) for value in before.values()), default=1.0)
            assert_same_outputs(after, before, rtol=1e-4, atol=1e-5 * max(scale, 1.0))
        else:
            assert_close(after, before, worst=np.inf if spec in DRASTIC else WORST)


def assert_close(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], worst: float = WORST) -> None:
    """Fail unless types and shapes agree and the error's energy is below this fraction of the signal's."""
    assert list(found) == list(wanted)
    for name, expected in wanted.items():
        assert found[name].dtype == expected.dtype
        assert found[name].shape == expected.shape
        assert np.isfinite(found[name]).all()
        energy, error = float(np.square(expected).sum()), float(np.square(found[name] - expected).sum())
        assert error <= worst * energy + 1e-6, f"{name}: error {error:.3g} of energy {energy:.3g}"


@every_pass
@few
@given(proto=models())
def test_interface_stays(spec: str, proto: onnx.ModelProto) -> None:
    item = parse_pass(spec)
    model = prepared(item, proto)
    result, _ = apply(item, model, context_for(model))
    clean(result.graph)
    assert result.interface == model.interface


@every_pass
@few
@given(proto=models())
def test_report_is_honest(spec: str, proto: onnx.ModelProto) -> None:
    """No change is reported exactly when there is none; every skip names a place and says why."""
    item = parse_pass(spec)
    model = prepared(item, proto)
    before = model.copy()
    infer_shapes(before)
    result, report = apply(item, model, context_for(model))
    if report.changed == 0:
        assert_same_model(result.to_proto(), model.to_proto())
        assert result.fingerprint() == before.fingerprint()
    else:
        clean(result.graph)
        clean(before.graph)
        assert result.to_proto() != before.to_proto()
    for skip in report.skipped:
        assert len(skip.reason) > 5
        assert "\n" not in skip.reason + skip.where
    assert len({(skip.where, skip.reason) for skip in report.skipped}) == len(report.skipped), "a skip is told twice"
    assert all(np.isfinite(value) for value in report.metrics.values())


@every_pass
@few
@given(proto=models())
def test_second_run_changes_nothing(spec: str, proto: onnx.ModelProto) -> None:
    """A pass leaves nothing to do for itself; one that weighs ways against each other settles after a few runs."""
    item = parse_pass(spec)
    model = prepared(item, proto)
    context = context_for(model)
    for _ in range(SETTLES.get(item.name, 1)):
        model, _ = apply(item, model, context)
        clean(model.graph)
    again, report = apply(item, model, context)
    assert report.changed == 0, report
    assert_same_model(again.to_proto(), model.to_proto())


@every_pass
@few
@given(proto=models())
def test_same_seed_same_bytes(spec: str, proto: onnx.ModelProto) -> None:
    item = parse_pass(spec)
    model = prepared(item, proto)
    results = []
    for _ in range(2):
        result, _ = apply(item, model, context_for(model))
        clean(result.graph)
        results.append(result.to_proto().SerializeToString(deterministic=True))
    assert results[0] == results[1]


@every_pass
@few
@given(proto=models())
def test_the_input_is_not_touched(spec: str, proto: onnx.ModelProto) -> None:
    """Neither its graph nor the arrays that it shares with the result."""
    item = parse_pass(spec)
    model = prepared(item, proto)
    before = model.to_proto().SerializeToString(deterministic=True)
    arrays = [constant.values for constant in constants(model.graph)]
    values = [array.copy() for array in arrays]
    apply(item, model, context_for(model))
    assert model.to_proto().SerializeToString(deterministic=True) == before
    for array, value in zip(arrays, values, strict=True):
        np.testing.assert_array_equal(array, value)


@every_pass
@few
@given(proto=models())
def test_the_file_does_not_grow(spec: str, proto: onnx.ModelProto) -> None:
    """Where a pass promises that."""
    item = parse_pass(spec)
    model = prepared(item, proto)
    if item.may_grow or not item.lossless:
        return
    result, _ = apply(item, model, context_for(model))
    clean(result.graph)
    assert result.to_proto().ByteSize() <= model.to_proto().ByteSize()


@pytest.mark.parametrize("name", NAMES)
def test_the_models_make_the_pass_work(name: str) -> None:
    """The laws above are not about models in which nothing happens."""
    item = parse_pass(EAGER.get(name, (name,))[0])
    found = search(lambda proto: run_on(item, proto).changed > 0)
    assert run_on(item, found).changed > 0


def run_on(item: Pass, proto: onnx.ModelProto) -> PassReport:
    """Return the report of a pass on a model."""
    model = prepared(item, proto)
    return apply(item, model, context_for(model))[1]


def search(condition: Callable[[onnx.ModelProto], bool]) -> onnx.ModelProto:
    """Return a generated model that meets the condition."""
    quiet = settings(max_examples=500, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    return find(models(), condition, settings=quiet)


def test_generated_models_are_alive() -> None:
    """Nothing in them is dead code, and each kind of node occurs."""
    seen: set[str] = set()

    @settings(max_examples=300)
    @given(models())
    def look(proto: onnx.ModelProto) -> None:
        assert clean(Model.from_proto(proto).graph) == 0
        seen.update(node.op_type for node in proto.graph.node)

    look()
    assert {"Conv", "BatchNormalization", "Relu", "MatMul", "Gemm", "Add", "Mul", "Concat", "Reshape"} <= seen
    assert {"Transpose", "Identity", "Constant", "If", "Clip", "Flatten", "Cast"} <= seen


def test_wrong_options_are_refused() -> None:
    """Wrong options are errors of the kind that the command shows in one line."""
    for name in NAMES:
        for option in options(registry.pass_class(name)):
            if option.allowed == "text":
                continue
            with pytest.raises(GraphoptError, match=option.name):
                parse_pass(f"{name}:{option.name}=no such value")
