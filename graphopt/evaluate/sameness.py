"""Whether a lossless rewrite left the outputs as they were."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.ir.graph import walk_nodes
from graphopt.model import Model
from graphopt.runtime.compare import ANYTHING, Distance, difference, eps, is_float, leaves, sums
from graphopt.runtime.session import Outputs, Session, open_session

_KEPT = 2**26  # bytes of outputs that a reference keeps
_CHAOTIC = 2e-3  # relative L2 error by rounding alone; ten times that is the size of an int8 error
_NUDGED = 2**28  # bytes of weights; of larger models no copy with other weights is made
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div"})
_WEIGHTED = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"}
    | {f"{kind}Normalization" for kind in ("Batch", "Layer", "Instance", "Group")}
)


@dataclass(frozen=True)
class Sameness:
    """What came of comparing two models that should do the same.

    Attributes:
        equal: True: they agree up to float reassociation. False: they differ. None: it cannot be told.
        detail: What differs, or why it cannot be told, or what was left out; one line, perhaps empty.
        probes: How many inputs were compared.
        random: Whether they were drawn rather than given.
    """

    equal: bool | None
    detail: str = ""
    probes: int = 0
    random: bool = False

    def describe(self) -> str:
        """Return the outcome in words, for the report."""
        inputs = f"{self.probes} {'random input' if self.random else 'sample'}{'' if self.probes == 1 else 's'}"
        if self.equal is None:
            return f"not verified: {self.detail}"
        outcome = f"outputs equal on {inputs}" if self.equal else "outputs differ"
        return f"{outcome}; {self.detail}" if self.detail else outcome


class Reference:
    """A model that others are compared with; opened once, and run once on each of a few inputs.

    Args:
        model: Must not be edited afterwards.
        threads: Threads inside an operator.
    """

    def __init__(self, model: Model, threads: int) -> None:
        self.model = model
        self.threads = threads
        self.steady = False  # whether it is known to give the same outputs every time
        self._session: Session | None = None
        self._outputs: dict[int, Outputs] = {}
        self._nbytes = 0

    def open(self) -> None:
        """Open it without optimizations, or with them: models exist that run only so.

        Raises:
            ModelError: ONNX Runtime does not take the model.
        """
        if self._session is not None:
            return
        try:
            self._session = open_session(self.model, threads=self.threads, optimize=False)
        except ModelError:
            self._session = open_session(self.model, threads=self.threads, optimize=True)

    def run(self, feeds: Mapping[str, Any], number: int | None = None) -> Outputs:
        """Run it, or return what came of it before.

        Args:
            feeds: The input.
            number: Its number among the probes, under which a few megabytes of outputs are kept; None: run anew.

        Raises:
            ModelError: It does not run.
        """
        if number is not None and number in self._outputs:
            return self._outputs[number]
        self.open()
        assert self._session is not None
        found = self._session.run(feeds)
        size = sum(part.nbytes for _, part in leaves(found) if part is not None)
        if number is not None and self._nbytes + size <= _KEPT:
            self._outputs[number] = found
            self._nbytes += size
        return found

    def close(self) -> None:
        """Free the session; what was kept of outputs stays."""
        if self._session is not None:
            self._session.close()
            self._session = None


def check_sameness(
    before: Reference, after: Reference, probes: Sequence[Mapping[str, Any]], *, random: bool
) -> Sameness:
    """Run both models, without the optimizations of ONNX Runtime, and compare.

    Where they differ by more than reassociation moves ordinary models, the noise of the model itself is measured: what
    the optimizations of ONNX Runtime and last-bit changes of inputs and weights do to the outputs of `before`. Outputs
    that rounding alone changes beyond recognition are left out.

    Args:
        before: The reference.
        after: The model to judge; a reference for what comes next, if it is the same.
        probes: Inputs; where random ones do not run, `before` is not to blame and nothing can be told.
        random: Whether the probes were drawn.

    Raises:
        ModelError: `after` does not open, or `before` does not run samples that were given.
    """
    try:
        before.open()
    except ModelError as error:
        return Sameness(None, f"the model does not run before the pass: {error}", random=random)
    after.open()
    compared, notes = 0, dict[str, None]()
    for number, feeds in enumerate(probes):
        try:
            expected = before.run(feeds, number)
            again = expected if before.steady else before.run(feeds)
        except ModelError as error:
            if not random:
                raise
            return Sameness(None, f"the model does not run on random inputs: {error}", compared, random)
        if difference(expected, again):
            return Sameness(None, "the model gives other outputs every time it runs", random=random)
        before.steady = True
        found, note = _compare(before, after, feeds, number, expected)
        if found is not False and note:
            notes[note] = None
        if found is not True:
            return Sameness(found, note, compared, random)
        compared += 1
    after.steady = True
    return Sameness(True, "; ".join(notes), compared, random)


def _compare(
    before: Reference, after: Reference, feeds: Mapping[str, Any], number: int, expected: Outputs
) -> tuple[bool | None, str]:
    """Return whether the result agrees on one probe, and what there is to say about it."""
    try:
        actual = after.run(feeds, number)
    except ModelError as error:
        return False, f"it fails where the model ran before: {error}"
    found = difference(expected, actual)
    if not found:
        return True, ""
    noise = own_noise(before.model, feeds, expected, before.threads)
    found = difference(expected, actual, noise)
    if found:
        return False, found
    ignored = [name for name, distance in noise.items() if distance == ANYTHING]
    if len(ignored) == len(dict(leaves(expected))):
        return None, "rounding alone changes every output of this model"
    return True, f"not compared, for rounding alone changes it: {', '.join(ignored)}" if ignored else ""


def own_noise(model: Model, feeds: Mapping[str, Any], expected: Outputs, threads: int) -> dict[str, Distance]:
    """Return by part of the outputs how far rounding alone moves it; `ANYTHING` where there is no telling.

    Args:
        model: The model that made `expected`.
        feeds: What it was run on.
        expected: Its outputs without optimizations.
        threads: Threads inside an operator.
    """
    noise = {name: Distance() for name, _ in leaves(expected)}
    for variant, optimize, inputs in _variants(model, feeds):
        try:
            with open_session(variant, threads=threads, optimize=optimize) as session:
                moved = dict(leaves(session.run(inputs)))
        except ModelError:  # it does not run that way: one measurement less, so a stricter comparison
            continue
        for name, part in leaves(expected):
            noise[name] = noise[name].union(_moved(part, moved.get(name)))
    return noise


def _variants(model: Model, feeds: Mapping[str, Any]) -> Iterator[tuple[Model, bool, Mapping[str, Any]]]:
    """Yield what differs from the model by rounding only: model, whether to optimize it, and inputs."""
    rng = np.random.default_rng(0)
    yield model, True, feeds
    yield model, True, {name: _nudged(value, rng) for name, value in feeds.items()}
    if model.weight_bytes <= _NUDGED:
        yield nudged_model(model, rng), False, feeds


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
