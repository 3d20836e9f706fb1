"""Layers of a convolutional network in numpy, forward and backward.

Activations are float32 arrays [batch, channels, height, width] or [batch, features]. A layer keeps what its backward
pass needs, so forward and backward calls alternate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

MOMENTUM = 0.9  # of the running statistics of BatchNorm
EPSILON = 1e-5


class Layer(ABC):
    """One layer.

    Attributes:
        weights: Trained arrays by name.
        gradients: Their gradients, from the last backward pass.
    """

    def __init__(self) -> None:
        self.weights: dict[str, np.ndarray] = {}
        self.gradients: dict[str, np.ndarray] = {}

    @abstractmethod
    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return the outputs for the inputs `x` of a training batch."""

    @abstractmethod
    def backward(self, grad: np.ndarray) -> np.ndarray:
        """Return the gradient of the inputs, given that of the outputs, and keep those of the weights."""


class Conv(Layer):
    """3x3 convolution with zero padding that keeps height and width; no bias, since BatchNorm follows."""

    def __init__(self, rng: np.random.Generator, inputs: int, outputs: int) -> None:
        super().__init__()
        scale = np.sqrt(2 / (9 * inputs))  # He et al., 2015
        self.weights["W"] = (scale * rng.standard_normal((outputs, inputs, 3, 3))).astype(np.float32)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return W * x."""
        self._shape = x.shape
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        self._patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1] * 9)
        filters = self.weights["W"].reshape(len(self.weights["W"]), -1)
        batch, _, height, width = x.shape
        y: np.ndarray = self._patches @ filters.T
        return y.reshape(batch, height, width, -1).transpose(0, 3, 1, 2)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        """Return the gradient of x: each patch's gradient goes back to where the patch came from."""
        batch, channels, height, width = self._shape
        flat = grad.transpose(0, 2, 3, 1).reshape(-1, grad.shape[1])
        filters = self.weights["W"].reshape(grad.shape[1], -1)
        self.gradients["W"] = (flat.T @ self._patches).reshape(self.weights["W"].shape)
        patches = (flat @ filters).reshape(batch, height, width, channels, 3, 3)
        padded = np.zeros((batch, channels, height + 2, width + 2), np.float32)
        for row in range(3):
            for column in range(3):
                part = patches[..., row, column].transpose(0, 3, 1, 2)
                padded[:, :, row : row + height, column : column + width] += part
        return padded[:, :, 1:-1, 1:-1]


class BatchNorm(Layer):
    """Normalization over batch, height and width, with running statistics for later (Ioffe and Szegedy, 2015)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weights = {"scale": np.ones(channels, np.float32), "bias": np.zeros(channels, np.float32)}
        self.mean, self.variance = np.zeros(channels, np.float32), np.ones(channels, np.float32)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return scale * (x - mean) / sqrt(variance + epsilon) + bias."""
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
        self.mean = MOMENTUM * self.mean + (1 - MOMENTUM) * mean
        self.variance = MOMENTUM * self.variance + (1 - MOMENTUM) * variance
        self._deviation = np.sqrt(variance + EPSILON)
        self._normal = (x - _per_channel(mean)) / _per_channel(self._deviation)
        y: np.ndarray = _per_channel(self.weights["scale"]) * self._normal + _per_channel(self.weights["bias"])
        return y

    def backward(self, grad: np.ndarray) -> np.ndarray:
        """Return the gradient of x, also through mean and variance."""
        self.gradients = {"scale": (grad * self._normal).sum((0, 2, 3)), "bias": grad.sum((0, 2, 3))}
        count = grad.size // grad.shape[1]
        shared = self.gradients["bias"] / count, self.gradients["scale"] / count
        inner: np.ndarray = grad - _per_channel(shared[0]) - self._normal * _per_channel(shared[1])
        inner *= _per_channel(self.weights["scale"] / self._deviation)
        return inner


class Relu(Layer):
    """max(x, 0)."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return max(x, 0)."""
        self._positive: np.ndarray = x > 0
        y: np.ndarray = x * self._positive
        return y

    def backward(self, grad: np.ndarray) -> np.ndarray:
        """Return the gradient where x was positive."""
        back: np.ndarray = grad * self._positive
        return back


class MaxPool(Layer):
    """Maximum over 2x2 blocks, then one row of features a sample."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return the maxima, flattened."""
        batch, channels, height, width = x.shape
        blocks = x.reshape(batch, channels, height // 2, 2, width // 2, 2)
        largest: np.ndarray = blocks.max((3, 5), keepdims=True)
        self._is_largest: np.ndarray = blocks == largest
        return largest.reshape(batch, -1)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        """Return the gradient at the maxima; equal ones share it."""
        batch, channels, rows, _, columns, _ = self._is_largest.shape
        shared = grad.reshape(batch, channels, rows, 1, columns, 1) / self._is_largest.sum((3, 5), keepdims=True)
        back: np.ndarray = self._is_largest * shared
        return back.reshape(batch, channels, 2 * rows, 2 * columns)


class Gemm(Layer):
    """x W^T + b."""

    def __init__(self, rng: np.random.Generator, inputs: int, outputs: int) -> None:
        super().__init__()
        scale = np.sqrt(2 / inputs)
        self.weights["W"] = (scale * rng.standard_normal((outputs, inputs))).astype(np.float32)
        self.weights["b"] = np.zeros(outputs, np.float32)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return x W^T + b."""
        self._x = x
        y: np.ndarray = x @ self.weights["W"].T + self.weights["b"]
        return y

    def backward(self, grad: np.ndarray) -> np.ndarray:
        """Return the gradient of x."""
        self.gradients = {"W": grad.T @ self._x, "b": grad.sum(0)}
        back: np.ndarray = grad @ self.weights["W"]
        return back


def _per_channel(values: np.ndarray) -> np.ndarray:
    return values[:, None, None]
