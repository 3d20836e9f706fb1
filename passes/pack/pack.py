"""The pass `pack`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.base import Pass, PassReport, Skip
from graphopt.context import Context
from graphopt.ir.graph import constants, payload_bytes, tensor_names, walk_graphs
from graphopt.model import Model
from graphopt.passes.pack.decoders import DecoderBuilder
from graphopt.passes.pack.forms import Form, forms
from graphopt.passes.pack.sizemode import shrink_weights

_TYPES = frozenset(map(np.dtype, (np.float32, np.float16, np.float64, np.int8, np.uint8)))
_OPSET = 11  # BitShift


@dataclass(frozen=True)
class Pack(Pass):
    """Store each weight in the smallest form that ONNX Runtime decodes, at load, to exactly the same bits.

    ``w`` becomes ``Gather(levels, unpack(codes))`` or ``Cast(w16)``: chains of standard operators that hang from
    initializers only, which level-1 constant folding evaluates once. The running graph is the plain one.

    A weight stays plain when no form is smaller, when it is small, or when it is a graph output. Weights of model-local
    functions stay, since they are not initializers.

    With `bits` the pass is lossy: weights are first put on palettes of 2**bits levels and a scale a channel, so that
    the
    *outputs* of their layers change least on the samples (GPTQ, coordinate descent, least squares), front to back.

    Source: Deep Compression (arXiv:1510.00149), without a runtime of its own; GPTQ (arXiv:2210.17323).

    Attributes:
        bits: Bits of a weight in size mode, 2 to 8; none stores the weights as they are.
        min_bytes: Smaller weights stay plain, bytes.
    """

    name: ClassVar[str] = "pack"

    bits: int | None = None
    min_bytes: int = 2048

    def __post_init__(self) -> None:
        """Check the options."""
        if self.min_bytes < 0:
            raise ValueError(f"min-bytes must be 0 or more, not {self.min_bytes}")
        if self.bits is not None and not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be 2 to 8, not {self.bits}")

    @property
    def lossless(self) -> bool:
        """Storing is, rounding is not."""
        return self.bits is None

    def run(self, model: Model, context: Context) -> PassReport:
        """Replace weights by decoders."""
        graph = model.graph
        if model.opset < _OPSET:
            return PassReport(
                0, (Skip("model", f"decoders need opset {_OPSET} (BitShift); the model has {model.opset}"),)
            )
        shown = {id(tensor) for scope in walk_graphs(graph) for tensor in scope.outputs}
        builder = DecoderBuilder(graph, tensor_names(graph))
        kinds: Counter[str] = Counter()
        skipped: list[Skip] = []
        if self.bits is not None:
            for coded in shrink_weights(model, context, self.bits, self.min_bytes):
                if id(coded.constant) not in shown:
                    args = (coded.codes, coded.bits, coded.levels, coded.scale)
                    _replace(coded.constant, builder.palette(coded.constant.name, *args))
                    kinds[f"{coded.bits}-bit palette"] += 1
        for constant in context.progress.track(constants(graph), "pack"):
            reason = self._unfit(constant, shown)
            form = None if reason else smallest_form(constant)
            if form is not None:
                _replace(constant, form.build(constant.name, constant.values, builder))
                kinds[form.kind] += 1
            elif payload_bytes(constant) >= self.min_bytes:
                skipped.append(Skip(constant.name, reason or "no form is smaller than the plain one"))
        graph.nodes[:0] = builder.nodes
        metrics = {f"stored as {kind}": float(count) for kind, count in sorted(kinds.items())}
        return PassReport(sum(kinds.values()), tuple(skipped), metrics)

    def _unfit(self, constant: gs.Constant, shown: set[int]) -> str:
        """Return why a weight stays plain whatever its values are, or an empty text."""
        if payload_bytes(constant) < self.min_bytes:
            return f"it is smaller than {self.min_bytes} bytes"
        if constant.dtype not in _TYPES:
            return f"there is no decoder for {constant.dtype}"
        return "it is a graph output" if id(constant) in shown else ""


def smallest_form(constant: gs.Constant) -> Form | None:
    """Return the smallest form of a weight, or None if the plain one is."""
    best = min(forms(constant.values), key=lambda form: form.nbytes, default=None)
    return best if best is not None and best.nbytes < payload_bytes(constant) else None


def _replace(constant: gs.Constant, decoded: gs.Tensor) -> None:
    """Let every user of a weight read the decoded tensor."""
    for node in list(constant.outputs):
        for index, tensor in enumerate(node.inputs):
            if tensor is constant:
                node.inputs[index] = decoded
