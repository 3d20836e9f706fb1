"""The rules, in the order in which they are tried at a node."""

from __future__ import annotations

from graphopt.passes.fold.rules.activation import Activation, HardSigmoid
from graphopt.passes.fold.rules.affine import Affine
from graphopt.passes.fold.rules.affine_ahead import AffineAhead
from graphopt.passes.fold.rules.batch_norm import BatchNorm
from graphopt.passes.fold.rules.gemm import ToGemm
from graphopt.passes.fold.rules.inline_if import InlineIf, OnlyBranch
from graphopt.passes.fold.rules.inline_loop import InlineLoop
from graphopt.passes.fold.rules.layer_norm import LayerNorm
from graphopt.passes.fold.rules.leading_ones import LeadingOnes
from graphopt.passes.fold.rules.lift_constant import LiftConstant
from graphopt.passes.fold.rules.lift_transpose import LiftTranspose
from graphopt.passes.fold.rules.loop_invariant import LoopInvariant
from graphopt.passes.fold.rules.merge_arithmetic import MergeArithmetic
from graphopt.passes.fold.rules.merge_concats import MergeConcats
from graphopt.passes.fold.rules.merge_reshapes import MergeReshapes
from graphopt.passes.fold.rules.merge_slices import MergeSlices
from graphopt.passes.fold.rules.merge_transposes import MergeTransposes
from graphopt.passes.fold.rules.narrow_conv import NarrowConv, SinkUnsqueeze
from graphopt.passes.fold.rules.neutral_operand import NeutralOperand
from graphopt.passes.fold.rules.no_op import NoOp
from graphopt.passes.fold.rules.pad_into_conv import PadIntoConv
from graphopt.passes.fold.rules.pad_into_pool import PadIntoPool
from graphopt.passes.fold.rules.pick import Pick
from graphopt.passes.fold.rules.reduction import KeptAxes, ReduceSqueezed
from graphopt.passes.fold.rules.reshape_target import ReshapeTarget
from graphopt.passes.fold.rules.rms_norm import RMSNorm
from graphopt.passes.fold.rules.rule import Rule
from graphopt.passes.fold.rules.same_shape import SameShape
from graphopt.passes.fold.rules.scalar_range import ScalarRange
from graphopt.passes.fold.rules.shape_value import ShapeValue
from graphopt.passes.fold.rules.slices_to_split import SlicesToSplit
from graphopt.passes.fold.rules.softmax import Softmax
from graphopt.passes.fold.rules.zero_state import ZeroState

__all__ = ["RULES", "Rule"]

RULES: tuple[Rule, ...] = (
    LiftConstant(),
    InlineIf(),
    OnlyBranch(),
    InlineLoop(),
    LoopInvariant(),
    ShapeValue(),
    ScalarRange(),
    NoOp(),
    SameShape(),
    ReshapeTarget(),
    MergeReshapes(),
    MergeTransposes(),
    LiftTranspose(),
    MergeSlices(),
    MergeConcats(),
    SlicesToSplit(),
    LeadingOnes(),
    KeptAxes(),
    ReduceSqueezed(),
    SinkUnsqueeze(),
    NarrowConv(),
    Pick(),
    PadIntoConv(),
    PadIntoPool(),
    ZeroState(),
    BatchNorm(),
    LayerNorm(),
    RMSNorm(),
    Softmax(),
    NeutralOperand(),
    Activation(),
    HardSigmoid(),
    Affine(),
    AffineAhead(),
    MergeArithmetic(),
    ToGemm(),
)
