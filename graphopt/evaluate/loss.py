"""The loss of a model against the original, as one number with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphopt.errors import GraphoptError, UsageError
from graphopt.evaluate.agreement import Loss
from graphopt.evaluate.fixed import FIXED_NUMBERS

Metric = Callable[[Callable[[Mapping[str, Any]], dict[str, Any]]], float]
"""``metric(run)`` runs a model as often as it likes by ``run(feeds) -> outputs`` and returns how good it is."""


@dataclass(frozen=True)
class Drop:
    """How much worse a model is than the original.

    Attributes:
        value: Loss as a fraction; 0 is as good, and a metric that got better makes it negative. Of a metric, relative
            to the original's: (before - after) / |before|. Of agreement, the largest loss over outputs, for floats the
            relative squared error, for class scores the share of changed best classes too, else the share of changed
            elements.
        low: Lower end of the 95 % interval of `value`; equal to it for a metric, which gives no interval.
        high: Upper end.
        measure: "metric" or "agreement".
        details: For a metric, its value "before" and "after"; else the agreement (one minus the loss) by output, with
            "top-1" for class scores, the worst first.
        samples: How many samples it rests on; 0 for a metric, which brings its own.
        random: Whether the samples were drawn rather than given.
        established: The part of `value` that may be held against the model; `value` if None. See `within`.
        steps: How many steps each sample was run, where the model hands on a state.
        states: Inputs that are states, each with the output that was handed on.
        fixed: Whether random numbers that the models draw were held fixed.
    """

    value: float
    low: float
    high: float
    measure: str
    details: Mapping[str, float]
    samples: int
    random: bool
    established: float | None = None
    steps: int = 1
    states: Mapping[str, str] = field(default_factory=dict)
    fixed: bool = False

    @property
    def against(self) -> float:
        """The loss that may be held against the model; see `within`."""
        return self.value if self.established is None else self.established

    def describe(self) -> str:
        """Return what it was judged by, in words, for the report."""
        if self.measure == "metric":
            return "judged by the metric"
        return f"{self.measure} on {self.describe_samples()}"

    def describe_samples(self) -> str:
        """Return what agreement rests on, in words."""
        noun = "random input" if self.random else "sample"
        text = f"{self.samples} {noun}{'' if self.samples == 1 else 's'}"
        if self.states:
            handed = ", ".join(f"'{output}' handed on as '{name}'" for name, output in self.states.items())
            text += f" in chains of {self.steps} steps, {handed}"
        return f"{text}, {FIXED_NUMBERS}" if self.fixed else text

    def compare(self, limit: float) -> str:
        """Return the loss beside a limit that it exceeds, with as many digits as tell them apart."""
        texts = ((f"{self.value:.{digits}%}", f"{limit:.{digits}%}") for digits in range(2, 9))
        value, allowed = next((pair for pair in texts if pair[0] != pair[1]), (f"{self.value:%}", f"{limit:%}"))
        return f"{value}, more than the limit of {allowed}"

    def within(self, limit: float) -> bool:
        """Whether the loss is acceptable.

        A metric and the squared error of float outputs are measured finely, so their value itself must not exceed the
        limit. Counts are coarse: with 64 samples the smallest loss of top-1 agreement is 1.6 %, which would break a
        limit of 1 % by a single near tie. So a count fails only if it proves more than the limit, that is, if the
        lower end of its 95 % interval lies above it.

        Args:
            limit: Largest acceptable loss, a fraction in [0, 1].
        """
        return self.against <= limit


def agreement_drop(losses: Sequence[Loss], samples: int, random: bool) -> Drop:
    """Return the drop that the losses of an `Agreement`, the largest first, amount to."""
    worst = losses[0]
    return Drop(
        value=worst.value,
        low=worst.low,
        high=worst.high,
        measure="agreement",
        details={loss.name: 1 - loss.value for loss in losses},
        samples=samples,
        random=random,
        established=max(loss.established for loss in losses),
    )


def metric_drop(before: float, after: float) -> Drop:
    """Return the drop from one value of a metric to another; NaN after is a total loss."""
    if math.isnan(after):
        value = 1.0
    elif before == 0:
        value = 0.0 if after >= 0 else 1.0
    else:
        value = (before - after) / abs(before)
    return Drop(value, value, value, "metric", {"before": before, "after": after}, samples=0, random=False)


def call_metric(metric: Metric, run: Callable[[Mapping[str, Any]], dict[str, Any]]) -> float:
    """Return the metric of a model.

    Raises:
        UsageError: It failed, or returned something that is no number.
        GraphoptError: The model failed inside of it.
    """
    name = getattr(metric, "__qualname__", type(metric).__name__)
    try:
        value = metric(run)
    except GraphoptError:
        raise
    except Exception as error:  # the boundary to the user's code
        raise UsageError(f"the metric '{name}' failed: {type(error).__name__}: {error}") from error
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the metric '{name}' must return a number, not {type(value).__name__}") from error
