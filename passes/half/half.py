"""The pass `half`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from graphopt.base import Pass, PassReport, Skip
from graphopt.context import Context
from graphopt.ir.clean import clean
from graphopt.model import Model
from graphopt.passes.half.convert import convert_graph
from graphopt.passes.half.storage import store_weights


@dataclass(frozen=True)
class Half(Pass):
    """Weights, or the whole graph, in 16-bit floats.

    Processors have few fp16 kernels and slow ones, so there (`compute=storage`) only the weights are stored in 16 bits,
    each behind a Cast that ONNX Runtime evaluates once, at load: half the file, and the float graph runs. Where that
    loses more than the limit, the weights that alone do so are found by halving, and stay float.

    For GPUs (`compute=graph`) operators compute in fp16: ``y = Cast(op(Cast(x)))``, with a Cast only where 16 and 32
    bits meet. Inputs and outputs keep their types. An operator stays in float ("island") if on the samples one of its
    tensors leaves the range of fp16 or is so small that it would lose its digits, if one of its constants does (an
    epsilon of 1e-12 becomes 0), if it counts or orders (Range, CumSum, TopK), or if it has a body.

    Attributes:
        type: fp16: 11 bits of precision, up to 65504. bf16: 8 bits of precision, range of float32; only for storage.
        compute: storage, graph, or auto: what suits the target.
        min_bytes: Smaller weights are not worth the node of their Cast, bytes; for storage.
    """

    name: ClassVar[str] = "half"
    lossless: ClassVar[bool] = False
    requires: ClassVar[tuple[str, ...]] = ("fold",)
    accepted_unjudged: ClassVar[bool] = True  # weights lose less than 0.05 % (bf16: 0.4 %) of their value

    type: Literal["fp16", "bf16"] = "fp16"
    compute: Literal["auto", "storage", "graph"] = "auto"
    min_bytes: int = 1024

    def __post_init__(self) -> None:
        """Check the options."""
        if self.min_bytes < 0:
            raise ValueError(f"min-bytes must be 0 or more, not {self.min_bytes}")
        if self.type == "bf16" and self.compute == "graph":
            raise ValueError(
                "compute=graph needs type=fp16: on the CPU there are no bf16 kernels to check a graph with"
            )

    def run(self, model: Model, context: Context) -> PassReport:
        """Store or convert."""
        on_gpu = context.target.provider != "CPUExecutionProvider"
        wanted = self.compute if self.compute != "auto" else "graph" if on_gpu and self.type == "fp16" else "storage"
        if wanted == "storage":
            return store_weights(model, self.type, self.min_bytes, lambda stored: _holds(stored, context))
        if context.observer is None:
            reason = "where fp16 overflows is measured on samples: give some with --data, or take compute=storage"
            return PassReport(0, (Skip("model", reason),))
        return convert_graph(model, context.observer)


def _holds(model: Model, context: Context) -> bool:
    clean(model.graph)
    drop = context.evaluator.drop(model)
    return drop is None or drop.within(context.max_drop)
