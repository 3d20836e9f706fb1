"""What each node costs in float and in integers, from the runtime's own record of both models."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graphopt.passes.quant.nodes.sites import DynamicSite
from graphopt.passes.quant.nodes.units import Unit
from graphopt.runtime.profile import NodeTime

# What ONNX Runtime and this package append to the name of a node, or of an output, when they make others of it.
_APPENDED = re.compile(r"(_nchwc|_token_\d+|_quant|_\d+|/[A-Za-z]+/?|_int32|_cast|_scales|_unbiased|_raw|_codes)$")
_PER_ELEMENT = 1e-9  # seconds of a conversion where none was seen


@dataclass(frozen=True)
class Costs:
    """Seconds in one run.

    Attributes:
        real: Of each node in float, by position.
        integer: Of each node in integers, by position.
        quantize: Of turning one element into an integer.
        dequantize: Of turning one back.
    """

    real: Mapping[int, float]
    integer: Mapping[int, float]
    quantize: float
    dequantize: float


def measured_costs(
    units: Iterable[Unit],
    sites: Iterable[DynamicSite],
    sizes: Mapping[str, int],
    before: Iterable[NodeTime],
    after: Iterable[NodeTime],
) -> Costs:
    """Return the costs of the units and sites that run in integers in the second model.

    Args:
        units: With fixed ranges.
        sites: With ranges found at run time.
        sizes: Elements of a tensor, by name.
        before: Record of the float model.
        after: Record of the model with all of them in integers.
    """
    owners: dict[str, int] = {}
    for unit in units:
        nodes = [unit.node] if unit.clamp is None else [unit.node, unit.clamp]
        names = [name for node in nodes for name in (node.name, *(tensor.name for tensor in node.outputs))]
        owners.update(dict.fromkeys(filter(None, names), unit.position))
    for site in sites:
        names = [site.node.name, *(tensor.name for tensor in site.node.outputs)]
        owners.update(dict.fromkeys(filter(None, names), site.position))
    after = list(after)
    conversions = [item for item in after if item.op in ("QuantizeLinear", "DequantizeLinear")]
    rest = [item for item in after if item.op not in ("QuantizeLinear", "DequantizeLinear")]
    return Costs(
        _by_owner(before, owners),
        _by_owner(rest, owners),
        _rate(conversions, "QuantizeLinear", "_quantized", sizes),
        _rate(conversions, "DequantizeLinear", "_dequantized", sizes),
    )


def _by_owner(times: Iterable[NodeTime], owners: Mapping[str, int]) -> dict[int, float]:
    found: dict[int, float] = defaultdict(float)
    for item in times:
        owner = _known(item.name, owners)
        if owner is not None:
            found[owners[owner]] += item.seconds
    return found


def _known(name: str, names: Mapping[str, int]) -> str | None:
    """Return the known name that a name begins with, once what was appended is taken off; None if there is none."""
    while name not in names:
        shorter = _APPENDED.sub("", name)
        if shorter == name:
            return None
        name = shorter
    return name


def _rate(times: Iterable[NodeTime], op: str, suffix: str, sizes: Mapping[str, int]) -> float:
    """Return the seconds of one element, from all conversions of one kind whose tensor is known."""
    seconds, elements = 0.0, 0
    for item in times:
        tensor = item.name.rpartition(f"/{op}")[0].removesuffix(suffix)
        if item.op == op and tensor in sizes:
            seconds, elements = seconds + item.seconds, elements + sizes[tensor]
    return seconds / elements if elements else _PER_ELEMENT
