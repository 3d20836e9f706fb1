"""What the original model gives on the samples, which is what every result is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from graphopt.errors import ModelError, SampleError, UnjudgedError
from graphopt.runtime.compare import difference, leaves
from graphopt.runtime.session import Outputs, Session

if TYPE_CHECKING:
    from graphopt.samples import Feeds, Samples

_CACHED = 2**26  # bytes of outputs that are kept, over all samples


class Answers:
    """The samples with the original's outputs; these are kept if they are few.

    Args:
        samples: At least one.
        open_original: Opens the original.
    """

    def __init__(self, samples: Samples, open_original: Callable[[], Session]) -> None:
        self._samples = samples
        self._open = open_original
        self._session: Session | None = None
        self._kept: list[Outputs] | None = None

    def __iter__(self) -> Iterator[tuple[Feeds, Outputs]]:
        """Yield each sample with the outputs.

        Raises:
            SampleError: The original does not run on a sample.
            UnjudgedError: It gives other outputs every time.
        """
        if self._kept is not None:
            yield from zip(self._samples, self._kept, strict=True)
            return
        if self._session is None:
            self._session = self._open_steady()
        kept: list[Outputs] | None = []
        size = 0
        for index, feeds in enumerate(self._samples):
            with blaming_sample(self._samples, index):
                outputs = self._session.run(feeds)
            size += _nbytes(outputs)
            if kept is not None and size <= _CACHED:
                kept.append(outputs)
            else:
                kept = None
            yield feeds, outputs
        if kept is not None:
            self.close()
            self._kept = kept

    def close(self) -> None:
        """Free what is kept; everything still works afterwards, only slower."""
        if self._session is not None:
            self._session.close()
        self._session = self._kept = None

    def _open_steady(self) -> Session:
        """Open the original, unless it does not even agree with itself, as with random numbers inside."""
        session, first = self._open(), next(iter(self._samples))
        try:
            with blaming_sample(self._samples, 0):
                different = difference(session.run(first), session.run(first))
            if different:
                raise UnjudgedError(
                    "the original gives other outputs every time it runs, so agreement with it tells nothing; give a "
                    "score with --metric"
                )
        except BaseException:
            session.close()
            raise
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
