"""Between which values channels stay whatever the inputs of the model are: interval arithmetic, front to back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

_MARGIN = 1e-5  # of a bound; more than float32 loses in a sum of thousands of products

Interval = tuple[np.ndarray, np.ndarray]
"""Least and largest value of each channel of axis 1, float64 [channels]; infinite where nothing is known."""

Bounds = dict[int, Interval]
"""By id of a tensor; tensors of which nothing is known are not in it."""


def channel_bounds(graph: gs.Graph) -> Bounds:
    """Return the intervals of the main graph's tensors that have one.

    Clip, Sigmoid and the like give bounds to whatever they read; convolutions, sums and pools hand them on: of a
    convolution with weights W and bias b they are ``b + sum_i min(W_i l_i, W_i u_i)`` and the same with the maximum,
    of inputs that may also be the zeros around the image.
    """
    found: Bounds = {}
    for node in graph.nodes:
        rule = _RULES.get(node.op) if node.domain in (None, "", "ai.onnx") else None
        interval = rule(node, found) if rule is not None and node.outputs and _channels(node.outputs[0]) else None
        if interval is not None:
            found[id(node.outputs[0])] = interval
    return found


def clip_range(node: gs.Node) -> tuple[float, float] | None:
    """Return the least and largest value of a Clip, infinite where it has none; None if they are not known."""
    ends = [float(node.attrs.get("min", -np.inf)), float(node.attrs.get("max", np.inf))]
    for index, tensor in enumerate(node.inputs[1:3]):
        if tensor.is_empty():
            continue
        if not isinstance(tensor, gs.Constant):
            return None
        ends[index] = float(tensor.values)
    return ends[0], ends[1]


def _conv(node: gs.Node, found: Bounds) -> Interval | None:
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    given = found.get(id(node.inputs[0]))
    known = isinstance(weight, gs.Constant) and (bias is None or bias.is_empty() or isinstance(bias, gs.Constant))
    if given is None or not known:
        return None
    groups = int(node.attrs.get("group", 1))
    low, high = (end.reshape(groups, 1, -1, 1) for end in (np.minimum(given[0], 0), np.maximum(given[1], 0)))
    values = weight.values.astype(np.float64)
    values = values.reshape(groups, len(values) // groups, values.shape[1], -1)
    least, most = _sums(values, low, high), _sums(values, high, low)
    added = 0.0 if bias is None or bias.is_empty() else bias.values.astype(np.float64)
    return _widened(least + added, most + added)


def _sums(values: np.ndarray, with_positive: np.ndarray, with_negative: np.ndarray) -> np.ndarray:
    """Return the sums of products with one end for positive weights and another for negative ones, [rows]."""
    products = np.zeros(values.shape)
    np.multiply(values, with_positive, out=products, where=values > 0)  # zero times infinity is nothing here
    np.multiply(values, with_negative, out=products, where=values < 0)
    return np.asarray(products.sum(axis=(2, 3))).ravel()


def _clip(node: gs.Node, found: Bounds) -> Interval | None:
    ends = clip_range(node)
    if ends is None:
        return None
    low, high = found.get(id(node.inputs[0])) or _unknown(node.outputs[0])
    return np.clip(low, *ends), np.clip(high, *ends)


def _relu(node: gs.Node, found: Bounds) -> Interval | None:
    low, high = found.get(id(node.inputs[0])) or _unknown(node.outputs[0])
    return np.maximum(low, 0), np.maximum(high, 0)


def _unit(node: gs.Node, _: Bounds) -> Interval | None:
    channels = _channels(node.outputs[0])
    return np.zeros(channels), np.ones(channels)


def _same(node: gs.Node, found: Bounds) -> Interval | None:
    return found.get(id(node.inputs[0]))


def _add(node: gs.Node, found: Bounds) -> Interval | None:
    first, second = (found.get(id(tensor)) for tensor in node.inputs)
    ranks = {len(tensor.shape or ()) for tensor in (*node.inputs, *node.outputs)}
    if first is None or second is None or len(ranks) > 1 or len(first[0]) != len(second[0]):
        return None
    return _widened(first[0] + second[0], first[1] + second[1])


def _widened(low: np.ndarray, high: np.ndarray) -> Interval | None:
    """Return an interval that float32 does not leave either, or None where nothing is known."""
    room = _MARGIN * np.maximum(np.abs(low), np.abs(high))
    return None if np.isnan(low).any() or np.isnan(high).any() else (low - room, high + room)


def _unknown(tensor: gs.Tensor) -> Interval:
    channels = _channels(tensor)
    return np.full(channels, -np.inf), np.full(channels, np.inf)


def _channels(tensor: gs.Tensor) -> int:
    """Return the number of channels on axis 1, or 0 if it is not known."""
    shape = tensor.shape
    return shape[1] if shape is not None and len(shape) > 1 and isinstance(shape[1], int) else 0


_RULES: dict[str, Callable[[gs.Node, Bounds], Interval | None]] = {
    "Conv": _conv,
    "Clip": _clip,
    "Relu": _relu,
    **dict.fromkeys(("Sigmoid", "HardSigmoid"), _unit),
    **dict.fromkeys(("Identity", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"), _same),
    "Add": _add,
}
