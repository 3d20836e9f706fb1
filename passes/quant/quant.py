"""The quant pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from graphopt.base import Pass, PassReport
from graphopt.context import Context
from graphopt.model import Model
from graphopt.passes.quant.run import Run
from graphopt.passes.quant.search.plans import IntegerOptions
from graphopt.passes.quant.storage.weight_only import WeightOptions, quantize_weights


@dataclass(frozen=True)
class Quant(Pass):
    """Weights and activations in 8-bit integers, where that is faster and exact enough.

    Only operators for which the target has an integer kernel are touched. Several ways are tried and measured; the
    fastest that holds the limit is kept. Where a way does not hold it, channels that reach far are divided and the
    weights behind them multiplied (SmoothQuant), ranges are chosen again by the error at the outputs, and weights
    fitted; then the layers that lose most are left in float, or in mode auto take ranges found at run time, or blocks.
    If none is faster than float, the model stays float. In mode auto weights that stay float are stored in 8 bits, in
    blocks of 32, and decoded once, at load; in 16 where 8 would add more than a tenth of the limit to the loss.

    Attributes:
        mode: static: fixed ranges from samples. dynamic: ranges found at run time, needs none. blocks: weights of
            matrices in blocks of 32, activations as well, at run time; for language models. weights: only the weights,
            for size, with the options below. auto: what measures best of the first three.
        ranges: How fixed ranges are chosen from the samples: minmax (widest), percentile (99.999 %), mse (least squared
            error) or entropy (least divergence).
        exclude: Nodes to leave alone: names with wildcards, or operators, joined by "+".
        bits: Bits of a weight in mode weights, 4 or 8.
        block: Inputs that share a scale in mode weights, 16 to 256; 0 for a scale an output channel.
        symmetric: Whether weights have no zero points in mode weights.
        form: How they are written in mode weights. nbits: for kernels that read them (MatMulNBits,
            GatherBlockQuantized). qdq: DequantizeLinear, for any runtime. load: decoded once, at load. auto: the
            quicker one of nbits and load.
    """

    name: ClassVar[str] = "quant"
    lossless: ClassVar[bool] = False
    requires: ClassVar[tuple[str, ...]] = ("fold",)
    accepted_unjudged: ClassVar[bool] = True  # without samples ranges are exact for each input: dynamic int8

    mode: Literal["auto", "static", "dynamic", "blocks", "weights"] = "auto"
    ranges: Literal["minmax", "percentile", "mse", "entropy"] = "mse"
    exclude: str = ""
    bits: int = 8
    block: int = 0
    symmetric: bool = True
    form: Literal["auto", "nbits", "qdq", "load"] = "auto"

    def __post_init__(self) -> None:
        """Check the options."""
        if self.bits not in (4, 8):
            raise ValueError(f"bits must be 4 or 8, not {self.bits}")
        if self.block not in (0, 16, 32, 64, 128, 256):
            raise ValueError(f"block must be 0, 16, 32, 64, 128 or 256, not {self.block}")
        unread = ("ranges",) if self.mode == "weights" else ("bits", "block", "symmetric", "form")
        given = [name for name in unread if getattr(self, name) != type(self).__dataclass_fields__[name].default]
        if given:
            allowed = "fixed ranges, not of mode=weights" if self.mode == "weights" else "mode=weights"
            raise ValueError(f"{', '.join(given)}: an option of {allowed} (mode is {self.mode})")

    @property
    def promises_speed(self) -> bool:
        """Storing weights in fewer bits is for size."""
        return self.mode != "weights"

    def run(self, model: Model, context: Context) -> PassReport:
        """Try, measure and keep the best."""
        exclude = tuple(pattern for pattern in self.exclude.split("+") if pattern)
        if self.mode == "weights":
            options = WeightOptions(self.bits, self.block, self.symmetric, self.form, exclude)
            return quantize_weights(model, context, options)
        if not context.target.kernels:
            note = (
                f"{context.target.name} has no int8 kernels: integers would run on the CPU; left as it was "
                "(half, or quant:mode=weights, is for it)"
            )
            return PassReport(0, notes=(note,))
        if context.observer is None and (self.mode == "static" or not context.target.has("dynamic")):
            return PassReport(0, notes=("static int8 needs samples (--data); left as it was",))
        return Run(IntegerOptions(self.mode, self.ranges, exclude), model, context).report()
