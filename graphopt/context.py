"""What a pass may ask for besides the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from graphopt.progress import Progress, SilentProgress
from graphopt.targets import Target

if TYPE_CHECKING:
    from graphopt.evaluate import Evaluator
    from graphopt.observe import Observer
    from graphopt.samples import Samples


@dataclass(frozen=True)
class Context:
    """The surroundings of a run, the same for every pass.

    Attributes:
        target: Where the result will run.
        samples: Inputs to calibrate and judge on; None without `--data`.
        seed: Root of all randomness.
        max_drop: Largest loss of the metric (or of agreement) that is allowed, a fraction in [0, 1].
        observer: Runs the model over the samples and caches statistics; None without samples.
        evaluator: Measures loss and latency against the original model.
        progress: Where long steps report.
    """

    target: Target
    evaluator: Evaluator
    samples: Samples | None = None
    seed: int = 0
    max_drop: float = 0.01
    observer: Observer | None = None
    progress: Progress = field(default_factory=SilentProgress)

    def rng(self, stream: str) -> np.random.Generator:
        """Return a generator for one purpose, independent of every other stream."""
        return np.random.default_rng([self.seed, crc32(stream.encode())])
