"""Weights of any operator as matrices [rows, inputs], for patterns that lie along the inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs


@dataclass(frozen=True)
class Layout:
    """Which axes of a weight make up the rows and the inputs of a matrix.

    The input channel is the last axis of the inputs, as kernels for sparse weights want it: neighbouring inputs belong
    to neighbouring channels at one position of a convolution's kernel.

    Attributes:
        order: Permutation of the weight's axes: rows first, then positions in the kernel, then input channels.
        rows: How many axes of them are rows.
        channels: Input channels.
        outputs: Rows that are next to each other in one group.
    """

    order: tuple[int, ...]
    rows: int
    channels: int
    outputs: int

    def matrix(self, values: np.ndarray) -> np.ndarray:
        """Return a weight as [rows, inputs]."""
        moved = values.transpose(self.order)
        return moved.reshape(int(np.prod(moved.shape[: self.rows])), -1)

    def restored(self, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return a matrix [rows, inputs] in the weight's shape; the inverse of `matrix`."""
        moved = matrix.reshape([shape[axis] for axis in self.order])
        return np.ascontiguousarray(moved.transpose(np.argsort(self.order)))


def layout_of(node: gs.Node, index: int, shape: tuple[int, ...]) -> Layout | None:
    """Return how a node's weight is a matrix, or None for a vector.

    Args:
        node: Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU or RNN.
        index: Which of its inputs the weight is.
        shape: Shape of the weight.
    """
    rank = len(shape)
    if rank < 2:
        return None
    axes = tuple(range(rank))
    if node.op == "Conv":
        return Layout((0, *axes[2:], 1), 1, shape[1], shape[0] // int(node.attrs.get("group", 1)))
    if node.op == "ConvTranspose":
        return Layout((1, *axes[2:], 0), 1, shape[0] // int(node.attrs.get("group", 1)), shape[1])
    transposed = node.op == "MatMul" and index == 1
    if node.op == "Gemm":
        transposed = not node.attrs.get("transB", 0) if index == 1 else bool(node.attrs.get("transA", 0))
    order = (*axes[:-2], rank - 1, rank - 2) if transposed else axes
    return Layout(order, rank - 1, shape[order[-1]], shape[order[-2]])
