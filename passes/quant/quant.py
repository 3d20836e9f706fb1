"""The quant pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import onnx_graphsurgeon as gs

from graphopt.base import Pass, PassReport, Skip
from graphopt.context import Context
from graphopt.errors import GraphoptError
from graphopt.evaluate import Drop
from graphopt.model import Model
from graphopt.passes.quant.attribution import OutputError
from graphopt.passes.quant.calibrate import Calibration, calibrate
from graphopt.passes.quant.dynamic import DynamicSite, find_sites, weight_size
from graphopt.passes.quant.opset import PER_TENSOR, raised
from graphopt.passes.quant.plan import Plan, Workshop
from graphopt.passes.quant.ranges import RangeMethod
from graphopt.passes.quant.search import Judged, Search
from graphopt.passes.quant.units import Unit, find_units, name_of
from graphopt.passes.quant.weight_only import WeightOptions, quantize_weights
from graphopt.samples import random_samples
from graphopt.shapes import infer_shapes

_SECONDS = 1.0  # to time a candidate against the float model
_DRAWN = 4  # random inputs to judge on where there are no samples
_BLOCKS = 2**20  # weights in matrices from which on blocks are tried
_FEW = 8  # samples that tell where an error comes from
_NO_DATA = "ranges are found at run time (dynamic int8); with --data, fixed ranges also make Conv and others int8"


@dataclass(frozen=True)
class Quant(Pass):
    """Weights and activations in 8-bit integers, where that is faster and exact enough.

    Only operators for which the target has an integer kernel are touched. Several ways are tried and measured; the
    fastest that holds the limit is kept, with the layers that lose most left in float. If none is faster than float,
    the model stays as it is.

    Attributes:
        mode: static: fixed ranges from samples. dynamic: ranges found at run time, needs none. blocks: weights of
            matrices in blocks of 32, activations as well, at run time; for language models. weights: only the weights,
            for size, with the options below. auto: what measures best of the first three.
        ranges: How fixed ranges are chosen from the samples: minmax (widest), percentile (99.999 %), mse (least squared
            error) or entropy (least divergence).
        exclude: Nodes to leave alone: names with wildcards, or operators, joined by "+".
        bits: Bits of a weight in mode weights, 4 or 8.
        block: Inputs that share a scale in mode weights, 16 to 256; 0 for a scale an output channel.
        symmetric: Whether weights have no zero points in mode weights.
        form: How they are written in mode weights. nbits: for kernels that read them (MatMulNBits,
            GatherBlockQuantized). qdq: DequantizeLinear, for any runtime. load: decoded once, at load. auto: the
            quicker one of nbits and load.
    """

    name: ClassVar[str] = "quant"
    lossless: ClassVar[bool] = False
    requires: ClassVar[tuple[str, ...]] = ("fold",)
    accepted_unjudged: ClassVar[bool] = True  # without samples ranges are exact for each input: dynamic int8

    mode: Literal["auto", "static", "dynamic", "blocks", "weights"] = "auto"
    ranges: Literal["minmax", "percentile", "mse", "entropy"] = "mse"
    exclude: str = ""
    bits: int = 8
    block: int = 0
    symmetric: bool = True
    form: Literal["auto", "nbits", "qdq", "load"] = "auto"

    def __post_init__(self) -> None:
        """Check the options."""
        if self.bits not in (4, 8):
            raise ValueError(f"bits must be 4 or 8, not {self.bits}")
        if self.block not in (0, 16, 32, 64, 128, 256):
            raise ValueError(f"block must be 0, 16, 32, 64, 128 or 256, not {self.block}")

    @property
    def promises_speed(self) -> bool:
        """Storing weights in fewer bits is for size."""
        return self.mode != "weights"

    def run(self, model: Model, context: Context) -> PassReport:
        """Try, measure and keep the best."""
        if self.mode == "weights":
            exclude = tuple(pattern for pattern in self.exclude.split("+") if pattern)
            options = WeightOptions(self.bits, self.block, self.symmetric, self.form, exclude)
            return quantize_weights(model, context, options)
        if not context.target.kernels:
            note = f"{context.target.name} has no int8 kernels: integers would run on the CPU; left as it was"
            return PassReport(0, notes=(note,))
        if self.mode == "static" and context.observer is None:
            return PassReport(0, notes=("static int8 needs samples (--data); left as it was",))
        return _Run(self, model, context).report()


class _Run:
    """One run of the pass."""

    def __init__(self, options: Quant, model: Model, context: Context) -> None:
        self._options = options
        self._model = model
        self._context = context
        self._notes: list[str] = []
        self._skipped: list[Skip] = []

    def report(self) -> PassReport:
        workshop = self._workshop()
        plans = _plans(self._options, workshop.units, workshop.sites)
        if not plans:
            return self._nothing("there is nothing that has an int8 kernel here")
        evaluator = self._context.evaluator
        error = self._error()
        search = Search(
            workshop,
            self._model,
            lambda model: self._drop(model, error),
            lambda before, after: evaluator.latency(before, after, seconds=_SECONDS),
            error,
            self._context.max_drop,
            asked_for=self._options.mode != "auto",
        )
        best, judged = search.best(plans)
        if best is None or best.candidate.changed == 0:
            return self._nothing(_why_not(judged, search, self._context))
        self._explain(workshop, best)
        self._model.graph = best.candidate.model.graph
        self._model.residue = best.candidate.model.residue
        audit = best.candidate.audit
        metrics = {
            "integer nodes": float(audit.integer),
            "conversions left": float(audit.quantizers),
            "units": float(best.candidate.changed),
            "left float to hold the limit": float(len(best.left)),
        }
        return PassReport(best.candidate.changed, tuple(self._skipped), metrics, tuple(self._notes))

    def _error(self) -> OutputError | None:
        """Return the error on a few samples, or without samples on random inputs, if the model runs on them."""
        samples = self._context.samples
        if samples is not None:
            return OutputError(self._model, samples.take(_FEW))
        try:
            drawn = random_samples(self._model.interface, seed=self._context.seed, count=_DRAWN)
            return OutputError(self._model, drawn)
        except GraphoptError:  # no random input is valid: nothing can be judged
            return None

    def _drop(self, model: Model, error: OutputError | None) -> Drop | None:
        """Return the loss; where there is nothing to judge on and the form is ours to choose, that on random inputs."""
        drop = self._context.evaluator.drop(model)
        if drop is not None or error is None or self._options.mode != "auto":
            return drop
        value = error(model)
        return Drop(value, value, value, "agreement", {}, _DRAWN, random=True)

    def _workshop(self) -> Workshop:
        target, options = self._context.target, self._options
        base, calibration = self._model.copy(), None
        infer_shapes(base)
        units: Sequence[Unit] = ()
        if options.mode in ("auto", "static") and self._context.observer is not None:
            base, note = raised(base)
            units, calibration = self._static_units(base)
            if note:
                self._notes.append(note)
        sites: Sequence[DynamicSite] = ()
        if options.mode != "static":
            sites, skipped = find_sites(base.graph, target, base.opset)
            sites = [site for site in sites if not _is_excluded(site.node, options.exclude)]
            self._skip(skipped)
            if self._context.observer is None and sites and options.mode != "blocks":
                self._notes.append(_NO_DATA)
        return Workshop(base, target, units, sites, calibration)

    def _static_units(self, model: Model) -> tuple[list[Unit], Calibration | None]:
        if model.opset < PER_TENSOR:
            self._notes.append(f"opset {model.opset} has no quantized operators, and the model cannot be converted")
            return [], None
        units, skipped = find_units(model.graph, self._context.target, model.opset)
        units = [unit for unit in units if not _is_excluded(unit.node, self._options.exclude)]
        self._skip(skipped)
        if not any(unit.weight is not None for unit in units) or self._context.observer is None:
            return [], None
        calibration = calibrate(model, units, self._context.observer)
        return calibration.usable(units), calibration

    def _skip(self, skipped: Iterable[Skip]) -> None:
        known = {item.where for item in self._skipped}
        self._skipped += [item for item in skipped if item.where not in known]

    def _explain(self, workshop: Workshop, best: Judged) -> None:
        names = {unit.position: unit.name for unit in workshop.units}
        names.update({site.position: name_of(site.node) for site in workshop.sites})
        limit = f"{self._context.max_drop:.2%}"
        self._skip(Skip(names[position], f"left float to stay within {limit}") for position in best.left)
        self._skip(
            Skip(names[position], "ONNX Runtime does not fuse it into an integer kernel")
            for position in sorted(best.candidate.unfused)
        )
        timed = f"{best.latency.median:.2f} x the time" if best.latency is not None else "time not measured here"
        self._notes.append(f"{best.candidate.plan.label}: {timed}")

    def _nothing(self, why: str) -> PassReport:
        return PassReport(0, tuple(self._skipped), notes=(*self._notes, f"{why}; left as it was"))


def _plans(options: Quant, units: Sequence[Unit], sites: Sequence[DynamicSite]) -> list[Plan]:
    """Return the plans to try: fixed ranges (dynamic where there are none), dynamic, one of each, and blocks."""
    weighted = frozenset(unit.position for unit in units if unit.weight is not None)
    light = frozenset(unit.position for unit in units if unit.weight is None and unit.kind not in _DELICATE)
    at_run_time = frozenset(site.position for site in sites)
    convolutions = frozenset(unit.position for unit in units if unit.kind in ("conv", "depthwise"))
    method: RangeMethod = options.ranges
    matrices = [site for site in sites if site.node.op in ("MatMul", "Gemm")]
    blocks = frozenset(site.position for site in matrices)
    plans = []
    if weighted and options.mode != "blocks":
        plans.append(Plan("static int8", weighted | light, at_run_time - weighted, method))
    if convolutions and at_run_time & weighted and options.mode == "auto":
        plans.append(Plan("static int8 for Conv, dynamic for the rest", convolutions | light, at_run_time, method))
    if at_run_time and options.mode != "blocks":
        plans.append(Plan("dynamic int8", frozenset(), at_run_time, method))
    large = sum(weight_size(site) for site in matrices) >= _BLOCKS
    if blocks and (options.mode == "blocks" or (options.mode == "auto" and large)):
        plans.append(Plan("int8 weights in blocks", frozenset(), at_run_time - blocks, method, blocks))
    return plans


_DELICATE = frozenset({"attention", "softmax", "sigmoid"})  # their integers lose much for little time


def _is_excluded(node: gs.Node, patterns: str) -> bool:
    wanted = [pattern for pattern in patterns.split("+") if pattern]
    return any(node.op == pattern or fnmatchcase(name_of(node), pattern) for pattern in wanted)


def _why_not(judged: Sequence[Judged], search: Search, context: Context) -> str:
    """Return one line with the figures of what was tried."""
    target = context.target.name
    tried = [item for item in judged if item.candidate.changed]
    if not tried:
        return "nothing that could run in integers would have integers on both sides"
    slow = [item for item in tried if not search.pays(item)]
    if len(slow) == len(tried):
        best = min(slow, key=lambda item: item.speed)
        fastest = f"{best.candidate.plan.label} takes {best.speed:.2f} x the time"
        return f"int8 does not pay on {target} for this model: {fastest}"
    what = [
        f"{item.candidate.plan.label} loses {item.drop.value:.2%}{' on random inputs' if item.drop.random else ''}"
        for item in tried
        if item.drop is not None and item not in slow
    ]
    what += [f"{item.candidate.plan.label} takes {item.speed:.2f} x the time" for item in slow]
    return f"int8 does not hold the limit of {context.max_drop:.2%} and pay on {target} ({', '.join(what)})"
