"""Everything that was done to a model and measured about it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from graphopt.report.encode import encode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphopt.cost import Figures
    from graphopt.evaluate import Drop
    from graphopt.pipeline import Step
    from graphopt.runtime.timing import Ratio
    from graphopt.targets import Target

FORMAT = 1  # of the JSON; grows when a reader of the older one would be misled


@dataclass(frozen=True)
class FileInfo:
    """A model file.

    Attributes:
        path: As the user gave it.
        sha256: Digest of the model file, without external data.
        nbytes: Bytes on disk, external data included.
    """

    path: str
    sha256: str
    nbytes: int


@dataclass(frozen=True)
class Machine:
    """Where the run took place.

    Attributes:
        cpu: Name of the processor.
        cores: Cores that the process may use.
        instructions: Instruction sets that matter to kernels, sorted.
    """

    cpu: str
    cores: int
    instructions: tuple[str, ...]


@dataclass(frozen=True)
class SampleInfo:
    """The samples that figures rest on.

    Attributes:
        source: Path, "module:function" or "random".
        count: How many.
        random: Whether they were drawn rather than given.
    """

    source: str
    count: int
    random: bool


@dataclass(frozen=True)
class Timing:
    """Latency of the result against the original on one execution provider.

    Attributes:
        provider: Execution provider of ONNX Runtime.
        threads: Threads inside an operator.
        random_inputs: Whether the inputs were drawn rather than given.
        ratio: Time of the result over time of the original; None: not measured.
        reason: Why it was not measured, else empty.
        chosen: Shapes of drawn inputs whose size the model leaves open, by name.
    """

    provider: str
    threads: int
    random_inputs: bool
    ratio: Ratio | None
    reason: str
    chosen: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Everything that was done and measured.

    Attributes:
        versions: Version by package, those that decide the result.
        machine: Where it ran.
        input: The file that was read; None for a model made in memory.
        output: The file that was written; None before saving.
        passes: The pipeline as the user asked for it.
        target: Where the result is meant to run.
        seed: Root of all randomness.
        max_drop: Largest loss allowed, a fraction.
        strict: Whether a roll-back was to be an error.
        metric: Name of the user's metric, or None.
        samples: What was calibrated and judged on, or None.
        steps: Every pass that ran, with what became of it.
        before: Figures of the original.
        after: Figures of the result.
        drop: Loss of the result against the original; None: not measured.
        drop_reason: Why the loss was not measured, else empty.
        timings: Latency per execution provider, the target's first.
        seconds: Wall time from reading to the last measurement.
        peak_memory_nbytes: Largest resident set of the process so far; None where the system does not tell.
        warnings: What the user should know before using the result.
    """

    versions: Mapping[str, str]
    machine: Machine
    input: FileInfo | None
    output: FileInfo | None
    passes: str
    target: Target
    seed: int
    max_drop: float
    strict: bool
    metric: str | None
    samples: SampleInfo | None
    steps: tuple[Step, ...]
    before: Figures
    after: Figures
    drop: Drop | None
    drop_reason: str
    timings: tuple[Timing, ...]
    seconds: float
    peak_memory_nbytes: int | None
    warnings: tuple[str, ...]

    @property
    def latency(self) -> Ratio | None:
        """Latency ratio on the target's provider, if measured."""
        return next((timing.ratio for timing in self.timings if timing.provider == self.target.provider), None)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values, in the field order of `schema()`."""
        return {"format": FORMAT, **encode(self)}

    def to_text(self) -> str:
        """Return the report as JSON text, in ASCII: paths need not be valid UTF-8."""
        return json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of `Report.to_json`."""
    text = (files("graphopt.report") / "schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded
