"""What a model is compared and timed on: the user's samples, or made-up inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from graphopt.errors import SampleError
from graphopt.evaluate.drawn import Run, drawn_samples
from graphopt.model import Interface, Model
from graphopt.samples import open_samples
from graphopt.samples.fit import is_fixed

if TYPE_CHECKING:
    from graphopt.samples import Feeds, Samples

_MADE_UP = 4


def open_inputs(data: Any, model: Model, interface: Interface, *, seed: int = 0, threads: int = 1) -> Samples:
    """Return the samples that the user named; of made-up ones those of the smallest sizes that the model runs on.

    Args:
        data: As `graphopt.samples.open_samples` takes it.
        model: What they are for.
        interface: Its inputs with sizes that made-up ones shall have.
        seed: Root of the randomness.
        threads: Threads inside an operator.

    Raises:
        SampleError: There are no samples, or they do not fit the model.
    """
    samples = open_samples(data, interface, seed=seed, optional=frozenset(model.graph.defaults))
    return drawn_samples(model, interface=interface, seed=seed, threads=threads) if samples.is_random else samples


class Inputs:
    """Inputs of one model. At most one sample is held, but for those that are asked for together.

    Args:
        original: What they are for.
        samples: The user's; None: all are made up.
        interface: Inputs of the model with sizes that made-up ones shall have; by default as it states them.
        seed: Root of the randomness.
        threads: Threads inside an operator, where the model is run to find sizes that it takes.
        runner: Returns what runs the model, if it is open at that time.
    """

    def __init__(
        self,
        original: Model,
        samples: Samples | None,
        interface: Interface | None,
        seed: int,
        threads: int,
        runner: Callable[[], Run | None],
    ) -> None:
        self._original = original
        self._samples = samples
        self._interface = interface
        self._seed = seed
        self._threads = threads
        self._runner = runner
        self._made_up: Samples | None = None

    @property
    def is_random(self) -> bool:
        """Whether they are drawn rather than given."""
        return self._samples is None or self._samples.is_random

    def probes(self, count: int, count_random: int) -> list[Feeds]:
        """Return a few inputs, evenly spaced over the samples.

        Raises:
            SampleError: There are no samples, and none can be made.
        """
        if self._samples is not None and len(self._samples) > 0:
            return list(self._samples.take(count))
        return list(self.made_up().take(count_random))

    def made_up(self) -> Samples:
        """Return made-up inputs, of which those of the first call are kept.

        Raises:
            SampleError: None can be made.
        """
        if self._made_up is None:
            self._made_up = drawn_samples(
                self._original,
                self._runner(),
                interface=self._interface,
                seed=self._seed,
                count=_MADE_UP,
                threads=self._threads,
            )
        return self._made_up

    def example(self) -> Feeds | None:
        """Return one input: the first sample, or a made-up one; None if none can be made."""
        if self._samples is not None:
            return next(iter(self._samples), None)
        try:
            return next(iter(self.made_up()))
        except SampleError:
            return None

    def chosen(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of made-up inputs whose size the model leaves open, by name."""
        feeds = self.example() if self.is_random else None
        stated = {spec.name: spec.shape for spec in self._original.interface.inputs}
        open_ones = {name for name, shape in stated.items() if shape is None or not all(map(is_fixed, shape))}
        return {name: tuple(value.shape) for name, value in (feeds or {}).items() if name in open_ones}
