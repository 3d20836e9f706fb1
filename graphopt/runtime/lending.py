"""Handing weights to ONNX Runtime without writing them to a file.

Weights of external data stay in their file, which the runtime maps: no byte of them is copied. Those in memory are
lent, of which the runtime makes one copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from graphopt.ir.exporter import export_graph
from graphopt.ir.graph import payload
from graphopt.ir.payload import StoredTensor, external_reference
from graphopt.ir.placement import constant_homes
from graphopt.ir.tensors import elsewhere, inline
from graphopt.model import Model, data_folder

_LENT = 2**12  # bytes; smaller weights are copied, so that the runtime sees their values beforehand
_ALIGNMENT = 16  # bytes: an SSE vector
_NOWHERE = "*lent*"  # a location that is never read


@dataclass(frozen=True)
class Loan:
    """A model whose large weights are elsewhere.

    Attributes:
        rest: The model without them.
        values: Lent weights by name; they must stay alive as long as the session.
        folder: What the files that `rest` refers to are relative to; None: there are none.
    """

    rest: onnx.ModelProto
    values: Mapping[str, ort.OrtValue]
    folder: Path | None


def lend(model: Model) -> Loan:
    """Return a model without its large weights, and where those are.

    Only weights of the main graph are left out: ONNX Runtime does not look into bodies for them.

    Args:
        model: Stays as it is.
    """
    homes = constant_homes(model.graph)
    inner = {id(payload(constant)) for key, held in homes.items() if key != id(model.graph) for constant in held}
    lent = {id(payload(constant)) for constant in homes[id(model.graph)]} - inner
    values: dict[str, ort.OrtValue] = {}
    files = _Files(model)

    def write(name: str, held: StoredTensor | np.ndarray) -> onnx.TensorProto:
        if held.nbytes < _LENT or id(held) not in lent:
            return inline(name, held)
        if isinstance(held, StoredTensor) and files.holds(held):
            location, offset, _ = external_reference(held.tensor)
            return elsewhere(name, held, location=location, offset=offset, length=held.nbytes)
        if np.dtype(held.dtype).kind not in "fiub":
            return inline(name, held)
        values[name] = ort.OrtValue.ortvalue_from_numpy(_aligned(held))
        return elsewhere(name, held, location=_NOWHERE, offset=0, length=held.nbytes)

    return Loan(export_graph(model.graph, model.residue, write), values, files.folder)


class _Files:
    """The data files of a model that ONNX Runtime can map where they are."""

    def __init__(self, model: Model) -> None:
        self.folder = data_folder(model.path) if model.path is not None else None
        self._usable: dict[str, bool] = {}

    def holds(self, held: StoredTensor) -> bool:
        """Whether a weight is aligned, and in a file that the runtime opens: it refuses links out of the folder."""
        if self.folder is None or held.folder != self.folder:
            return False
        location, offset, _ = external_reference(held.tensor)
        if location not in self._usable:
            self._usable[location] = (self.folder / location).resolve().is_relative_to(self.folder)
        return self._usable[location] and offset % _ALIGNMENT == 0


def _aligned(held: StoredTensor | np.ndarray) -> np.ndarray:
    array = held.load() if isinstance(held, StoredTensor) else held
    if array.flags.c_contiguous and array.ctypes.data % _ALIGNMENT == 0:
        return array
    return np.array(array, order="C")
