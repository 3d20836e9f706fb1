"""How long steps tell how far they are; the command shows it, the library is silent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

ItemT = TypeVar("ItemT")


class Progress(Protocol):
    """Receiver of progress."""

    def track(self, items: Iterable[ItemT], what: str, total: int | None = None) -> Iterator[ItemT]:
        """Yield the items and show how many are done.

        Args:
            items: What is worked on, one at a time.
            what: A few words for the user, such as "calibrate".
            total: Number of items where `items` cannot tell.
        """
        ...


class SilentProgress:
    """Shows nothing."""

    def track(self, items: Iterable[ItemT], what: str, total: int | None = None) -> Iterator[ItemT]:
        """Yield the items."""
        yield from items
