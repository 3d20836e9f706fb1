"""What size mode has made of a weight: codes, levels and scales, and how a file holds them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.compensate.trellis import Trellis
from graphopt.opsets import DECODERS
from graphopt.passes.pack.bits import packed_bytes
from graphopt.passes.pack.coded import WHOLE, Chained, ChainedWhole, Coded
from graphopt.passes.pack.decoders import Draft
from graphopt.passes.pack.forms import Form, ScaledForm, forms
from graphopt.passes.pack.units import Unit

_LARGE_BIAS = 2**10  # bytes; of smaller ones half precision would save nothing
_OPSET = 10  # since which Slice takes its ends as inputs


@dataclass(frozen=True, eq=False)
class CodedForm(Form):
    """Codes into shared levels (of 8 bits: whole numbers) times a scale a row: Gather or Cast, Mul.

    Attributes:
        codes: Index of the level of each element, uint8 in the weight's shape.
        levels: Values, float32 [2**bits].
        scale: Factors, float16 or float32, broadcastable to the weight.
    """

    codes: np.ndarray
    levels: np.ndarray
    scale: np.ndarray

    def build(self, draft: Draft) -> gs.Tensor:
        """Add the decoder to a draft and return the decoded tensor."""
        if len(self.levels) < 256:
            return draft.scaled(draft.levels(self.codes, self.levels), self.scale)
        whole = (self.codes.astype(np.int16) - 128).astype(np.int8)
        return draft.scaled(draft.cast(draft.stored("int8", whole), np.dtype(np.float32)), self.scale)


@dataclass(frozen=True, eq=False)
class ChainedForm(Form):
    """Codes on a trellis times a scale a row: Gather, ConvInteger, Gather, Mul.

    Attributes:
        codes: uint8 [before, rows, behind], in the order of the weight's elements.
        shape: The weight's.
        trellis: Its levels.
        scale: Factors, float16 or float32, broadcastable to the weight.
        whole: Whether the weight is int8: Clip, Round, Cast.
    """

    codes: np.ndarray
    shape: tuple[int, ...]
    trellis: Trellis
    scale: np.ndarray
    whole: bool

    def build(self, draft: Draft) -> gs.Tensor:
        """Add the decoder to a draft and return the decoded tensor."""
        levels = draft.trellis(self.codes, self.trellis.levels, self.trellis.bits)
        values = draft.scaled(draft.reshape(levels, self.shape), self.scale)
        return draft.rounded(values, *WHOLE) if self.whole else values


@dataclass(eq=False)
class Rounding:
    """A weight that was rounded.

    Attributes:
        unit: The weight.
        coded: What it is now.
        bias: What was shifted together with it, or None.
    """

    unit: Unit
    coded: Coded
    bias: gs.Constant | None = None

    def put(self, coded: Coded) -> None:
        """Give the weight other levels, scales or codes."""
        self.coded = coded
        self.unit.constant.values = self.unit.stored(coded.decoded())

    def form(self) -> Form | None:
        """Return how a file can hold it; None for whole numbers on levels, whose values tell."""
        unit, coded = self.unit, self.coded
        if unit.scale is not None and not isinstance(coded, ChainedWhole):
            return None
        bits, codes, scale = coded.bits, unit.stored(coded.codes), unit.stored_scale(coded.scale)
        nbytes = packed_bytes(codes.size, bits) + scale.nbytes
        if isinstance(coded, Chained):
            kind, shape = f"{bits}-bit trellis codes", tuple(unit.constant.shape)
            before = math.prod(shape[: unit.order[0]])
            placed, whole = codes.reshape(before, unit.rows, -1), isinstance(coded, ChainedWhole)
            opset = DECODERS if whole else _OPSET
            return ChainedForm(kind, nbytes, opset, placed, shape, coded.trellis, scale, whole)
        if unit.is_sparse:
            inner = min(forms(coded.levels[codes]), key=lambda form: form.nbytes)
            return ScaledForm(f"{inner.kind} and scales", inner.nbytes + scale.nbytes, inner.opset, inner, scale)
        levels = coded.levels.nbytes if coded.own_levels else 0
        return CodedForm(f"{bits}-bit codes", nbytes + levels, _OPSET, codes, coded.levels, scale)


def stored_bias(values: np.ndarray) -> np.ndarray:
    """Return a bias as it is stored: of a large one, the errors of the weights leave no more than half precision.

    Args:
        values: float32.
    """
    if values.nbytes < _LARGE_BIAS:
        return values
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float16).astype(np.float32)
    return narrow if np.isfinite(narrow).all() else values
