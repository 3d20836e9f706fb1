"""Passes as transactions: what does not keep the contract is rolled back, and the reason is kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from graphopt.base import Pass, PassReport
from graphopt.context import Context
from graphopt.contract import Contract
from graphopt.cost import Figures
from graphopt.errors import GraphoptError, PassError
from graphopt.evaluate import Drop
from graphopt.ir.clean import clean
from graphopt.model import Model
from graphopt.registry import pass_class
from graphopt.runtime.timing import Ratio
from graphopt.shapes import infer_shapes
from graphopt.spec import format_pass, parse_pipeline

Outcome = Literal["accepted", "unchanged", "rolled back"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """One pass of one run.

    Attributes:
        spec: The pass as text.
        inserted: Whether the pipeline added it because a later pass needs it.
        outcome: What became of its result.
        reason: Why it was rolled back, else empty.
        report: The pass's own report; None if it failed.
        before: Figures of the model that went in.
        after: Figures of the model that went on, so equal to `before` unless accepted.
        drop: Loss against the original with the pass's result, measured for lossy passes where there are samples.
        latency: Time of the pass's result over that of the model that went in, for passes that promise speed.
        verified: How the result was compared, in words.
        seconds: Wall time of the pass with all checks.
    """

    spec: str
    inserted: bool
    outcome: Outcome
    reason: str
    report: PassReport | None
    before: Figures
    after: Figures
    drop: Drop | None
    latency: Ratio | None
    verified: str
    seconds: float


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order they run.

    Attributes:
        passes: The passes; `requires` of each is met by the pipeline.
    """

    passes: tuple[Pass, ...]

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """Return the pipeline that the text names; see `graphopt.spec`."""
        return cls(parse_pipeline(text))

    def __str__(self) -> str:
        return ",".join(format_pass(item) for item in self.passes)

    def run(
        self, model: Model, context: Context, *, strict: bool = False, zstd_level: int | None = 3
    ) -> tuple[Model, tuple[Step, ...]]:
        """Run the passes over a copy of the model.

        Args:
            model: Stays as it is.
            context: Surroundings; its evaluator must have been made for this model.
            strict: Whether a pass that fails or breaks its contract is an error.
            zstd_level: Of the compressed sizes in the figures; None: do not measure them.

        Returns:
            The last accepted model, and a record of every pass.

        Raises:
            PassError: A pass was rolled back in a strict run.
        """
        contract = Contract(model, context, zstd_level=zstd_level)
        steps: list[Step] = []
        for item, inserted in with_required(self.passes):
            step, model = _run_pass(item, inserted, model, context, contract)
            if strict and step.outcome == "rolled back":
                raise PassError(item.name, step.reason)
            steps.append(step)
        return model, tuple(steps)


def with_required(passes: Sequence[Pass]) -> list[tuple[Pass, bool]]:
    """Return the passes with those inserted that others require, each with whether it was inserted."""
    planned: list[tuple[Pass, bool]] = []
    for item in passes:
        for name in item.requires:
            if all(earlier.name != name for earlier, _ in planned):
                planned.extend(with_required_of(pass_class(name)(), planned))
        planned.append((item, False))
    return planned


def with_required_of(item: Pass, planned: Sequence[tuple[Pass, bool]]) -> list[tuple[Pass, bool]]:
    """Return a required pass, preceded by what it requires itself."""
    known = {earlier.name for earlier, _ in planned}
    return [(step, True) for step, _ in with_required((item,)) if step.name not in known]


def _run_pass(item: Pass, inserted: bool, model: Model, context: Context, contract: Contract) -> tuple[Step, Model]:
    start = time.perf_counter()
    before = contract.figures(model)
    report, verdict, candidate = None, None, model.copy()
    outcome: Outcome = "rolled back"
    try:
        infer_shapes(candidate)
        report = item.run(candidate, context)
        if report.changed == 0:
            outcome, reason = "unchanged", ""
        else:
            clean(candidate.graph)
            verdict = contract.judge(item, model, candidate)
            reason = verdict.broken
            outcome = "rolled back" if reason else "accepted"
    except GraphoptError as error:
        reason = str(error)
    except Exception as error:  # the boundary: a bug in one pass must not cost the user the others
        _log.debug("pass '%s' failed", item.name, exc_info=True)
        reason = f"it failed: {type(error).__name__}: {' '.join(str(error).split())}"
    accepted = candidate if outcome == "accepted" else model
    step = Step(
        spec=format_pass(item),
        inserted=inserted,
        outcome=outcome,
        reason=reason,
        report=report,
        before=before,
        after=contract.figures(accepted),
        drop=verdict.drop if verdict else None,
        latency=verdict.latency if verdict else None,
        verified=verdict.verified if verdict else "",
        seconds=time.perf_counter() - start,
    )
    return step, accepted
