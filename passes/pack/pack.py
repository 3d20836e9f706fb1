"""The pass `pack`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import onnx
import onnx_graphsurgeon as gs

from graphopt.base import Pass, PassReport, Skip
from graphopt.context import Context
from graphopt.ir.graph import Payload, constants, payload, payload_bytes, walk_nodes
from graphopt.model import Model
from graphopt.opsets import DECODERS, raised
from graphopt.passes.pack.allocate import allocate
from graphopt.passes.pack.automatic import round_within_limit
from graphopt.passes.pack.floats import Floats, Rounded
from graphopt.passes.pack.forms import Form, forms
from graphopt.passes.pack.loading import compare_loading, describe
from graphopt.passes.pack.sizemode import SizeMode
from graphopt.passes.pack.sizes import constant_bytes
from graphopt.passes.pack.storage import Store
from graphopt.passes.pack.unfit import constant_nodes, unfit_constants
from graphopt.passes.pack.unpack import unpack
from graphopt.runtime.session import CPU, available_providers, op_counts, optimized_model

_OPSET = 7  # Add and Mul broadcast like numpy's
_MEASURED = 2**20, 2**29  # bytes of packed weights for which the opening is timed; of more it takes too long
_IR_VERSION = 4  # before it, every weight must be listed as an input too


@dataclass(frozen=True)
class Pack(Pass):
    """Store each weight in the smallest form that ONNX Runtime decodes, at load, to exactly the same bits.

    ``w`` becomes ``Gather(levels, unpack(codes))`` or ``Cast(w16)``: chains of standard operators that hang from
    initializers only, which level-1 constant folding evaluates once. The running graph is the plain one, which is
    looked at: a weight whose decoder would be left in it stays plain. So does one for which no form is smaller, a small
    one, one that is a graph output, and one that only feeds nodes that are computed at load anyway. Weights of
    model-local functions stay, since they are not initializers.

    With `bits` the pass is lossy: weights are first put on a trellis, where a code and the one before it in its chain
    choose a level together, or if they are small, sparse, grouped or huge on 2**bits levels of their own, with a scale
    a channel, so that the *outputs* of their layers change least on the samples (GPTQ, least squares), front to back.
    Then levels and scales are tuned together by gradients of what the whole model gives, as far as samples that are
    kept back gain by it; that takes 32 samples, operators that gradients lead through, and no states. A model older
    than opset 11 is converted for that, by ONNX's own converter.

    Source: Deep Compression (arXiv:1510.00149), without a runtime of its own; GPTQ (arXiv:2210.17323); trellis-coded
    quantization as in QTIP (arXiv:2406.11235).

    Attributes:
        bits: Bits of a weight in size mode, 2 to 8; auto: as few as `--max-drop` allows, 2 to 8 by loss per byte; none
            stores the weights as they are.
        min_bytes: Smaller weights stay plain, bytes.
        metadata: drop or keep what exporters note on nodes (source lines, doc strings), which may outweigh the packed
            weights; nothing that runs looks at it.
    """

    name: ClassVar[str] = "pack"

    bits: int | Literal["auto"] | None = None
    min_bytes: int = 1024
    metadata: Literal["drop", "keep"] = "drop"

    def __post_init__(self) -> None:
        """Check the options."""
        if self.min_bytes < 0:
            raise ValueError(f"min-bytes must be 0 or more, not {self.min_bytes}")
        if isinstance(self.bits, int) and not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be auto or 2 to 8, not {self.bits}")

    @property
    def lossless(self) -> bool:
        """Storing is, rounding is not."""
        return self.bits is None

    def run(self, model: Model, context: Context) -> PassReport:
        """Replace weights by decoders; for those of size mode an old model is converted."""
        recent, note = (model, "") if self.lossless else raised(model, DECODERS, "its decoders")
        if recent.opset < _OPSET:
            reason = f"decoders need operator set {_OPSET} or later; the model has {recent.opset}"
            report = PassReport(0, (Skip("model", reason),))
        else:
            report = _Run(self, recent, context).report()
        if recent is not model and not report.changed:
            return report
        model.graph, model.residue = recent.graph, recent.residue
        return replace(report, notes=(note, *report.notes)) if note else report


class _Run:
    """One run of the pass."""

    def __init__(self, options: Pack, model: Model, context: Context) -> None:
        self._options = options
        self._model = model
        self._context = context
        self._skipped: list[Skip] = []
        self._notes: list[str] = []
        self._metrics: dict[str, float] = {}

    def report(self) -> PassReport:
        dropped = self._dropped_metadata() if self._options.metadata == "drop" else 0
        changed = self._pack()
        return PassReport(changed + dropped, tuple(dict.fromkeys(self._skipped)), self._metrics, tuple(self._notes))

    def _dropped_metadata(self) -> int:
        """Remove what exporters note on nodes; return how many nodes had something."""
        nbytes = count = 0
        for root in (self._model.graph, *self._model.graph.functions):
            for node in walk_nodes(root):
                residue = getattr(node, "residue", None)
                before = residue.ByteSize() if residue is not None else 0
                if residue is not None and (residue.doc_string or residue.metadata_props):
                    residue.ClearField("doc_string")
                    residue.ClearField("metadata_props")
                    nbytes, count = nbytes + before - residue.ByteSize(), count + 1
        if count:
            self._notes.append(f"{nbytes} bytes of exporters' notes on {count} nodes dropped")
        return count

    def _pack(self) -> int:
        """Replace weights by decoders and return how many."""
        found = constants(self._model.graph)
        unfit = {id(constant): reason for constant, reason in unfit_constants(self._model.graph, found)}
        large = [constant for constant in found if payload_bytes(constant) >= self._least_bytes]
        self._skipped += [Skip(item.name, unfit[id(item)]) for item in large if id(item) in unfit]
        nodes = constant_nodes(self._model.graph, self._least_bytes)
        self._skipped += [Skip(name, "a Constant node gives it, which `fold` makes a weight") for name in nodes]
        candidates = [constant for constant in large if id(constant) not in unfit]
        if not candidates:
            return 0
        plain = self._optimized()
        originals = {id(constant): payload(constant) for constant in found}
        sizes = {id(constant): constant_bytes(constant) for constant in candidates}
        coded = self._coded(candidates)
        store = self._stored(candidates, coded, originals, sizes)
        if store.packed:
            self._raise_ir_version()
            for refused in self._prove(store, plain):
                self._give_back(refused, store, coded, originals)
            self._measure_loading(store)
        if not store.packed:
            for constant in found:
                _restore(constant, originals)
        kinds = Counter(packed.kind for packed in store.packed)
        self._metrics |= {f"stored as {kind}": float(count) for kind, count in sorted(kinds.items())}
        return len(store.packed)

    def _stored(
        self,
        candidates: list[gs.Constant],
        coded: Mapping[int, Rounded],
        originals: Mapping[int, Payload],
        sizes: Mapping[int, int],
    ) -> Store:
        """Put decoders into the graph wherever a form is smaller than the plain weight.

        Rounded weights come first: where one stays plain after all, the bias that made up for it is not packed yet.
        """
        store = Store(self._model)
        ordered = sorted(candidates, key=lambda constant: id(constant) not in coded)
        for constant in self._context.progress.track(ordered, "pack"):
            possible: list[Form] = list(forms(constant.values))
            rounded = coded.get(id(constant))
            if rounded is not None and rounded.form is not None:
                possible.append(rounded.form)
            usable = [form for form in possible if form.opset <= self._model.opset]
            if store.pack(constant, usable, sizes[id(constant)]):
                continue
            self._skipped.append(Skip(constant.name, "no form of it is smaller than the plain one"))
            self._give_back(constant, store, coded, originals)
        store.commit()
        return store

    def _give_back(
        self, constant: gs.Constant, store: Store, coded: Mapping[int, Rounded], originals: Mapping[int, Payload]
    ) -> None:
        """Undo the rounding of a weight that stays plain, and with it the shift of its bias, packed or not."""
        if id(constant) not in coded:
            return
        _restore(constant, originals)
        bias = coded[id(constant)].bias
        if bias is not None:
            store.take_back([packed for packed in store.packed if packed.constant is bias])
            _restore(bias, originals)

    @property
    def _least_bytes(self) -> int:
        return max(self._options.min_bytes, 1)

    def _coded(self, candidates: list[gs.Constant]) -> dict[int, Rounded]:
        """Round the weights in place and return what became of them by id; nothing in lossless mode."""
        wanted = self._options.bits
        if wanted is None:
            return {}
        floats = Floats(self._model, candidates)
        units, samples = floats.units, self._context.samples
        if not units or (samples is not None and len(samples) == 0):
            return {}
        mode = SizeMode(samples, self._context.progress, self._context.rng("trellis"))
        if samples is None:
            if wanted == "auto":
                self._notes.append("without --data there is nothing to choose bits by: all weights get 8")
            return floats.write_back(mode.round(floats.model, units, [8 if wanted == "auto" else wanted] * len(units)))
        losses = mode.losses(floats.model, units)
        if wanted == "auto":
            found, note = round_within_limit(self._model, candidates, mode, self._context, losses)
            self._notes.append(note)
            return found
        bits, original = allocate(losses, [unit.coded for unit in units], wanted), floats.model.copy()
        roundings = mode.round(floats.model, units, bits)
        self._notes.append(mode.tune(original, floats.model, roundings).describe())
        return floats.write_back(roundings)

    def _raise_ir_version(self) -> None:
        graph = self._model.graph
        if (graph.ir_version or 0) < _IR_VERSION:
            note = f"IR version raised from {graph.ir_version} to {_IR_VERSION}, in which weights need not be inputs"
            self._notes.append(note)
            graph.ir_version = _IR_VERSION

    def _prove(self, store: Store, plain: Counter[str]) -> list[gs.Constant]:
        """Take back what ONNX Runtime does not fold, and all if the graph that runs is not the one it was.

        Returns:
            The weights that are plain again.
        """
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
            left = [*left, *store.packed]
            store.take_back(store.packed)
        return [packed.constant for packed in left]

    def _measure_loading(self, store: Store) -> None:
        """Note what opening the model takes beside the plain one; of small models, nobody would notice."""
        nbytes = sum(payload_bytes(packed.constant) for packed in store.packed)
        if not _MEASURED[0] <= nbytes <= _MEASURED[1]:
            return
        plain = self._model.copy()
        unpack(plain)
        found = compare_loading(plain, self._model)
        if found is None:
            self._notes.append("what opening the model takes could not be measured: a process of its own failed")
            return
        self._notes.append(describe(*found))

    def _optimized(self) -> Counter[str]:
        return op_counts(self._optimized_proto())

    def _optimized_proto(self) -> onnx.ModelProto:
        provider = self._context.target.provider
        return optimized_model(self._model, provider=provider if provider in available_providers() else CPU)


def _restore(constant: gs.Constant, originals: Mapping[int, Payload]) -> None:
    if payload(constant) is not originals[id(constant)]:
        constant.values = originals[id(constant)]
