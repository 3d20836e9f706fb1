"""BatchNormalization moves into the linear operator before it."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fold.rules.linear import absorb, linear
from graphopt.passes.fold.rules.rule import Outcome, Rule, done
from graphopt.passes.fold.workbench import Workbench


class BatchNorm(Rule):
    """``BN(W x + b) -> (W k) x + (b - mean) k + beta``, k = gamma / sqrt(var + epsilon), per output channel.

    After Conv, ConvTranspose and Gemm whose output nobody else reads and whose weight nobody else uses. The statistics
    must be constants, and the node must not be in training mode.
    """

    name = "batch-norm"
    ops = frozenset({"BatchNormalization"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Merge the node into its producer."""
        place = linear(bench.producer(node.inputs[0]), bench)
        if place is None:
            return "its input does not come from Conv, ConvTranspose or Gemm"
        reason = trains(node, bench)
        if reason:
            return reason
        if not bench.only_reader(node, node.inputs[0]):
            return f"the output of {place.node.op} is used elsewhere too"
        affine = scale_and_shift(node, bench)
        if affine is None or affine[0].shape != (place.channels,):
            return "its statistics are computed at run time"
        return done(absorb(place, *affine, bench) or bench.bypass(node, node.inputs[0]))


def trains(node: gs.Node, bench: Workbench) -> str:
    """Return why a BatchNormalization is not one scale and shift a channel; empty if it is."""
    if node.attrs.get("training_mode", 0) or any(bench.uses(extra) for extra in node.outputs[1:]):
        return "it is in training mode"
    return "" if node.attrs.get("spatial", 1) else "it has statistics for each position"


def scale_and_shift(node: gs.Node, bench: Workbench) -> tuple[np.ndarray, np.ndarray] | None:
    """Return k and beta - mean k of a BatchNormalization, each of shape (channels,), float64; None if not constant."""
    given = [bench.array(tensor) for tensor in node.inputs[1:5]]
    found = [values.astype(np.float64) for values in given if values is not None]
    if len(found) != 4:
        return None
    gamma, beta, mean, variance = found
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = gamma / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
        return scale, beta - mean * scale
