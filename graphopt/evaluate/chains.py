"""Judging a model that hands on a state: over several steps, with every model on states of its own.

In use such a model reads what it gave before, so its errors add up, and no single step shows it: silero_vad with 40 %
of its weights pruned is 1 % off in one step and 7 % over eight, and its AUC has gone from 0.993 to 0.973.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphopt.runtime.session import Outputs

if TYPE_CHECKING:
    from graphopt.samples import Feeds, Samples

STEPS = 8  # in a chain; an LSTM that errs by 1 % of its state a step errs by 10 % then
_CHAINS = 16  # at least, where there are so many samples


def chain_count(samples: int) -> int:
    """Return how many chains are made of so many samples: every sample is in one."""
    return min(samples, max(_CHAINS, -(-samples // STEPS)))


def chains(samples: Samples) -> Iterator[tuple[int, list[Feeds]]]:
    """Yield chains: samples that follow each other, the first ones after the last, and the index of the first.

    They start at evenly spaced samples, and no more than one is held.

    Args:
        samples: At least one.
    """
    total = len(samples)
    count = chain_count(total)
    starts = [index * total // count for index in range(count)]
    window: deque[Feeds] = deque(maxlen=STEPS)
    for last, feeds in enumerate(_endless(samples)):
        window.append(feeds)
        first = last - STEPS + 1
        if first in starts:
            yield first, list(window)
        if first == starts[-1]:
            return


def _endless(samples: Samples) -> Iterator[Feeds]:
    while True:
        yield from samples


def handed_on(feeds: Feeds, before: Outputs, states: Mapping[str, str]) -> dict[str, Any] | None:
    """Return a sample with the states that the step before it gave.

    Args:
        feeds: The sample.
        before: Outputs of the step before.
        states: Inputs that are states, each with the output that is its next value.

    Returns:
        None where a state has another shape than the sample's: samples of two sizes make no chain.
    """
    given = {name: before[output] for name, output in states.items()}
    alike = all(value.shape == feeds[name].shape for name, value in given.items())
    return {**feeds, **given} if alike else None


def run_chain(
    run: Callable[[Mapping[str, Any]], Outputs], chain: Sequence[Feeds], states: Mapping[str, str]
) -> list[Outputs]:
    """Return the outputs of each step of a chain; of fewer steps where the samples have other shapes.

    Args:
        run: Runs the model.
        chain: At least one sample.
        states: As of `handed_on`.
    """
    found = [run(chain[0])]
    for feeds in chain[1:]:
        given = handed_on(feeds, found[-1], states)
        if given is None:
            break
        found.append(run(given))
    return found


def as_one(steps: Sequence[Outputs]) -> Outputs:
    """Return the outputs of several steps as one, in lists; those of a single step as they are."""
    if len(steps) == 1:
        return steps[0]
    return {name: [outputs[name] for outputs in steps] for name in steps[0]}
