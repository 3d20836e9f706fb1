"""Figures as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt.evaluate import Drop
    from graphopt.runtime.timing import Ratio

_DECIMAL = ("", "k", "M", "G", "T", "P")
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160))}
_EXACT = 2.0**53  # whole numbers below are told apart by a float
_FASTER = 0.98  # the counterpart of `Ratio.slower`: two sessions of the same model differ by up to 2 %


def visible(text: str) -> str:
    """Return a text with control characters spelled out: names come from models, and must not steer a terminal."""
    return text.translate(_CONTROLS)


def size(nbytes: int) -> str:
    """Return bytes in powers of 1000, three digits."""
    return f"{_scaled(nbytes)}B" if nbytes >= 1000 else f"{nbytes} B"


def size_or_unknown(nbytes: int | None) -> str:
    """Return bytes as `size` does; "?" where they were not measured."""
    return "?" if nbytes is None else size(nbytes)


def count(number: int | None) -> str:
    """Return a count in powers of 1000, three digits; "?" for an unknown one."""
    if number is None:
        return "?"
    return _scaled(number).strip() if number >= 1000 else str(number)


def figure(value: float) -> str:
    """Return a pass's own figure: whole numbers in full, others with six digits."""
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < _EXACT else f"{value:.6g}"


def _scaled(number: float) -> str:
    power = 0
    while number >= 999.5 and power < len(_DECIMAL) - 1:
        number, power = number / 1000, power + 1
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{digits}f} {_DECIMAL[power]}"


def percent(fraction: float) -> str:
    """Return a fraction in percent, two decimals, never a rounded zero for what is not zero."""
    if fraction != 0 and abs(fraction) < 0.00005:
        return "<0.01 %" if fraction > 0 else ">-0.01 %"
    return f"{fraction:.2%}".replace("%", " %")


def shrinkage(before: int, after: int) -> str:
    """Return how a size changed: "3.9 x smaller", or "2.50 % smaller" where the factor would say little."""
    if before == after:
        return "the same"
    word = "smaller" if after < before else "larger"
    low, high = max(min(before, after), 1), max(before, after)
    if high / low >= 1.1:
        return f"{_factor(high / low)} x {word}"
    return f"{percent(abs(after - before) / max(before, 1))} {word}"


def interval(ratio: Ratio) -> str:
    """Return a latency ratio with its interval: "0.47 x (0.45 to 0.49)"."""
    return f"{ratio.median:.2f} x ({ratio.low:.2f} to {ratio.high:.2f})"


def speed(ratio: Ratio) -> str:
    """Return what a latency ratio means, within what its interval and two sessions of one model allow to say."""
    if ratio.high < _FASTER:
        return f"{_factor(1 / ratio.median)} times faster"
    if ratio.slower:
        return f"{_factor(ratio.median)} times slower"
    return "no measurable difference"


def loss(drop: Drop) -> str:
    """Return a drop with its interval, if it has one: "0.20 % (0.05 % to 0.60 %)"."""
    if drop.low == drop.high:
        return percent(drop.value)
    return f"{percent(drop.value)} ({percent(drop.low)} to {percent(drop.high)})"


def seconds(value: float) -> str:
    """Return a duration."""
    if value < 0.01:
        return f"{value * 1000:.2f} ms"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 119.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s"


def plural(number: int, noun: str) -> str:
    """Return a number with its noun: "1 pass", "2 passes"."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"


def _factor(value: float) -> str:
    return f"{value:.1f}" if value >= 1.95 else f"{value:.2f}"
