"""The pass: equal weights become one object, which the exporter stores once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.base import Pass, PassReport, Skip
from graphopt.context import Context
from graphopt.ir.clean import redirect
from graphopt.ir.equal import equal_weights
from graphopt.ir.graph import payload_bytes
from graphopt.model import Model
from graphopt.passes.share.nodes import merge_constant_nodes
from graphopt.passes.share.palettes import share_values
from graphopt.passes.share.uniform import shrink_uniform
from graphopt.passes.share.views import share_views


@dataclass(frozen=True)
class Share(Pass):
    """Store each distinct weight once, also across the bodies of If, Loop and Scan.

    Two weights are one if type, shape and every byte are equal; so 0.0 and -0.0 differ, and NaNs differ by their bits.
    The weights of model-local functions, which are Constant nodes, are shared within their function. A weight that is a
    graph output keeps its name.

    A Gemm reads the transpose of a weight that is stored anyway, ``Gemm(x, W^T) -> Gemm(x, W, transB=1)``. A weight of
    one value throughout becomes that number where it is broadcast to a shape that the other operand has by itself, and
    a ConstantOfShape where any tensor will do. No run takes longer for any of this.

    With `palette` the pass is lossy: each large float weight gets few distinct values, so that the outputs of its layer
    change least on the samples, which `pack` stores as codes (Deep Compression, arXiv:1510.00149).

    Attributes:
        palette: Bits of a code, 1 to 8: a weight has at most 2**bits distinct values; none leaves the values alone.
        views: Whether other nodes, too, read transposed or reshaped weights from the one that is stored, through a
            Transpose or Reshape that the runtime computes when it loads the model. Passes behind this one leave such
            weights as they are.
    """

    name: ClassVar[str] = "share"

    palette: int | None = None
    views: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        if self.palette is not None and not 1 <= self.palette <= 8:
            raise ValueError(f"palette must be 1 to 8, not {self.palette}")

    @property
    def lossless(self) -> bool:
        """Storing equal weights once is, making them equal is not."""
        return self.palette is None

    def run(self, model: Model, context: Context) -> PassReport:
        """Let the users of equal weights read the same one."""
        counts = {"weights": 0, "bytes": 0}
        fitted: int = 0
        unfit: list[Skip] = []
        if self.palette is not None:
            fitted, unfit = share_values(model, context, self.palette)
            counts["fitted"] = fitted

        def count(gone: int, saved: int) -> None:
            counts["weights"] += gone
            counts["bytes"] += saved

        for root in (model.graph, *model.graph.functions):
            for kept, copies in equal_weights(root):
                for copy in copies:
                    redirect(copy, kept)
                count(len(copies), len(copies) * payload_bytes(kept))
            count(*merge_constant_nodes(root))
        gone, saved, skips = share_views(model.graph, with_nodes=self.views)
        count(gone, saved)
        count(*shrink_uniform(model.graph))
        metrics = {name: float(number) for name, number in counts.items()}
        return PassReport(counts["weights"] + fitted, (*unfit, *skips), metrics)
