"""Sizes for open dimensions, as users give them on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from graphopt.errors import UsageError
from graphopt.model import Interface, TensorSpec


def sized(interface: Interface, texts: Sequence[str], data: Any = None) -> Interface:
    """Return an interface whose inputs have the sizes that were given.

    Args:
        interface: The model's; stays as it is.
        texts: ``input=1,3,224,224`` for the whole shape of an input, ``3,224,224`` for that of an only input, or
            ``batch=4`` for a symbol wherever it occurs.
        data: Samples of the user, beside which there is nothing to give sizes to; None or ``"random"`` are none.

    Raises:
        UsageError: There is no such input or symbol, a size is no positive number, the sizes do not fit, or there are
            samples.
    """
    if texts and data is not None and not (isinstance(data, str) and data == "random"):
        raise UsageError("--shape and --data exclude each other: samples have their own shapes")
    specs = {spec.name: spec for spec in interface.inputs}
    for text in texts:
        name, sizes = _parsed(text, specs)
        if name in specs:
            specs[name] = _shaped(specs[name], sizes)
        else:
            specs = _filled(specs, name, sizes)
    return replace(interface, inputs=tuple(specs.values()))


def _parsed(text: str, specs: dict[str, TensorSpec]) -> tuple[str, tuple[int, ...]]:
    name, equals, listed = text.rpartition("=")
    if not equals and len(specs) == 1:
        name = next(iter(specs))
    elif not equals:
        raise UsageError(f"--shape {text} does not say of which input; they are {', '.join(specs)}")
    try:
        sizes = tuple(int(item) for item in listed.replace("x", ",").split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise UsageError(f"--shape {text} is not like {name or 'input'}=1,3,224,224 or symbol=4")
    return name, sizes


def _shaped(spec: TensorSpec, sizes: tuple[int, ...]) -> TensorSpec:
    """Return an input of these sizes; those that it fixes itself must agree."""
    stated = spec.shape if spec.shape is not None else (None,) * len(sizes)
    wanted = ", ".join("?" if size is None else str(size) for size in stated)
    fits = len(stated) == len(sizes) and all(
        not isinstance(fixed, int) or fixed in (size, -1) for fixed, size in zip(stated, sizes, strict=True)
    )
    if not fits:
        raise UsageError(f"--shape {spec.name}={','.join(map(str, sizes))} does not fit; the model takes [{wanted}]")
    return replace(spec, shape=sizes)


def _filled(specs: dict[str, TensorSpec], symbol: str, sizes: tuple[int, ...]) -> dict[str, TensorSpec]:
    """Return the inputs with a symbol replaced by its size."""
    symbols = {size for spec in specs.values() for size in spec.shape or () if isinstance(size, str)}
    if symbol not in symbols or len(sizes) != 1:
        named = f"inputs {', '.join(specs)}" + (f" and symbols {', '.join(sorted(symbols))}" if symbols else "")
        raise UsageError(f"--shape {symbol}={','.join(map(str, sizes))}: the model has {named}")
    return {
        name: replace(spec, shape=tuple(sizes[0] if size == symbol else size for size in spec.shape or ()))
        if spec.shape is not None
        else spec
        for name, spec in specs.items()
    }
