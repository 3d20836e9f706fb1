"""What the network is judged by: `graphopt ... --metric examples.digits.metric:accuracy`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def accuracy(run: Run) -> float:
    """Return the share of the held-out digits that are read right.

    Args:
        run: Runs the network: ``run({"image": [batch, 1, 8, 8]})["logits"]`` is [batch, 10].
    """
    with np.load(Path(__file__).parent / "test.npz") as test:
        images, labels = test["image"], test["label"]
    answers = run({"image": images})["logits"].argmax(axis=1)
    return float(np.mean(answers == labels))
