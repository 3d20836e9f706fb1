"""Integer vectors that are known in part: what shapes are made of.

Each element is a number, a symbol, or None. Two equal symbols are equal numbers at run time. A symbol is the name of a
dimension, or the text of a sum or product of such, in parentheses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Constant, payload

Element = int | str | None
Combine = Callable[[Element, Element], Element]
MAX_ELEMENTS = 64
_MAX_TEXT = 120  # characters of a symbol; longer ones are given up


@dataclass(frozen=True)
class Ints:
    """An integer (or truth) scalar or vector.

    Attributes:
        items: Its elements; one for a scalar.
        scalar: Whether it has rank 0.
    """

    items: tuple[Element, ...]
    scalar: bool = False

    @property
    def numbers(self) -> tuple[int, ...] | None:
        """The elements if all of them are numbers."""
        found = tuple(item for item in self.items if isinstance(item, int))
        return found if len(found) == len(self.items) else None


def constant_ints(constant: gs.Constant) -> Ints | None:
    """Return the elements of a short integer (or truth) constant."""
    shape = tuple(constant.shape)
    if (
        len(shape) > 1
        or math.prod(shape) > MAX_ELEMENTS
        or np.dtype(constant.dtype) not in (np.int64, np.int32, np.bool_)
    ):
        return None
    held = payload(constant)
    values = constant.values if isinstance(constant, Constant) or not isinstance(held, np.ndarray) else held
    return Ints(tuple(int(item) for item in np.asarray(values).reshape(-1)), scalar=not shape)


def is_dimension(item: Element) -> bool:
    """Return whether the element is a size that some tensor has, hence never negative."""
    return isinstance(item, str) and not item.startswith("(")


def _text(name: str, a: Element, b: Element) -> Element:
    if a is None or b is None:
        return None
    text = f"({name} {a} {b})"
    return text if len(text) <= _MAX_TEXT else None


def add(a: Element, b: Element) -> Element:
    """Return a + b."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if 0 in (a, b):
        return b if a == 0 else a
    return _text("+", *_sorted(a, b))


def subtract(a: Element, b: Element) -> Element:
    """Return a - b."""
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    if b == 0:
        return a
    return 0 if a == b and a is not None else _text("-", a, b)


def multiply(a: Element, b: Element) -> Element:
    """Return a * b."""
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if 0 in (a, b):
        return 0
    if 1 in (a, b):
        return b if a == 1 else a
    return _text("*", *_sorted(a, b))


def divide(a: Element, b: Element) -> Element:
    """Return a / b, rounded towards zero as C does; unknown where a sign or a zero makes it doubtful."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if a >= 0 and b > 0 else None
    if b == 1:
        return a
    return None if b == 0 else _text("/", a, b)


def equal(a: Element, b: Element) -> Element:
    """Return 1 where a == b, 0 where a != b."""
    if isinstance(a, int) and isinstance(b, int):
        return int(a == b)
    if a is not None and a == b:
        return 1
    number, other = (a, b) if isinstance(a, int) else (b, a)
    return 0 if isinstance(number, int) and number < 0 and is_dimension(other) else None


def extreme(choose: Callable[[int, int], int]) -> Combine:
    """Return the maximum or minimum, as `choose` is, where it is known."""

    def apply(a: Element, b: Element) -> Element:
        if isinstance(a, int) and isinstance(b, int):
            return choose(a, b)
        return a if a == b else None

    return apply


def both(a: Element, b: Element) -> Element:
    """Return 1 where both are true."""
    if 0 in (a, b):
        return 0
    return 1 if isinstance(a, int) and isinstance(b, int) else None


def either(a: Element, b: Element) -> Element:
    """Return 1 where one is true."""
    if any(isinstance(item, int) and item for item in (a, b)):
        return 1
    return 0 if a == b == 0 else None


def _sorted(a: Element, b: Element) -> tuple[Element, Element]:
    first, second = sorted((a, b), key=str)
    return first, second
