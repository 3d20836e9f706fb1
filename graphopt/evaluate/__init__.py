"""Judging a model against the original: how much worse, whether still the same, how much faster."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from graphopt.errors import SampleError, UnjudgedError, UsageError
from graphopt.evaluate.agreement import Agreement
from graphopt.evaluate.answers import Answers, blaming_sample
from graphopt.evaluate.chains import STEPS, as_one, run_chain
from graphopt.evaluate.classes import class_scores
from graphopt.evaluate.drawn import Run, runs
from graphopt.evaluate.fixed import with_fixed_numbers
from graphopt.evaluate.inputs import Inputs
from graphopt.evaluate.loss import Drop, Metric, agreement_drop, call_metric, metric_drop
from graphopt.evaluate.sameness import Reference, Sameness, check_sameness
from graphopt.model import Interface, Model
from graphopt.progress import Progress, SilentProgress
from graphopt.runtime.session import CPU, Session, available_providers, open_session, refuse_hazards
from graphopt.runtime.timing import Ratio, quickest_ratio, reopened_ratio, successive_ratio

if TYPE_CHECKING:
    from graphopt.samples import Feeds, Samples
    from graphopt.targets import Target

__all__ = ["Drop", "Evaluator", "Metric", "Sameness"]

_SAME_PROBES, _SAME_RANDOM = 4, 2  # inputs that outputs are compared on
_TIMED_PROBES, _TIMED_RANDOM = 8, 4  # inputs that are timed
_LARGE = 2**30  # bytes of weights, of which a session may hold two copies: two such models are not opened together
_RACED_PROBES = 4  # of them, where many models are


class Evaluator:
    """Measures models against the original, on the same samples and the same runtime.

    `drop` and `latency` run models as the user will: on the target's execution provider where it is installed (else on
    the CPU), with the optimizations of ONNX Runtime. `mismatch` runs them without, to compare what the files say. Where
    outputs are compared, random numbers are held fixed, see `graphopt.evaluate.fixed`.

    Memory is bounded by the models and one sample with its outputs.

    Args:
        original: What is judged against; must not be edited afterwards.
        target: Where the result will run.
        samples: Inputs; without them there is no agreement, and the rest is done on random inputs.
        interface: Inputs of the original with sizes that random ones shall have; by default as it states them.
        metric: The user's measure, which then decides instead of agreement.
        seed: Of random inputs and the bootstrap.
        threads: Threads inside an operator.
        progress: Where long steps report.

    Attributes:
        times: Whether it measures latency.
        inputs: What is compared and timed on.
    """

    times: ClassVar[bool] = True

    def __init__(
        self,
        original: Model,
        target: Target,
        *,
        samples: Samples | None,
        interface: Interface | None = None,
        metric: Metric | None = None,
        seed: int = 0,
        threads: int = 1,
        progress: Progress | None = None,
    ) -> None:
        self._original = original
        self._target = target
        self._samples = samples
        self.inputs = Inputs(original, samples, interface, seed, threads, self._original_run)
        self._metric = metric
        self._seed = seed
        self._threads = threads
        self._progress = progress if progress is not None else SilentProgress()
        self._scores = class_scores(original)
        self._answers = None if samples is None else Answers(samples, lambda: self._open_fixed(original))
        self._metric_before: float | None = None
        self._judged: tuple[str, Drop | None] | None = None
        self._reference: Reference | None = None

    def open_original(self) -> None:
        """Prove that the original runs, on the first sample if there are any; `mismatch` needs it open in any case.

        Raises:
            ModelError: ONNX Runtime does not take it, or its optimizer would end the process.
            SampleError: It does not run on the first sample.
        """
        refuse_hazards(self._original)
        self._reference = Reference(self._original, self._threads)
        self._reference.open()
        if self._samples is not None and len(self._samples) > 0:
            with blaming_sample(self._samples, 0):
                self._reference.run(next(iter(self._samples)), 0)

    def drop(self, model: Model) -> Drop | None:
        """Return how much worse the model is than the original; None if there is nothing to judge on.

        A model that hands on a state is judged over several steps, see `graphopt.evaluate.chains`. The last model that
        was judged is known again: what a pass has chosen among candidates is what the pipeline then asks about.

        Raises:
            ModelError: A model does not run.
            SampleError: The original does not run on a sample.
            UnjudgedError: The samples tell nothing.
            UsageError: The metric failed or is no number.
        """
        fingerprint = model.fingerprint()
        if self._judged is None or self._judged[0] != fingerprint:
            self._judged = fingerprint, self._judge(model)
        return self._judged[1]

    def _judge(self, model: Model) -> Drop | None:
        self._forget_reference()
        if self._metric is not None:
            before = self.metric_of_original()
            with self._open(model) as session:
                return metric_drop(before, call_metric(self._metric, session.run))
        if self._samples is None or self._answers is None or len(self._samples) == 0:
            return None
        agreement = Agreement(self._scores, self._seed)
        with self._open_fixed(model) as session:
            for chain, expected in self._progress.track(self._answers, "judge", len(self._answers)):
                found = run_chain(session.run, chain[: len(expected)], self._answers.states)
                agreement.add(as_one(expected), as_one(found))
        if not agreement.compared:
            raise UnjudgedError(
                "on these samples the original's outputs are empty, or nothing but NaN and infinities: nothing can be "
                "judged on them"
            )
        drop = agreement_drop(agreement.losses(), len(self._samples), self._samples.is_random)
        steps = STEPS if self._answers.states else 1
        fixed = with_fixed_numbers(self._original) is not self._original
        return replace(drop, steps=steps, states=self._answers.states, fixed=fixed)

    def metric_of_original(self) -> float:
        """Return the metric of the original, measured once.

        Raises:
            UsageError: There is no metric, or it failed, or it is no finite number.
        """
        if self._metric is None:
            raise UsageError("there is no metric")
        if self._metric_before is None:
            with self._open(self._original) as session:
                value = call_metric(self._metric, session.run)
            if not math.isfinite(value):
                raise UsageError(f"the metric of the original model is {value}; it must be a finite number")
            self._metric_before = value
        return self._metric_before

    def mismatch(self, before: Model, after: Model) -> Sameness:
        """Return whether two models give the same outputs, up to float reassociation.

        The one that is taken up (`after` if it is the same) stays open: it is what the next pass will be held against.

        Raises:
            ModelError: `after` does not open in ONNX Runtime, or `before` does not run on the samples.
        """
        try:
            probes = self.inputs.probes(_SAME_PROBES, _SAME_RANDOM)
        except SampleError as error:
            return Sameness(None, f"there are no samples, and no random inputs either: {error}", random=True)
        reference, result = self._reference_for(before), Reference(after, self._threads)
        try:
            found = check_sameness(reference, result, probes, random=self.inputs.is_random)
        except BaseException:
            result.close()
            raise
        kept, dropped = (result, reference) if found.equal else (reference, result)
        dropped.close()
        self._reference = kept
        return found

    def _reference_for(self, model: Model) -> Reference:
        if self._reference is not None and self._reference.model is model:
            return self._reference
        self._forget_reference()
        return Reference(model, self._threads)

    def _forget_reference(self) -> None:
        if self._reference is not None:
            self._reference.close()
            self._reference = None

    def latency(self, before: Model, after: Model, *, seconds: float = 2.0, only_slower: bool = False) -> Ratio | None:
        """Return time of `after` over time of `before`.

        Args:
            before: What is compared with.
            after: The model to judge.
            seconds: Wall time to spend, about; slow models take longer.
            only_slower: Whether all that is asked is if `after` is slower: that takes less time where it is faster.

        Returns:
            None if the target is not this machine, or without samples, if `before` does not run on random inputs.

        Raises:
            ModelError: A model does not run.
        """
        probes = self._timed_on(before)
        if not probes:
            return None
        openers = (lambda: self._open(before), lambda: self._open(after))
        if before.weight_bytes > _LARGE:
            return successive_ratio(*openers, probes, seconds=seconds)
        return reopened_ratio(*openers, probes, seconds=seconds, only_slower=only_slower)

    def race(self, before: Model, after: Model) -> Ratio | None:
        """Return time of `after` over time of `before` from a few runs: to choose among candidates.

        Args:
            before: What is compared with.
            after: The model to judge.

        Returns:
            None as for `latency`.

        Raises:
            ModelError: A model does not run.
        """
        probes = self._timed_on(before)[:_RACED_PROBES]
        if not probes:
            return None
        return quickest_ratio(lambda: self._open(before), lambda: self._open(after), probes)

    def _timed_on(self, model: Model) -> list[Feeds]:
        """Return a few inputs to time on; none where nothing can or shall be timed."""
        if not self.times or not self._target.runs_here:
            return []
        self._forget_reference()
        try:
            probes = self.inputs.probes(_TIMED_PROBES, _TIMED_RANDOM)
        except SampleError:
            return []
        if self.inputs.is_random:
            with self._open(model) as session:
                probes = [feeds for feeds in probes if runs(session.run, feeds)]
        return probes

    def close(self) -> None:
        """Free what is kept of the original; everything still works afterwards, only slower."""
        self._forget_reference()
        if self._answers is not None:
            self._answers.close()

    def _original_run(self) -> Run | None:
        reference = self._reference
        return reference.run if reference is not None and reference.model is self._original else None

    def _open_fixed(self, model: Model) -> Session:
        return self._open(with_fixed_numbers(model))

    def _open(self, model: Model) -> Session:
        provider = self._target.provider if self._target.provider in available_providers() else CPU
        return open_session(model, provider=provider, threads=self._threads)
