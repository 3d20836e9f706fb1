"""What the original model gives on the samples, which is what every result is compared with."""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING

from graphopt.errors import ModelError, SampleError, UnjudgedError
from graphopt.evaluate.chains import chain_count, chains, handed_on
from graphopt.evaluate.states import states
from graphopt.runtime.compare import difference, leaves
from graphopt.runtime.session import Outputs, Session

if TYPE_CHECKING:
    from graphopt.samples import Feeds, Samples

_CACHED = 2**30  # bytes of outputs that are kept, over all samples
_IN_MEMORY = 2**26  # of these; if there are more, all go to a temporary file


class _Kept:
    """Outputs of chains, in order."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._count = 0
        self._nbytes = 0

    def add(self, outputs: Sequence[Outputs]) -> bool:
        """Keep the outputs of one more chain; return whether there was room for them."""
        self._nbytes += sum(map(_nbytes, outputs))
        if self._nbytes > _CACHED:
            return False
        pickle.dump(outputs, self._file, pickle.HIGHEST_PROTOCOL)
        self._count += 1
        return True

    def __iter__(self) -> Iterator[list[Outputs]]:
        place = 0
        for _ in range(self._count):
            self._file.seek(place)
            outputs: list[Outputs] = pickle.load(self._file)
            place = self._file.tell()
            yield outputs

    def close(self) -> None:
        self._file.close()


class Answers:
    """The samples with the original's outputs; these are kept, up to a gigabyte of them.

    Args:
        samples: At least one.
        open_original: Opens the original.
    """

    def __init__(self, samples: Samples, open_original: Callable[[], Session]) -> None:
        self._samples = samples
        self._open = open_original
        self._session: Session | None = None
        self._kept: _Kept | None = None
        self._states: Mapping[str, str] | None = None

    def __iter__(self) -> Iterator[tuple[list[Feeds], list[Outputs]]]:
        """Yield each sample with the outputs; of a model that hands on a state chains, with the outputs of each step.

        Raises:
            SampleError: The original does not run on a sample.
            UnjudgedError: It gives other outputs every time.
        """
        if self._kept is not None:
            for (_, chain), outputs in zip(self._chains(), self._kept, strict=True):
                yield chain, outputs
            return
        session = self._opened()
        kept: _Kept | None = _Kept()
        for index, chain in self._chains():
            outputs = self._run(session, index, chain)
            if kept is not None and not kept.add(outputs):
                kept.close()
                kept = None
            yield chain, outputs
        if kept is not None:
            self.close()
            self._kept = kept

    def __len__(self) -> int:
        """Return how many there will be."""
        return chain_count(len(self._samples)) if self.states else len(self._samples)

    @property
    def states(self) -> Mapping[str, str]:
        """Inputs that are states, each with the output that is its next value; the original is run to learn them."""
        if self._states is None:
            self._opened()
        return self._states or {}

    def _chains(self) -> Iterator[tuple[int, list[Feeds]]]:
        if self.states:
            return chains(self._samples)
        return ((index, [feeds]) for index, feeds in enumerate(self._samples))

    def _run(self, session: Session, index: int, chain: Sequence[Feeds]) -> list[Outputs]:
        """Run a chain, as far as it goes: a sample need not run on the state that another one left."""
        with blaming_sample(self._samples, index):
            found = [session.run(chain[0])]
        for place, feeds in enumerate(chain[1:], index + 1):
            given = handed_on(feeds, found[-1], self.states)
            if given is None:
                break
            try:
                found.append(session.run(given))
            except ModelError:
                with blaming_sample(self._samples, place % len(self._samples)):
                    session.run(feeds)
                break
        return found

    def close(self) -> None:
        """Free what is kept; everything still works afterwards, only slower."""
        for held in (self._session, self._kept):
            if held is not None:
                held.close()
        self._session = self._kept = None

    def _opened(self) -> Session:
        if self._session is None:
            self._session = self._open_steady()
        return self._session

    def _open_steady(self) -> Session:
        """Open the original, unless it does not even agree with itself, as with random numbers inside."""
        session, first = self._open(), next(iter(self._samples))
        try:
            with blaming_sample(self._samples, 0):
                outputs = session.run(first)
                different = difference(outputs, session.run(first))
            if different:
                raise UnjudgedError(
                    "the original gives other outputs every time it runs, so agreement with it tells nothing; give a "
                    "score with --metric"
                )
        except BaseException:
            session.close()
            raise
        self._states = states(first, outputs)
        return session


@contextmanager
def blaming_sample(samples: Samples, index: int) -> Iterator[None]:
    """Turn a failure of the original, which opens, into one of the sample that it is run on.

    Raises:
        SampleError: Something inside raised a ModelError.
    """
    try:
        yield
    except ModelError as error:
        if samples.is_random:
            raise SampleError(f"the model does not run on random inputs: {error}; give samples of its own") from error
        raise SampleError(f"sample {index} of '{samples.source}': {error}") from error


def _nbytes(outputs: Outputs) -> int:
    return sum(part.nbytes for _, part in leaves(outputs) if part is not None)
