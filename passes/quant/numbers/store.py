"""Integer weights of a run: found once, shared by all candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from graphopt.passes.quant.nodes.units import Unit
from graphopt.passes.quant.numbers.weights import QuantizedWeight, fits, quantize_tensor, quantize_weight


@dataclass
class WeightStore:
    """Integer weights of fixed and of dynamic int8.

    Attributes:
        pairs: Whether the target's 16-bit sums of pairs must not saturate.
        per_channel: Whether the opset has one scale per channel (13 and later).
        bias_shift: By unit position, what to add to the bias to correct its mean, [channels].
        fitted: Weights that were fitted to what their layer sees, by `weight_key`; used where their scale is coarse
            enough for the bias.
    """

    pairs: bool
    per_channel: bool = True
    bias_shift: dict[int, np.ndarray] = field(default_factory=dict)
    fitted: Mapping[tuple[str, int, int], QuantizedWeight] = field(default_factory=dict)
    _found: dict[tuple[str, int, int], QuantizedWeight] = field(default_factory=dict)
    _matrices: dict[int, QuantizedWeight] = field(default_factory=dict)
    _tables: dict[int, QuantizedWeight] = field(default_factory=dict)

    def weight(self, unit: Unit, least: np.ndarray | None = None) -> QuantizedWeight:
        """Return the integer weight of a unit; units that share a weight share its integers.

        Args:
            unit: Conv, MatMul or Gemm.
            least: Least scale of each channel, so that its bias fits into 32 bits.
        """
        key = weight_key(unit)
        for known in (self.fitted.get(key), self._found.get(key)):
            if known is not None and fits(known, least):
                return known
        self._found[key] = self._quantize(unit, least)
        return self._found[key]

    def matrix(self, position: int, values: np.ndarray) -> QuantizedWeight:
        """Return the integers of a matrix [inputs, outputs], whose ranges of inputs are found at run time.

        Args:
            position: Of the site that it belongs to.
            values: The matrix.
        """
        if position not in self._matrices:
            self._matrices[position] = quantize_weight(values, 1, pairs=self.pairs)
        return self._matrices[position]

    def table(self, position: int, values: np.ndarray) -> QuantizedWeight:
        """Return the integers of a table [rows, columns], with a scale a column.

        Args:
            position: Of the Gather that reads it.
            values: The table.
        """
        if position not in self._tables:
            self._tables[position] = quantize_weight(values, 1)
        return self._tables[position]

    def forget(self, position: int) -> None:
        """Forget the integers of a site whose matrix has changed."""
        self._matrices.pop(position, None)

    def _quantize(self, unit: Unit, least: np.ndarray | None) -> QuantizedWeight:
        assert unit.weight is not None
        values = unit.weight.values
        if not self.per_channel:
            bound = None if least is None else float(least.max(initial=0.0))
            return quantize_tensor(values, limit=64 if self.pairs else 127, least=bound)
        group = int(unit.node.attrs.get("group", 1))
        return quantize_weight(values, unit.weight_axis, group, pairs=self.pairs, least=least)


def weight_key(unit: Unit) -> tuple[str, int, int]:
    """Return what tells the integers of one unit's weight from those of another: weight, axis and groups."""
    assert unit.weight is not None
    return str(unit.weight.name), unit.weight_axis, int(unit.node.attrs.get("group", 1))
