"""What every pass's result must fulfil before it is accepted."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from graphopt.base import Pass
from graphopt.context import Context
from graphopt.cost import Figures, figures
from graphopt.errors import ModelError
from graphopt.evaluate import Drop
from graphopt.filesize import Scale
from graphopt.model import Interface, Model
from graphopt.runtime.costs import figures_on
from graphopt.runtime.session import open_session
from graphopt.runtime.timing import Ratio
from graphopt.shapes import shapes_for

_TIMED = 1.0  # seconds to time a pass's result: whether it is slower; how much faster all are together is timed later


@dataclass(frozen=True)
class Verdict:
    """What the checks found.

    Attributes:
        broken: The clause that was broken, with figures; empty if none was.
        drop: Loss against the original, if measured.
        latency: Time after over time before, if measured.
        verified: How outputs were compared, in words.
    """

    broken: str = ""
    drop: Drop | None = None
    latency: Ratio | None = None
    verified: str = ""


class Contract:
    """Checks results against the model that a run started with.

    Args:
        original: The user's model.
        context: Surroundings of the run.
        zstd_level: Of the compressed sizes in the figures; None: do not measure them.
    """

    def __init__(self, original: Model, context: Context, *, zstd_level: int | None = 3) -> None:
        self._context = context
        self._interface = original.interface
        self._strictest = _strictest_check(original)
        self._example = context.evaluator.inputs.example()
        self._scale = Scale(zstd_level)
        self._figures: dict[int, tuple[Model, Figures]] = {}

    def figures(self, model: Model) -> Figures:
        """Return size and cost of a model, measured once; MACs are those of the first sample, or of made-up inputs."""
        if id(model) not in self._figures:
            self._figures = {id(model): (model, self._measure(model))}
        return self._figures[id(model)][1]

    def _measure(self, model: Model) -> Figures:
        try:
            return figures_on(model, self._example, scale=self._scale)
        except ModelError:
            if self._context.samples is not None:
                raise
            return figures(model, shapes_for(model, self._example), scale=self._scale)  # made-up inputs need not run

    def judge(self, item: Pass, before: Model, after: Model) -> Verdict:
        """Check the result of one pass, the cheap clauses first."""
        broken = self._structure(item, before, after)
        if broken:
            return Verdict(broken)
        return self._lossless(before, after) if item.lossless else self._lossy(item, before, after)

    def _structure(self, item: Pass, before: Model, after: Model) -> str:
        changed = interface_change(self._interface, after.interface)
        if changed:
            return changed
        try:
            check(after, self._strictest)
        except ModelError as error:
            return str(error)
        grown = figures_growth(self.figures(before), self.figures(after))
        if grown and not item.may_grow:
            return grown
        return ""

    def _lossless(self, before: Model, after: Model) -> Verdict:
        same = self._context.evaluator.mismatch(before, after)
        if same.equal is False:
            return Verdict(f"outputs changed: {same.detail}", verified=same.describe())
        if same.equal is None:
            open_session(after, threads=1).close()
        return Verdict(verified=same.describe())

    def _lossy(self, item: Pass, before: Model, after: Model) -> Verdict:
        evaluator, limit = self._context.evaluator, self._context.max_drop
        open_session(after, threads=1).close()
        drop = evaluator.drop(after)
        if drop is None and not item.accepted_unjudged and limit < 1:
            return Verdict(
                "nothing can judge its loss: give samples with --data or a score with --metric, or allow any loss with "
                "--max-drop 100%"
            )
        if drop is not None and not drop.within(limit):
            return Verdict(f"{drop.measure} dropped by {drop.compare(limit)}", drop)
        latency = evaluator.latency(before, after, seconds=_TIMED, only_slower=True) if item.promises_speed else None
        if latency is not None and latency.slower:
            took = f"{latency.median:.2f} x ({latency.low:.2f} to {latency.high:.2f})"
            return Verdict(f"the result takes {took} the time on {self._context.target.name}", drop, latency)
        return Verdict("", drop, latency, "not judged: no --data" if drop is None else drop.describe())


def interface_change(then: Interface, now: Interface) -> str:
    """Return what differs between two interfaces, or an empty text."""
    for kind, olds, news in (("input", then.inputs, now.inputs), ("output", then.outputs, now.outputs)):
        if [spec.name for spec in olds] != [spec.name for spec in news]:
            return f"{kind}s changed from {[spec.name for spec in olds]} to {[spec.name for spec in news]}"
        for old, new in zip(olds, news, strict=True):
            if old.proto != new.proto:
                return f"{kind} '{old.name}' changed from {old.dtype} {old.shape} to {new.dtype} {new.shape}"
    return ""


def figures_growth(before: Figures, after: Figures) -> str:
    """Return by how much the file grew, or an empty text."""
    if after.nbytes <= before.nbytes:
        return ""
    return f"the file grew from {before.nbytes} to {after.nbytes} bytes"


def check(model: Model, full: bool | None) -> None:
    """Run the ONNX checker.

    Args:
        model: Any model; large weights are not copied.
        full: Whether to infer types and shapes as well; None: do not check.

    Raises:
        ModelError: The checker refuses it.
    """
    if full is None:
        return
    skeleton = model.skeleton()
    try:
        onnx.checker.check_model(skeleton)
        if full:
            _forget_output_shapes(skeleton)
            onnx.shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the ONNX checker refuses it: {' '.join(str(error).split())[:300]}") from error


def _forget_output_shapes(proto: onnx.ModelProto) -> None:
    """Drop what a file says of the shapes of its outputs.

    Runtimes do not mind where it is wrong, nor does the checker as long as inference gets stuck on the way: a rewrite
    that lets it see more is not to blame. That it stays as it was is a clause of its own.
    """
    for output in proto.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")


def _strictest_check(original: Model) -> bool | None:
    """Return the strictest check that the original passes: real models run that no checker likes."""
    for full in (True, False):
        try:
            check(original, full)
        except ModelError:
            continue
        return full
    return None
