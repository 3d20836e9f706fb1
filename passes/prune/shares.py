"""Which samples judge what is fitted to the others: such as are not like any of these.

Calibration samples often come in clusters, as crops of one picture or lines of one page do. What is fitted to some of a
cluster is right for the others of it too, and tells nothing of samples to come; so clusters stay together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from graphopt.model import Model
from graphopt.runtime.session import open_session
from graphopt.samples import Feeds, Samples

SHARES = 4  # of the samples; one of them judges what is fitted to the others
_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class Shares:
    """Samples in two parts; a stream that has one to judge at every `SHARES`-th place.

    Attributes:
        fitted: What is fitted to.
        unseen: What judges; the same ones where there are too few to part.
    """

    fitted: Samples
    unseen: Samples

    @classmethod
    def of(cls, samples: Samples, model: Model) -> Shares:
        """Part samples by what a model gives for them.

        Where its first output is not one of floats, they are parted by turns; samples for which it is not finite do
        not judge.
        """
        facts = _facts(samples, model)
        if facts is None:
            return cls(*samples.without_every(SHARES))
        places = np.flatnonzero(np.isfinite(facts).all(axis=1))
        if len(places) < SHARES:
            return cls(samples, samples)
        return cls(*samples.parted(places[judges(facts[places], len(places) // SHARES)]))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.fitted) + (len(self.unseen) if self.unseen is not self.fitted else 0)

    def __iter__(self) -> Iterator[Feeds]:
        """Yield all but the last of the shares in a row, then one that judges, and so on."""
        judging = iter(self.unseen if self.unseen is not self.fitted else ())
        for place, feeds in enumerate(self.fitted):
            yield feeds
            if place % (SHARES - 1) == SHARES - 2:
                yield from (item for item in [next(judging, None)] if item is not None)
        yield from judging


def judges(facts: np.ndarray, count: int) -> np.ndarray:
    """Return which samples judge, ascending: evenly spaced ones, each with its cluster, which ends at the widest gap.

    Args:
        facts: What the samples are told apart by, [samples, features].
        count: How many judge.
    """
    centred = facts - facts.mean(axis=0)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), _TINY)
    likeness = centred @ centred.T
    left = np.ones(len(facts), bool)
    while (room := count - int(np.count_nonzero(~left))) > 0:
        others = np.flatnonzero(left)
        seed = others[np.searchsorted(others, (count - room) * len(facts) // count) % len(others)]
        near = others[np.argsort(-likeness[seed, others], kind="stable")]
        gaps = -np.diff(likeness[seed, near])[1:room]  # after the second, the third, ...
        left[near[: min(room, 2 + int(np.argmax(gaps)) if len(gaps) else 1)]] = False
    return np.flatnonzero(~left)


def _facts(samples: Samples, model: Model) -> np.ndarray | None:
    """Return the mean of the first output over all axes but the last, [samples, features]."""
    with open_session(model) as session:
        name = session.outputs[0]
        found = [session.run(feeds, [name])[name] for feeds in samples]
    if not all(isinstance(item, np.ndarray) and item.dtype.kind == "f" and item.size for item in found):
        return None
    rows = [item.astype(np.float64).reshape(-1, item.shape[-1] if item.ndim else 1) for item in found]
    width = min(row.shape[1] for row in rows)
    return np.stack([row.mean(axis=0)[:width] for row in rows])
