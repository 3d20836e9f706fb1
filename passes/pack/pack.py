"""The pass `pack`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.base import Pass, PassReport, Skip
from graphopt.context import Context
from graphopt.ir.graph import constants, payload_bytes, walk_graphs, walk_nodes
from graphopt.model import Model
from graphopt.passes.pack.forms import STORED, forms
from graphopt.passes.pack.sizemode import CodedForm, shrink_weights
from graphopt.passes.pack.storage import Store
from graphopt.runtime.session import CPU, available_providers, op_counts, optimized_model

_OPSET = 7  # Add and Mul broadcast like numpy's
_IR_VERSION = 4  # before it, every weight must be listed as an input too


@dataclass(frozen=True)
class Pack(Pass):
    """Store each weight in the smallest form that ONNX Runtime decodes, at load, to exactly the same bits.

    ``w`` becomes ``Gather(levels, unpack(codes))`` or ``Cast(w16)``: chains of standard operators that hang from
    initializers only, which level-1 constant folding evaluates once. The running graph is the plain one, which is
    looked at: a weight whose decoder would be left in it stays plain. So does one for which no form is smaller, a small
    one, one that is a graph output, and one that only feeds nodes that are computed at load anyway. Weights of
    model-local functions stay, since they are not initializers.

    With `bits` the pass is lossy: weights are first put on palettes of 2**bits levels and a scale a channel, so that
    the *outputs* of their layers change least on the samples (GPTQ, coordinate descent, least squares), front to back.

    Source: Deep Compression (arXiv:1510.00149), without a runtime of its own; GPTQ (arXiv:2210.17323).

    Attributes:
        bits: Bits of a weight in size mode, 2 to 8; none stores the weights as they are.
        min_bytes: Smaller weights stay plain, bytes.
    """

    name: ClassVar[str] = "pack"

    bits: int | None = None
    min_bytes: int = 1024

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
        if model.opset < _OPSET:
            reason = f"decoders need operator set {_OPSET} or later; the model has {model.opset}"
            return PassReport(0, (Skip("model", reason),))
        return _Run(self, model, context).report()


class _Run:
    """One run of the pass."""

    def __init__(self, options: Pack, model: Model, context: Context) -> None:
        self._options = options
        self._model = model
        self._context = context
        self._skipped: list[Skip] = []

    def report(self) -> PassReport:
        found = constants(self._model.graph)
        unfit = {id(constant): reason for constant, reason in unfit_constants(self._model.graph, found)}
        large = [constant for constant in found if self._is_large(constant)]
        self._skipped += [Skip(item.name, unfit[id(item)]) for item in large if id(item) in unfit]
        candidates = [constant for constant in large if id(constant) not in unfit]
        if not candidates:
            return PassReport(0, tuple(self._skipped))
        plain = self._optimized()
        originals = {id(constant): constant.values for constant in candidates} if self._options.bits else {}
        coded = self._coded(candidates)
        store = Store(self._model)
        for constant in self._context.progress.track(candidates, "pack"):
            possible = [form for form in forms(constant.values) if form.opset <= self._model.opset]
            if id(constant) in coded and coded[id(constant)].opset <= self._model.opset:
                possible.append(coded[id(constant)])
            if not store.pack(constant, possible):
                self._skipped.append(Skip(constant.name, "no form of it is smaller than the plain one"))
        store.commit()
        if not store.packed:
            return PassReport(0, tuple(self._skipped))
        raised = self._raise_ir_version()
        self._prove(store, plain)
        for constant in candidates:
            if id(constant) in originals and all(constant is not packed.constant for packed in store.packed):
                constant.values = originals[id(constant)]
        kinds = Counter(packed.kind for packed in store.packed)
        metrics = {f"stored as {kind}": float(count) for kind, count in sorted(kinds.items())}
        return PassReport(len(store.packed), tuple(self._skipped), metrics, raised)

    def _is_large(self, constant: gs.Constant) -> bool:
        return payload_bytes(constant) >= max(self._options.min_bytes, 1)

    def _coded(self, candidates: Iterable[gs.Constant]) -> dict[int, CodedForm]:
        if self._options.bits is None:
            return {}
        shrunk = shrink_weights(self._model, self._context, self._options.bits, list(candidates))
        return {id(constant): form for constant, form in shrunk}

    def _raise_ir_version(self) -> tuple[str, ...]:
        graph = self._model.graph
        if (graph.ir_version or 0) >= _IR_VERSION:
            return ()
        note = f"IR version raised from {graph.ir_version} to {_IR_VERSION}, in which weights need not be inputs"
        graph.ir_version = _IR_VERSION
        return (note,)

    def _prove(self, store: Store, plain: Counter[str]) -> None:
        """Take back what ONNX Runtime does not fold, and all if the graph that runs is not the one it was."""
        optimized = self._optimized_proto()
        left = store.unfolded(optimized)
        if left:
            names = sorted(packed.constant.name for packed in left)
            self._skipped += [Skip(name, "ONNX Runtime does not fold its decoder at load") for name in names]
            store.take_back(left)
            optimized = self._optimized_proto() if store.packed else optimized
        new = op_counts(optimized) - plain
        if store.packed and new:
            self._skipped.append(Skip("model", f"with packed weights ONNX Runtime would run other nodes: {dict(new)}"))
            store.take_back(store.packed)

    def _optimized(self) -> Counter[str]:
        return op_counts(self._optimized_proto())

    def _optimized_proto(self) -> onnx.ModelProto:
        provider = self._context.target.provider
        return optimized_model(self._model, provider=provider if provider in available_providers() else CPU)


def unfit_constants(graph: gs.Graph, found: Iterable[gs.Constant]) -> list[tuple[gs.Constant, str]]:
    """Return the constants that stay plain whatever their values are, each with the reason."""
    shown = {id(tensor) for scope in walk_graphs(graph) for tensor in scope.outputs}
    computed = _computed_at_load(graph)
    reasons = []
    for constant in found:
        if id(constant) in shown:
            reasons.append((constant, "it is a graph output"))
        elif constant.dtype not in STORED:
            reasons.append((constant, f"there is no decoder for {np.dtype(constant.dtype)}"))
        elif id(constant) in computed:
            reasons.append((constant, "what it feeds is computed at load already"))
    return reasons


def _computed_at_load(graph: gs.Graph) -> set[int]:
    """Return the ids of the constants that feed a node all of whose inputs are constant; quantization is no such node.

    Decoders are of this kind, so they are not packed again.
    """
    known: set[int] = set()
    found: set[int] = set()
    for node in walk_nodes(graph):
        if node.op in ("DequantizeLinear", "QuantizeLinear") or not node.inputs:
            continue
        inputs = [tensor for tensor in node.inputs if not tensor.is_empty()]
        if all(isinstance(tensor, gs.Constant) or id(tensor) in known for tensor in inputs):
            known.update(id(tensor) for tensor in node.outputs)
            found.update(id(tensor) for tensor in inputs)
    return found
