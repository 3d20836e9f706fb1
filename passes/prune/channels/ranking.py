"""In which order the channels of a group go, and what that loses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.compensate.removal import Reader, removals
from graphopt.model import Model
from graphopt.moments import LayerMoments, layer_moments
from graphopt.passes.prune import criteria
from graphopt.passes.prune.channels.dependencies import Dependencies, Group
from graphopt.passes.prune.channels.readers import Taker, layers_in_order, readers_of, takers_of
from graphopt.progress import Progress
from graphopt.samples import Samples

_TRIALS = 0.125, 0.25, 0.5, 0.75  # parts of a group at which the effect on the outputs is measured

_BY_WEIGHT: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "l1": criteria.l1,
    "l2": criteria.l2,
    "lamp": criteria.l2,
    "max-norm": criteria.max_norm,
    "variance": criteria.variance,
}


@dataclass(frozen=True, eq=False)
class Change:
    """A weight without some of its inputs.

    Attributes:
        taker: The weight.
        matrix: Its new values, [groups, rows, inputs].
        shift: What its bias takes up of the mean, [groups * rows]; None without a bias.
    """

    taker: Taker
    matrix: np.ndarray
    shift: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Trial:
    """What has become of the weights that read a group once a part of it has gone.

    Attributes:
        count: How many classes went.
        changes: One for each weight.
    """

    count: int
    changes: tuple[Change, ...]


@dataclass(frozen=True, eq=False)
class Ranking:
    """The classes of a group, those first that matter least.

    Attributes:
        group: The group.
        order: Its classes in the order in which they go, int [removable].
        losses: Loss once each has gone, relative to the variance of the outputs of the layers that read them, and
            summed over these layers, float64 [removable]; ascending.
        trials: Parts of it whose effect on the model's outputs can be measured.
    """

    group: Group
    order: np.ndarray
    losses: np.ndarray
    trials: tuple[Trial, ...]


def rank_by_weight(dependencies: Dependencies, criterion: str, rng: np.random.Generator) -> Iterator[Ranking]:
    """Yield each group ranked by the weights of the filters that give its channels, as published criteria do.

    The score of a class is the mean over the layers that give it; the loss is the sum of the squared scores relative to
    those of the whole group.
    """
    for group in dependencies.groups:
        scores = np.zeros(len(group.classes))
        for use in dependencies.uses:
            if use.role == "gives" and np.isin(group.classes, use.atoms).all():
                scores += _filter_scores(use.node.inputs[use.index].values, use.axis, use.atoms, group, criterion, rng)
        order = np.argsort(scores, kind="stable")[: len(scores) - 1]
        energy = np.cumsum(np.square(scores[order]))
        total = max(float(np.square(scores).sum()), np.finfo(np.float64).tiny)
        yield Ranking(group, group.classes[order], energy / total, ())


def _filter_scores(
    values: np.ndarray, axis: int, atoms: np.ndarray, group: Group, criterion: str, rng: np.random.Generator
) -> np.ndarray:
    if criterion == "random":
        return rng.random(len(group.classes))
    filters = np.moveaxis(values, axis, 0).reshape(len(atoms), -1)
    scores = _BY_WEIGHT[criterion](filters)
    index = np.searchsorted(np.sort(group.classes), atoms)
    member = np.isin(atoms, group.classes)
    sums = np.bincount(index[member], scores[member], len(group.classes))
    return np.asarray(sums[np.argsort(np.argsort(group.classes))] / group.width)


def rank_by_reader(
    model: Model, dependencies: Dependencies, samples: Samples | None, criterion: str, progress: Progress
) -> Iterator[Ranking]:
    """Yield each group ranked by what the layers that read its channels would lose.

    Groups come as soon as the moments of all their readers are known, and these are then forgotten: memory is bounded
    by a batch of moments and the groups that span batches.
    """
    shown = {id(tensor) for tensor in model.graph.outputs}
    takers = [takers_of(group, dependencies, shown) for group in dependencies.groups]
    layers = layers_in_order(takers, model.graph.nodes)
    known: dict[int, LayerMoments] = {}
    waiting = [{taker.key for taker in found if taker.layer is not None} for found in takers]
    done: set[int] = set()
    if samples is None or not layers:
        yield from (_ranked(*item, known, criterion) for item in zip(dependencies.groups, takers, strict=True))
        return
    seen: set[int] = set()
    for moments in layer_moments(model, layers, samples, progress=progress):
        known[id(moments.layer.node)] = moments
        seen.add(id(moments.layer.node))
        for index in [i for i, keys in enumerate(waiting) if i not in done and keys <= seen]:
            yield _ranked(dependencies.groups[index], takers[index], known, criterion)
            done.add(index)
        needed = set().union(*(keys for i, keys in enumerate(waiting) if i not in done))
        known = {key: value for key, value in known.items() if key in needed}


def _ranked(group: Group, takers: Sequence[Taker], known: Mapping[int, LayerMoments], criterion: str) -> Ranking:
    readers = [readers_of(taker, known.get(taker.key), criterion) for taker in takers]
    parts = (*_TRIALS, 1.0) if group.ends else _TRIALS
    wanted = [max(1, int(part * len(group.classes))) for part in parts]
    order: list[np.ndarray] = []
    costs: list[np.ndarray] = []
    trials: list[Trial] = []
    for gone, cost in removals([reader for found in readers for reader in found], keep=0 if group.ends else 1):
        order.append(gone)
        costs.append(cost)
        count = sum(map(len, order))
        if wanted and count >= wanted[0]:
            wanted = [later for later in wanted if later > count]
            changes = (_change(*item, known) for item in zip(takers, readers, strict=True))
            trials.append(Trial(count, tuple(changes)))
    return Ranking(group, group.classes[np.concatenate(order)], np.cumsum(np.concatenate(costs)), tuple(trials))


def _change(taker: Taker, readers: Sequence[Reader], known: Mapping[int, LayerMoments]) -> Change:
    matrix = np.stack([reader.weight for reader in readers])
    moments = known.get(taker.key)
    lost = None
    if moments is not None and taker.biased:
        lost = np.einsum("grk,gk->gr", taker.matrix() - matrix, moments.mean).ravel()
    return Change(taker, matrix, lost)
