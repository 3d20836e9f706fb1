"""One run of integers for weights and activations: find what can be quantized, try the ways of it, report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_graphsurgeon as gs

from graphopt.base import Fate, PassReport, Skip
from graphopt.context import Context
from graphopt.errors import GraphoptError
from graphopt.evaluate import Drop
from graphopt.model import Model
from graphopt.opsets import AT_RUN_TIME, PER_CHANNEL, PER_TENSOR, raised
from graphopt.passes.quant.accounting.accounting import account, summary
from graphopt.passes.quant.nodes.placement import joinable
from graphopt.passes.quant.nodes.sites import DynamicSite, find_sites
from graphopt.passes.quant.nodes.units import Unit, find_units, name_of
from graphopt.passes.quant.numbers.calibrate import Calibration, calibrate
from graphopt.passes.quant.search.candidates import WORTH, Judged
from graphopt.passes.quant.search.errors import OutputError, hardest
from graphopt.passes.quant.search.judging import Judge
from graphopt.passes.quant.search.plans import IntegerOptions, make_plans
from graphopt.passes.quant.search.search import Search
from graphopt.passes.quant.search.verdict import describe, left_float, why_not
from graphopt.passes.quant.search.workshop import Workshop
from graphopt.passes.quant.storage.others import Judgement, others_stored
from graphopt.passes.quant.writing.frames import as_products
from graphopt.passes.quant.writing.tables import untying
from graphopt.runtime.profile import NodeTime, node_times
from graphopt.samples import Samples
from graphopt.shapes import infer_shapes

_DRAWN = 4  # random inputs to judge on where there are no samples
_TIMED = 3  # samples that nodes are timed on
_FEW = 4  # samples that tell where an error comes from
_LOOKED = 24  # samples that they are chosen from
_NO_DATA = "ranges are found at run time (dynamic int8); with --data, fixed ranges also make Conv and others int8"


class Run:
    """One run.

    Args:
        options: What is wanted.
        model: Edited in place.
        context: Surroundings.
    """

    def __init__(self, options: IntegerOptions, model: Model, context: Context) -> None:
        self._options = options
        self._model = model
        self._context = context
        self._notes: list[str] = []
        self._skipped: list[Skip] = []
        self._float_times: list[NodeTime] | None = None
        self._framed = 0  # convolutions that became products
        self._raised = ""  # that the model was converted, which counts only where something comes of it

    def report(self) -> PassReport:
        """Try, measure, keep the best and tell."""
        workshop = self._workshop()
        plans = make_plans(self._options, workshop.units, workshop.sites)
        if not plans:
            return self._without_integers(self._why_no_plan(workshop.model))
        judge = self._judge(workshop)
        best, judged = Search(judge).best(plans)
        if best is None or best.candidate.changed == 0:
            return self._without_integers(why_not(judged, judge, self._context.target.name))
        if self._raised:
            self._notes.append(self._raised)
        self._skip(left_float(workshop, best, self._context.max_drop))
        self._notes += describe(workshop, best)
        self._take(self._with_others_stored(best.candidate.model, best.loss)[0])
        if self._framed:
            self._notes.append(f"convolutions over a few frames that became matrix products: {self._framed}")
        audit = best.candidate.audit
        metrics = {
            "integer nodes": float(audit.integer),
            "conversions at borders": float(audit.borders),
            "conversions inside": float(audit.inside),
            "units": float(best.candidate.changed),
            "left float to hold the limit": float(sum(share is not None for share in best.left.values())),
            "left float for speed": float(sum(share is None for share in best.left.values())),
        }
        fates = self._fates(best)
        return PassReport(best.candidate.changed, tuple(self._skipped), metrics, tuple(self._notes), fates)

    def _without_integers(self, why: str) -> PassReport:
        """Where no node becomes integers store weights in fewer bits at least."""
        result, count = self._with_others_stored(self._model, 0.0)
        if not count:
            return PassReport(0, tuple(self._skipped), notes=(*self._notes, f"{why}; left as it was"))
        self._take(result)
        return PassReport(count, tuple(self._skipped), {"weights in fewer bits": float(count)}, (why, *self._notes))

    def _take(self, result: Model) -> None:
        self._model.graph, self._model.residue = result.graph, result.residue

    def _with_others_stored(self, known: Model, lost: float) -> tuple[Model, int]:
        """Return a model with what stayed float in fewer bits, and how many weights these are; see `others_stored`."""
        context = self._context
        if self._options.mode != "auto" or not context.target.fuses_in_onnxruntime:
            return known, 0
        drawn = self._drawn() if context.samples is None else None
        judgement = Judgement(context.max_drop, lost, lambda model: self._drop(model, drawn))
        model, count, notes = others_stored(
            known, judgement, context.samples, context.progress, self._options.exclude, WORTH
        )
        self._notes += notes
        return model, count

    def _fates(self, best: Judged) -> tuple[Fate, ...]:
        """Tell what became of every conversion, and note how many became what."""
        target, audit = self._context.target, best.candidate.audit
        if not target.fuses_in_onnxruntime:
            wanted = ", ".join(f"{count} {op}" for op, count in sorted(audit.kernels.items()))
            self._notes.append(f"written for {target.name} by its table, which was not asked: {wanted}")
            return ()
        found = account(best.candidate.model, target)
        self._notes.append(f"{audit.describe()}; {summary(found)}")
        return tuple(Fate(item.node, item.describe()) for item in found)

    def _judge(self, workshop: Workshop) -> Judge:
        evaluator, target, samples = self._context.evaluator, self._context.target, self._context.samples

        def times(model: Model) -> list[NodeTime]:
            assert samples is not None
            if model is not workshop.model:
                return node_times(model, list(samples.take(_TIMED)))
            if self._float_times is None:
                self._float_times = node_times(model, list(samples.take(_TIMED)))
            return self._float_times

        drawn = self._drawn() if samples is None else None
        return Judge(
            workshop,
            self._model,
            lambda model: self._drop(model, drawn),
            evaluator.race,
            times if evaluator.times and target.runs_here and samples is not None else None,
            lambda model: drawn if samples is None else self._error(samples, model),
            self._context.max_drop,
            asked_for=self._options.mode != "auto",
        )

    def _error(self, samples: Samples, model: Model) -> OutputError:
        """Return the error on the samples that the model does worst on, and some others."""
        looked = samples.take(min(_LOOKED, len(samples)))
        return OutputError(self._model, hardest(self._model, model, looked, _FEW))

    def _drawn(self) -> OutputError | None:
        """Return the error on random inputs, if the model runs on them."""
        try:
            return OutputError(self._model, list(self._context.evaluator.inputs.made_up().take(_DRAWN)))
        except GraphoptError:  # no random input is valid: nothing can be judged
            return None

    def _drop(self, model: Model, drawn: OutputError | None) -> Drop | None:
        """Return the loss; where there is nothing to judge on and the form is ours to choose, that on random inputs."""
        drop = self._context.evaluator.drop(model)
        if drop is not None or drawn is None or self._options.mode != "auto":
            return drop
        value = drawn(model)
        return Drop(value, value, value, "agreement", {}, _DRAWN, random=True)

    def _workshop(self) -> Workshop:
        target, options = self._context.target, self._options
        base, calibration = self._model.copy(), None
        infer_shapes(base)
        units: Sequence[Unit] = ()
        static = options.mode in ("auto", "static") and self._context.observer is not None
        if static or (options.mode in ("auto", "dynamic") and base.opset < AT_RUN_TIME):
            base = self._raise(base)
        self._framed = as_products(base, options.excludes)
        if static:
            units, calibration = self._static_units(base)
        sites: Sequence[DynamicSite] = ()
        if options.mode != "static":
            found, skipped = find_sites(base.graph, target, base.opset)
            sites = [site for site in found if not self._is_excluded(site.node)]
            self._skip(skipped)
            if self._context.observer is None and sites and options.mode != "blocks":
                self._notes.append(_NO_DATA)
        untied = untying(units, sites)
        self._skip(Skip(unit.name, untied[unit.position]) for unit in units if unit.position in untied)
        units = [unit for unit in units if unit.position not in untied]
        return Workshop(base, target, units, sites, calibration, self._context.samples)

    def _raise(self, model: Model) -> Model:
        """Return the model in an opset that has the operators, if it can be had."""
        other, note = raised(model, PER_CHANNEL, "its integer operators")
        if other is not model:
            self._raised = note
        elif note:
            self._notes.append(note)
        return other

    def _static_units(self, model: Model) -> tuple[list[Unit], Calibration | None]:
        if model.opset < PER_TENSOR:
            self._notes.append(f"opset {model.opset} has no quantized operators, and the model cannot be converted")
            return [], None
        units, skipped = find_units(model.graph, self._context.target, model.opset)
        units = [unit for unit in units if not self._is_excluded(unit.node)]
        self._skip(skipped)
        if not any(unit.weight is not None for unit in units) or self._context.observer is None:
            return [], None
        units = joinable(units)
        calibration = calibrate(model, units, self._context.observer, signed=self._context.target.convention.signed)
        usable = calibration.usable(units)
        kept = {unit.position for unit in usable}
        self._skip(
            Skip(unit.name, calibration.refusal(unit))
            for unit in units
            if unit.position not in kept and unit.weight is not None
        )
        return usable, calibration

    def _why_no_plan(self, model: Model) -> str:
        if self._options.mode == "auto" and self._context.observer is None:
            units, _ = find_units(model.graph, self._context.target, max(model.opset, PER_CHANNEL))
            count = sum(unit.weight is not None and not self._options.excludes(unit.node) for unit in units)
            if count:
                return f"what has an int8 kernel here ({count} nodes) needs fixed ranges, so samples (--data)"
        return "there is nothing that has an int8 kernel here"

    def _is_excluded(self, node: gs.Node) -> bool:
        excluded = self._options.excludes(node)
        if excluded:
            self._skip([Skip(name_of(node), "excluded by option")])
        return excluded

    def _skip(self, skipped: Iterable[Skip]) -> None:
        known = {item.where for item in self._skipped}
        for item in skipped:
            if item.where not in known:
                known.add(item.where)
                self._skipped.append(item)
