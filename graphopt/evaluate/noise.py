"""What rounding alone does to the outputs of a model: how far two correct results may be apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.ir.graph import walk_nodes
from graphopt.model import Model
from graphopt.runtime.compare import ANYTHING, Distance, eps, is_float, leaves, sums
from graphopt.runtime.session import Outputs, Session, open_session

_CHAOTIC = 2e-3  # relative L2 error by rounding alone; ten times that is the size of an int8 error
_NUDGED = 2**28  # bytes of weights; of larger models no copy with other weights is made
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div"})
_WEIGHTED = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"}
    | {f"{kind}Normalization" for kind in ("Batch", "Layer", "Instance", "Group")}
)


class Noise:
    """The noise of one model, measured as far as it is asked for.

    Args:
        model: Must not be edited afterwards.
        threads: Threads inside an operator.
    """

    def __init__(self, model: Model, threads: int) -> None:
        self._model = model
        self._threads = threads
        self._optimized: Session | None = None
        self._known: dict[str, Distance] = {}

    def levels(self, feeds: Mapping[str, Any], expected: Outputs) -> Iterator[dict[str, Distance]]:
        """Yield by part of the outputs how far rounding alone moves it, larger from one measurement to the next.

        What is compared are the optimizations of ONNX Runtime, and changes in the last bits of inputs and of weights.
        First comes what was found on earlier inputs, which is often enough.

        Args:
            feeds: What the model was run on.
            expected: Its outputs without optimizations.

        Yields:
            Distances; `ANYTHING` where there is no telling.
        """
        noise = {name: self._known.get(name, Distance()) for name, _ in leaves(expected)}
        if self._known:
            yield noise
        rng = np.random.default_rng(0)
        for measure in (self._run_optimized, self._run_nudged_inputs, self._run_nudged_weights):
            try:
                outputs = measure(feeds, rng)
            except ModelError:  # it does not run that way: one measurement less, so a stricter comparison
                continue
            if outputs is None:
                continue
            moved = dict(leaves(outputs))
            noise = {name: noise[name].union(_moved(part, moved.get(name))) for name, part in leaves(expected)}
            self._known |= {name: distance for name, distance in noise.items() if distance != ANYTHING}
            yield noise

    def close(self) -> None:
        """Free what was opened."""
        if self._optimized is not None:
            self._optimized.close()
            self._optimized = None

    def _run_optimized(self, feeds: Mapping[str, Any], rng: np.random.Generator) -> Outputs:
        if self._optimized is None:
            self._optimized = open_session(self._model, threads=self._threads)
        return self._optimized.run(feeds)

    def _run_nudged_inputs(self, feeds: Mapping[str, Any], rng: np.random.Generator) -> Outputs:
        return self._run_optimized({name: _nudged(value, rng) for name, value in feeds.items()}, rng)

    def _run_nudged_weights(self, feeds: Mapping[str, Any], rng: np.random.Generator) -> Outputs | None:
        if self._model.weight_bytes > _NUDGED:
            return None
        with open_session(nudged_model(self._model, rng), threads=self._threads, optimize=False) as session:
            return session.run(feeds)


def nudged_model(model: Model, rng: np.random.Generator) -> Model:
    """Return a copy whose weights differ in their last bits, as if every sum had been taken in another order.

    Only weights of linear layers, normalizations and recurrent cells, and vectors that are added or multiplied, are
    touched: scales of Resize, exponents, bounds and the like may decide about shapes or signs.
    """
    copy = model.copy()
    touched: dict[int, gs.Constant] = {}
    kept: set[int] = set()
    for node in walk_nodes(copy.graph):
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant):
                vector = node.op in _ELEMENTWISE and math.prod(tensor.shape) > 1
                if node.op in _WEIGHTED or vector:
                    touched[id(tensor)] = tensor
                else:
                    kept.add(id(tensor))
    for key, constant in touched.items():
        if key not in kept:
            constant.values = _nudged(constant.values, rng)
    return copy


def _nudged(value: Any, rng: np.random.Generator) -> Any:
    """Move every float by up to one step of its type; leave all else."""
    if not isinstance(value, np.ndarray) or value.dtype.kind == "c" or not is_float(value.dtype):
        return value
    step = eps(value.dtype) * rng.uniform(-1, 1, value.shape)
    return np.asarray(value.astype(np.float64) * (1 + step)).astype(value.dtype)


def _moved(before: np.ndarray | None, after: np.ndarray | None) -> Distance:
    if before is None or after is None:
        return Distance() if before is after else ANYTHING
    if before.shape != after.shape:
        return ANYTHING
    if not is_float(before.dtype):
        return Distance() if np.array_equal(before, after) else ANYTHING
    total = sums(before, after)
    found = total.distance(eps(before.dtype))
    steady = total.lost == 0 and total.undefined == total.undefined_same and found.l2 <= _CHAOTIC
    return found if steady else ANYTHING
