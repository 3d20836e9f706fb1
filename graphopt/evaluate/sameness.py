"""Whether a lossless rewrite left the outputs as they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphopt.errors import ModelError
from graphopt.evaluate.fixed import FIXED_NUMBERS, with_fixed_numbers
from graphopt.evaluate.noise import Noise
from graphopt.model import Model
from graphopt.runtime.compare import ANYTHING, Distance, difference, leaves
from graphopt.runtime.session import Outputs, Session, open_session

NOT_VERIFIED = "not verified: "
"""What `Sameness.describe` begins with where nothing could be compared."""

_KEPT = 2**26  # bytes of outputs that a reference keeps


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
            return f"{NOT_VERIFIED}{self.detail}"
        outcome = f"outputs equal on {inputs}" if self.equal else "outputs differ"
        return f"{outcome}; {self.detail}" if self.detail else outcome


class Reference:
    """A model that others are compared with, random numbers held fixed; opened once, run once on each of a few inputs.

    Args:
        model: Must not be edited afterwards.
        threads: Threads inside an operator.
    """

    def __init__(self, model: Model, threads: int) -> None:
        self.model = model
        self.threads = threads
        self._fixed = with_fixed_numbers(model)
        self.noise = Noise(self._fixed, threads)
        self.steady = False  # whether it is known to give the same outputs every time; asked only if others differ
        self._session: Session | None = None
        self._outputs: dict[int, Outputs] = {}
        self._nbytes = 0

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers, which are held fixed."""
        return self._fixed is not self.model

    def open(self) -> None:
        """Open it without optimizations, or with them: models exist that run only so.

        Raises:
            ModelError: ONNX Runtime does not take the model.
        """
        if self._session is not None:
            return
        try:
            self._session = open_session(self._fixed, threads=self.threads, optimize=False)
        except ModelError:
            self._session = open_session(self._fixed, threads=self.threads, optimize=True)

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
        """Free the sessions; what was kept of outputs stays."""
        self.noise.close()
        if self._session is not None:
            self._session.close()
            self._session = None


def check_sameness(
    before: Reference, after: Reference, probes: Sequence[Mapping[str, Any]], *, random: bool
) -> Sameness:
    """Run both models, without the optimizations of ONNX Runtime, and compare.

    Where they differ by more than reassociation moves ordinary models, the noise of the model itself is measured, see
    `graphopt.evaluate.noise`. Outputs that rounding alone changes beyond recognition are left out.

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
    compared, notes = 0, dict.fromkeys((FIXED_NUMBERS,) if before.draws else ())
    for number, feeds in enumerate(probes):
        try:
            expected = before.run(feeds, number)
        except ModelError as error:
            if not random:
                raise
            return Sameness(None, f"the model does not run on random inputs: {error}", compared, random)
        found, note = _compare(before, after, feeds, number, expected)
        if found is not False and note:
            notes[note] = None
        if found is not True:
            return Sameness(found, note, compared, random)
        compared += 1
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
    if not before.steady and difference(expected, before.run(feeds)):
        return None, "the model gives other outputs every time it runs"
    before.steady = True
    noise: Mapping[str, Distance] = {}
    for noise in before.noise.levels(feeds, expected):
        found = difference(expected, actual, noise)
        if not found:
            break
    if found:
        return False, found
    ignored = [name for name, distance in noise.items() if distance == ANYTHING]
    if len(ignored) == len(dict(leaves(expected))):
        return None, "rounding alone changes every output of this model"
    return True, f"not compared, for rounding alone changes it: {', '.join(ignored)}" if ignored else ""
