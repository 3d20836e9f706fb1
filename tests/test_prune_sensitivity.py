"""What the outputs feel of a trial: the same whether the front of the model runs again or is held."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.gradients.examples import Complete
from graphopt.passes.prune.channels.dependencies import find_dependencies
from graphopt.passes.prune.channels.ranking import rank_by_reader
from graphopt.passes.prune.channels.sensitivity import Meter, _change
from graphopt.progress import SilentProgress
from graphopt.runtime.session import open_session
from graphopt.samples import random_samples
from graphopt.shapes import infer_shapes, shapes_for
from tests.channel_models import WIDE


@pytest.mark.parametrize("backwards", [False, True])
def test_trials_from_what_is_held_give_what_the_whole_model_gives(*, backwards: bool) -> None:
    model = WIDE.model()
    infer_shapes(model)
    samples = random_samples(model.interface, count=8)
    found = find_dependencies(model, shapes_for(model, next(iter(samples))))
    rankings = list(rank_by_reader(model, found, samples, "obs", SilentProgress()))
    meter = Meter(model, samples)
    for ranking in reversed(rankings) if backwards else rankings:
        for trial in ranking.trials:
            held = meter._outputs(trial)
            whole = model.copy()
            _change(whole, trial)
            with open_session(whole) as session:
                for feeds, outputs in zip(Complete(samples, model), held, strict=True):
                    np.testing.assert_allclose(outputs["y"], session.run(feeds)["y"], rtol=1e-4, atol=1e-3)
        assert meter.losses(ranking)[-1] > 0


def test_a_cut_moves_forward_and_back() -> None:
    model = WIDE.model()
    infer_shapes(model)
    samples = random_samples(model.interface, count=2)
    front = Meter(model, samples)._front
    for position in (3, 5, 2, 0, 4):
        cut, values = front.at(position)
        assert cut == position
        assert set(values[0]) == set(front._side.crossing(position))
        if position:
            with open_session(front._side.between(0, position, [*values[0].keys() - {"x"}])) as session:
                expected = session.run(next(iter(samples)))
            for name, value in expected.items():
                np.testing.assert_allclose(values[0][name], value, rtol=1e-4, atol=1e-3)
