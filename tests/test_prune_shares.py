"""Which samples judge: whole clusters, at the places where those who count by turns look for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from graphopt.context import Context
from graphopt.evaluate import Evaluator
from graphopt.evaluate.error import OutputError
from graphopt.model import Model
from graphopt.moments import LayerMoments, layer_moments
from graphopt.passes.prune import Prune
from graphopt.passes.prune.shares import SHARES, Shares, judges
from graphopt.samples import Samples, open_samples
from graphopt.targets import get_target
from tests.test_prune import model_of, random

PLAIN = "m (float[N,4] x) => (float[N,4] y) { y = Identity(x) }"


def clustered(clusters: int, each: int, model: Model) -> Samples:
    """Return samples of clusters that take turns, 0, 1, 2, ..., 0, 1, 2, ..."""
    rng = np.random.default_rng(0)
    centres = 5 * rng.standard_normal((clusters, 4))
    values = np.concatenate([centres + 0.01 * rng.standard_normal(centres.shape) for _ in range(each)])
    return open_samples({"x": values.astype(np.float32)}, model.interface)


def cluster_of(feeds: Any, samples: Samples, clusters: int) -> int:
    distances = [float(np.abs(feeds["x"] - other["x"]).max()) for other in samples]
    return int(np.argsort(distances, kind="stable")[0]) % clusters


def test_clusters_stay_together() -> None:
    """Of 9 clusters of 4 samples, every fourth sample by turns would be of all of them."""
    model = model_of(PLAIN)
    samples = clustered(9, 4, model)
    shares = Shares.of(samples, model)
    fitted, unseen = ({cluster_of(item, samples, 9) for item in part} for part in (shares.fitted, shares.unseen))
    assert len(shares.unseen) == 9
    assert len(fitted & unseen) <= 1, "9 samples are two clusters and one sample"
    assert len(unseen) == 3, "and not all alike"


def test_judges_have_their_places() -> None:
    model = model_of(PLAIN)
    shares = Shares.of(clustered(11, 2, model), model)
    unseen = [item["x"].tobytes() for item in shares.unseen]
    assert len(list(shares)) == len(shares) == 22
    assert [item["x"].tobytes() for item in shares][SHARES - 1 :: SHARES] == unseen
    assert [item["x"].tobytes() for item in shares] == [item["x"].tobytes() for item in shares], "the same again"


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_to_part(count: int) -> None:
    model = model_of(PLAIN)
    samples = clustered(count, 1, model)
    shares = Shares.of(samples, model)
    assert shares.fitted is shares.unseen
    assert len(list(shares)) == len(shares) == count


def test_models_without_floats_are_parted_by_turns() -> None:
    model = model_of("m (float[N,4] x) => (int64[N,4] y) { y = Cast<to=7>(x) }")
    samples = clustered(3, 4, model)
    shares = Shares.of(samples, model)
    assert [item["x"].tobytes() for item in shares] == [item["x"].tobytes() for item in samples]


def test_facts_that_do_not_vary() -> None:
    assert judges(np.ones((8, 2)), 2).tolist() == [0, 1]


def test_ways_to_share_out_are_judged_by_samples_that_trials_are_not_fitted_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judging, fitted = set[bytes](), set[bytes]()

    class WatchedError(OutputError):
        def __init__(self, original: Model, samples: Samples) -> None:
            judging.update(item["x"].tobytes() for item in samples)
            super().__init__(original, samples)

    def watched(model: Model, layers: Any, samples: Samples, **options: Any) -> Iterator[LayerMoments]:
        fitted.update(item["x"].tobytes() for item in samples)
        return layer_moments(model, layers, samples, **options)

    monkeypatch.setattr("graphopt.passes.prune.pruner.OutputError", WatchedError)
    monkeypatch.setattr("graphopt.passes.prune.pruner._FEW", 1)
    monkeypatch.setattr("graphopt.passes.prune.fitted.layer_moments", watched)
    weights = {name: random(4, 4, seed=seed) for seed, name in enumerate("vw")}
    text = "m (float[N,4] x) => (float[N,4] y) { a = MatMul(x, v)  b = Tanh(a)  y = MatMul(b, w) }"
    model = model_of(text, **weights)
    samples, target = clustered(9, 4, model), get_target("cpu")
    context = Context(target, Evaluator(model.copy(), target, samples=samples), samples)
    Prune(ratio=0.5).run(model, context)
    assert len(judging) == 9
    assert len(fitted) == 27
    assert not judging & fitted
