"""Other coordinates for channels that only linear layers touch, in which fewer of them do.

Where the channels x of a group are given by linear layers, added up, and read by linear layers, with nothing in between
that treats channels one by one, ``x -> T x`` changes nothing if the layers that give them become ``T W`` and those that
read them ``W T^-1``: so do bottlenecks of inverted residuals and the streams of their shortcuts. Of all coordinates
those are taken in which the least is lost by removing the last ones: with C the covariance of the channels and M the
sum of ``W^T W`` over the readers, ``T = V^T C^-1/2`` from the singular vectors of ``M^1/2 C^1/2 = U S V^T``. Then the
channels are uncorrelated, of variance 1, and the k-th one is worth ``S_k^2`` to the readers together.

Sources: Moore, "Principal component analysis in linear systems: controllability, observability, and model reduction",
IEEE Transactions on Automatic Control, 1981 (balanced coordinates); Ashkboos et al., "SliceGPT", arXiv:2401.15024
(removing principal components of a stream).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Constant
from graphopt.layers import linear_layer
from graphopt.model import Model
from graphopt.moments import layer_moments
from graphopt.passes.prune.channels.branches import ADDS
from graphopt.passes.prune.channels.dependencies import Dependencies, Group
from graphopt.passes.prune.channels.readers import Taker, layers_in_order, takers_of
from graphopt.passes.prune.channels.tracker import Use
from graphopt.progress import Progress
from graphopt.samples import Samples

_FLOOR = 1e-5  # least variance of a direction, over the mean: below, float32 weights would not carry it


def turnings(model: Model, dependencies: Dependencies, samples: Samples, progress: Progress) -> dict[int, np.ndarray]:
    """Return the matrix T of each group that can be turned and ever moves, [classes, classes], by its number.

    Args:
        model: Stays as it is.
        dependencies: Of the model.
        samples: Run once.
        progress: Where it reports.
    """
    turnable = {index: group for index, group in enumerate(dependencies.groups) if _can_turn(group, dependencies)}
    takers = {index: takers_of(group, dependencies, set()) for index, group in turnable.items()}
    layers = layers_in_order(list(takers.values()), model.graph.nodes)
    seen: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for moments in layer_moments(model, layers, samples, progress=progress):
        node = id(moments.layer.node)
        taker = next(taker for found in takers.values() for taker in found if taker.key == node)
        if np.trace(moments.covariance[0]) > _FLOOR * np.trace(moments.second[0]):  # else it is rounding
            seen[node] = _gramians(taker, moments.covariance[0])
    moving = {index: [seen[taker.key] for taker in found if taker.key in seen] for index, found in takers.items()}
    return {index: _balancing(found) for index, found in moving.items() if found}


def turn(model: Model, dependencies: Dependencies, matrices: Mapping[int, np.ndarray]) -> None:
    """Put groups into other coordinates, in place; the outputs stay what they are.

    Args:
        model: The model.
        dependencies: Of this very model.
        matrices: As `turnings` returns them, for the groups to be turned.
    """
    for index, matrix in matrices.items():
        group = dependencies.groups[index]
        back = np.linalg.inv(matrix)
        for use in _uses(group, dependencies):
            order = np.argsort(use.atoms)[np.argsort(np.argsort(group.classes))]  # place of each class along the axis
            values = np.moveaxis(np.asarray(_constant(use).values, np.float64), use.axis, 0)[order]
            turned = np.tensordot(back.T if use.role == "takes" else matrix, values, axes=1)
            turned = np.moveaxis(turned[np.argsort(order)], 0, use.axis)
            name, kind = _constant(use).name, _constant(use).dtype
            use.node.inputs[use.index] = Constant(name, np.ascontiguousarray(turned, kind))


def _can_turn(group: Group, dependencies: Dependencies) -> bool:
    """Whether only layers and sums touch the channels of a group, and with constants of their own."""
    if group.width != 1 or dependencies.bent[group.classes].any():
        return False
    uses = _uses(group, dependencies)
    return any(use.role == "takes" for use in uses) and all(_turns(use, group) for use in uses)


def _turns(use: Use, group: Group) -> bool:
    constant = _constant(use)
    whole = len(use.atoms) == len(group.classes) and np.array_equal(np.sort(use.atoms), np.sort(group.classes))
    if not whole or len(constant.outputs) != 1 or constant.dtype != np.float32:
        return False
    if use.role == "along":
        return use.node.op in ADDS or (use.index == 2 and linear_layer(use.node) is not None)
    layer = linear_layer(use.node)
    return use.index == 1 and layer is not None and layer.groups == 1


def _uses(group: Group, dependencies: Dependencies) -> list[Use]:
    return [use for use in dependencies.uses if np.isin(use.atoms, group.classes).any()]


def _constant(use: Use) -> gs.Constant:
    return use.node.inputs[use.index]


def _gramians(taker: Taker, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return covariance and worth of the channels of a group for one layer, [classes, classes] each.

    The inputs of a kernel's positions count together: they are the same channels.
    """
    weight, columns = taker.matrix()[0], taker.columns.T  # [positions, classes]
    scale = max(float(np.einsum("rk,kl,rl->", weight, covariance, weight, optimize=True)), np.finfo(float).tiny)
    seen = np.mean([covariance[np.ix_(place, place)] for place in columns], axis=0)
    worth = np.sum([weight[:, place].T @ weight[:, place] for place in columns], axis=0)
    return seen, worth / scale


def _balancing(gramians: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return T from covariance and worth for each reader; the reader that sees most variance does not outweigh all."""
    covariance = np.mean([seen / max(np.trace(seen), np.finfo(float).tiny) for seen, _ in gramians], axis=0)
    covariance *= float(np.mean([np.trace(seen) for seen, _ in gramians]))
    values, vectors = np.linalg.eigh(covariance)
    root = np.sqrt(np.maximum(values, _FLOOR * max(float(values.mean()), np.finfo(float).tiny)))
    worth = np.sum([found for _, found in gramians], axis=0)
    middle = (vectors * root).T @ worth @ (vectors * root)
    turned = np.linalg.eigh((middle + middle.T) / 2)[1][:, ::-1]
    return np.asarray(turned.T @ (vectors / root).T)
