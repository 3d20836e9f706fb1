"""The pipeline as a transaction: what breaks the contract is rolled back, and the rest goes on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

from graphopt.base import Pass, PassReport
from graphopt.context import Context
from graphopt.contract import check
from graphopt.errors import ModelError, PassError
from graphopt.evaluate import Evaluator
from graphopt.ir.graph import Constant, Node, Variable
from graphopt.model import Model
from graphopt.pipeline import Pipeline, with_required
from graphopt.registry import pass_class
from graphopt.samples import open_samples
from graphopt.targets import get_target

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 2] y)
<float[4, 2] w = {1, -2, -3, 4, 5, -6, -7, 8}>
{
  h = MatMul(x, w)
  r = Relu(h)
  y = Identity(r)
}
"""


def build() -> Model:
    return Model.from_proto(onnx.parser.parse_model(TEXT))


def context(model: Model, *, data: Any = "random", **fields: Any) -> Context:
    samples = open_samples(data, model.interface) if data is not None else None
    target = get_target("cpu")
    return Context(target=target, evaluator=Evaluator(model, target, samples=samples), samples=samples, **fields)


@dataclass(frozen=True)
class _Test(Pass):
    name: ClassVar[str] = "test"
    lossless: ClassVar[bool] = True


class Nothing(_Test):
    def run(self, model: Model, context: Context) -> PassReport:
        return PassReport(0)


class DropIdentity(_Test):
    def run(self, model: Model, context: Context) -> PassReport:
        relu, identity = model.graph.nodes[1], model.graph.nodes[2]
        relu.outputs[0] = identity.outputs[0]
        del relu.outputs[0].inputs[0]
        model.graph.nodes.pop()
        identity.inputs.clear()
        return PassReport(1)


class Scale(_Test):
    """Multiplies the weights: a lossless pass that lies."""

    factor: float = 1.5

    def run(self, model: Model, context: Context) -> PassReport:
        weight = model.graph.nodes[0].inputs[1]
        weight.values = weight.values * np.float32(self.factor)
        return PassReport(1)


class LossyScale(Scale):
    lossless: ClassVar[bool] = False


class SlightScale(LossyScale):
    factor: float = 1.003


class Trusted(SlightScale):
    accepted_unjudged: ClassVar[bool] = True


class RenameOutput(_Test):
    def run(self, model: Model, context: Context) -> PassReport:
        model.graph.outputs[0].name = "z"
        return PassReport(1)


class Retype(_Test):
    def run(self, model: Model, context: Context) -> PassReport:
        model.graph.outputs[0].shape = [1, 2]
        return PassReport(1)


class Invalid(_Test):
    def run(self, model: Model, context: Context) -> PassReport:
        model.graph.nodes[1].attrs["no_such_attribute"] = 1
        return PassReport(1)


class Unrunnable(_Test):
    """Passes the checker, but no runtime has the operator."""

    may_grow: ClassVar[bool] = True  # so that the size is not what it fails for

    def run(self, model: Model, context: Context) -> PassReport:
        model.graph.nodes[1].op, model.graph.nodes[1].domain = "NoSuchOperator", "com.microsoft"
        return PassReport(1)


class TrustedUnrunnable(Unrunnable):
    lossless: ClassVar[bool] = False
    accepted_unjudged: ClassVar[bool] = True


class Grow(_Test):
    def run(self, model: Model, context: Context) -> PassReport:
        graph = model.graph
        out, extra = Variable("sum"), Constant("zero", np.zeros((4096, 1, 2), np.float32))
        last = graph.nodes[2]
        unused = Variable("unused")
        graph.nodes.append(Node("Mul", inputs=[last.inputs[0], extra], outputs=[unused]))
        squeezed = Variable("squeezed")
        graph.nodes.append(Node("ReduceMax", attrs={"axes": [0], "keepdims": 0}, inputs=[unused], outputs=[squeezed]))
        graph.nodes.append(Node("Add", inputs=[last.inputs[0], squeezed], outputs=[out]))
        last.inputs[0] = out
        return PassReport(1)


class Crash(_Test):
    def run(self, model: Model, context: Context) -> PassReport:
        model.graph.nodes[0].inputs[1].values = np.zeros((4, 2), np.float32)
        raise KeyError("oops")


class Complain(_Test):
    def run(self, model: Model, context: Context) -> PassReport:
        raise ModelError("this model is not for me")


def run(*passes: Pass, strict: bool = False, data: Any = "random", **fields: Any) -> Any:
    model = build()
    before = model.fingerprint()
    result, steps = Pipeline(passes).run(model, context(model, data=data, **fields), strict=strict)
    assert model.fingerprint() == before, "the caller's model was touched"
    return result, steps


def test_accepts_a_lossless_rewrite() -> None:
    result, (step,) = run(DropIdentity())
    assert (step.outcome, step.reason) == ("accepted", "")
    assert result.node_count == 2
    assert step.after.nodes == step.before.nodes - 1
    assert step.after.nbytes < step.before.nbytes


@pytest.mark.parametrize(("data", "macs"), [(None, 8), ([{"x": np.ones((3, 4), np.float32)}], 24)])
def test_macs_are_those_of_the_first_sample_or_of_small_sizes(data: Any, macs: int) -> None:
    _, (step,) = run(DropIdentity(), data=data)
    assert step.before.macs == step.after.macs == macs


def test_a_pass_that_changes_nothing_is_unchanged() -> None:
    result, (step,) = run(Nothing())
    assert step.outcome == "unchanged"
    assert step.before == step.after
    assert result.node_count == 3


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (Scale(), "outputs changed"),
        (LossyScale(), "agreement dropped by"),
        (RenameOutput(), r"outputs changed from \['y'\] to \['z'\]"),
        (Retype(), "output 'y' changed from float32"),
        (Invalid(), "the ONNX checker refuses it"),
        (Unrunnable(), "NoSuchOperator"),
        (Grow(), "the file grew from"),
        (Crash(), "it failed: KeyError"),
        (Complain(), "this model is not for me"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Pass) else "",
)
def test_rolls_back_and_goes_on(item: Pass, reason: str) -> None:
    result, (bad, good) = run(item, DropIdentity())
    assert bad.outcome == "rolled back"
    assert re.search(reason, bad.reason), bad.reason
    assert "\n" not in bad.reason
    assert bad.before == bad.after
    assert good.outcome == "accepted"
    assert result.node_count == 2


@pytest.mark.parametrize(("old", "new"), [("float[N, 2] y", "float[N, 5] y"), ("g (float", "_ (float")])
def test_a_model_that_the_checker_refuses_is_held_to_what_it_passes(old: str, new: str) -> None:
    """Such models run: one states a wrong shape, one has a graph without a name."""
    proto = onnx.parser.parse_model(TEXT.replace(old, new))
    proto.graph.name = proto.graph.name.strip("_")
    with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError)):
        onnx.checker.check_model(proto, full_check=True)
    model = Model.from_proto(proto)
    _, (step,) = Pipeline((DropIdentity(),)).run(model, context(model))
    assert (step.outcome, step.reason) == ("accepted", "")


def test_a_wrong_word_about_an_output_is_not_held_against_what_lets_inference_see_it() -> None:
    """The output has three axes and the file says two, which shows only once inference gets as far as there."""
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, M] y) <int64[3] target = {-1, 2, 2}> { y = Reshape(x, target) }"""
    proto = onnx.parser.parse_model(text)
    with pytest.raises(onnx.shape_inference.InferenceError, match="rank"):
        onnx.checker.check_model(proto, full_check=True)
    check(Model.from_proto(proto), full=True)
    broken = Model.from_proto(onnx.parser.parse_model(text.replace("Reshape(x, target)", "MatMul(x, target)")))
    with pytest.raises(ModelError, match="the ONNX checker refuses it"):
        check(broken, full=True)


def test_strict_makes_a_roll_back_an_error() -> None:
    with pytest.raises(PassError, match="pass 'test': outputs changed"):
        run(Scale(), strict=True)


def test_lossy_within_the_limit_is_accepted() -> None:
    _, (step,) = run(SlightScale())
    assert step.outcome == "accepted"
    assert step.drop is not None
    assert 0 < step.drop.value < 0.01
    assert step.drop.random
    assert step.verified == "agreement on 8 random inputs"


def test_the_limit_is_the_users() -> None:
    _, (step,) = run(SlightScale(), max_drop=0.0)
    assert step.outcome == "rolled back"


def test_losses_add_up_against_the_original() -> None:
    passes = [SlightScale() for _ in range(80)]
    _, steps = run(*passes)
    outcomes = [step.outcome for step in steps]
    assert outcomes[0] == "accepted"
    assert outcomes[-1] == "rolled back", "each step is small, all together are not"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_prove_nothing_judge_nothing(value: float) -> None:
    feeds = [{"x": np.full((1, 4), value, np.float32)}]
    _, (step,) = run(SlightScale(), data=feeds)
    assert step.outcome == "rolled back"
    assert "nothing can be judged" in step.reason


@pytest.mark.parametrize(("item", "outcome"), [(DropIdentity(), "accepted"), (Unrunnable(), "rolled back")])
def test_what_cannot_be_compared_must_at_least_open(item: Pass, outcome: str) -> None:
    """No random inputs can be made for an input that does not say how many axes it has."""
    proto = onnx.parser.parse_model(TEXT)
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    model = Model.from_proto(proto)
    _, (step,) = Pipeline((item,)).run(model, context(model, data=None))
    assert step.outcome == outcome, step.reason
    if outcome == "accepted":
        assert step.verified.startswith("not verified: there are no samples, and no random inputs either")
    else:
        assert "NoSuchOperator" in step.reason


def test_what_nothing_judges_must_at_least_open() -> None:
    _, (step,) = run(TrustedUnrunnable(), data=None)
    assert step.outcome == "rolled back"
    assert "NoSuchOperator" in step.reason


def test_without_samples_a_lossy_pass_is_not_judged() -> None:
    _, (step,) = run(SlightScale(), data=None)
    assert step.outcome == "rolled back"
    assert step.reason.startswith("nothing can judge its loss: give samples with --data")


@pytest.mark.parametrize(("item", "limit"), [(SlightScale(), 1.0), (Trusted(), 0.01)])
def test_unless_any_loss_is_allowed_or_the_pass_is_trusted(item: Pass, limit: float) -> None:
    _, (step,) = run(item, data=None, max_drop=limit)
    assert step.outcome == "accepted"
    assert step.drop is None
    assert step.verified == "not judged: no --data"


def test_without_samples_a_lossless_pass_is_still_verified() -> None:
    _, (step,) = run(Scale(), data=None)
    assert step.outcome == "rolled back"


class NeedsFold(_Test):
    requires: ClassVar[tuple[str, ...]] = ("fold",)

    def run(self, model: Model, context: Context) -> PassReport:
        return PassReport(0)


def test_inserts_what_is_required_once() -> None:
    planned = with_required((Nothing(), NeedsFold(), NeedsFold()))
    assert [(item.name, inserted) for item, inserted in planned] == [
        ("test", False),
        ("fold", True),
        ("test", False),
        ("test", False),
    ]


def test_inserts_nothing_that_already_ran() -> None:
    planned = with_required((pass_class("fold")(), NeedsFold()))
    assert [inserted for _, inserted in planned] == [False, False]
