"""Train the network and write model.onnx, samples.npz (for calibration) and test.npz (held out) beside this file.

::

    python -m examples.digits.train

Needs scikit-learn, whose 1797 digits of 8 x 8 pixels are the data; takes some seconds. Same machine, same versions and
same number of threads: same files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from sklearn.datasets import load_digits

from examples.digits.layers import EPSILON, BatchNorm, Conv, Gemm, Layer, MaxPool, Relu
from examples.digits.metric import accuracy

FOLDER = Path(__file__).parent
SEED = 0
HELD_OUT = 360  # samples that are never trained on
CALIBRATION = 128  # of the others, for samples.npz
EPOCHS = 12
BATCH = 32
RATE = 0.02  # of learning, at the start; it falls to zero along half a cosine
MOMENTUM = 0.9
DECAY = 2e-3
NOISE = 0.1  # standard deviation of what is added to the pixels while training


def main() -> None:
    """Train, write the files, and print the accuracy on the held-out samples."""
    rng = np.random.default_rng(SEED)
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    order = rng.permutation(len(images))
    held_out, training = order[:HELD_OUT], order[HELD_OUT:]
    layers = train(images[training], digits.target[training], rng)
    onnx.save(to_onnx(layers), FOLDER / "model.onnx")
    np.savez_compressed(FOLDER / "samples.npz", image=images[training[:CALIBRATION]])
    np.savez_compressed(FOLDER / "test.npz", image=images[held_out], label=digits.target[held_out])
    session = onnxruntime.InferenceSession(FOLDER / "model.onnx", providers=["CPUExecutionProvider"])
    reached = accuracy(lambda feeds: {"logits": session.run(["logits"], dict(feeds))[0]})
    click.echo(f"accuracy on {HELD_OUT} held-out digits: {reached:.4f}")


def train(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> list[Layer]:
    """Train by stochastic gradient descent with momentum on the cross entropy.

    Args:
        images: [samples, 1, 8, 8], values in [0, 1].
        labels: [samples], 0 to 9.
        rng: Source of initial weights, of the order of samples and of noise.

    Returns:
        The layers, from input to logits.
    """
    layers: list[Layer] = [
        *(Conv(rng, 1, 24), BatchNorm(24), Relu()),
        *(Conv(rng, 24, 48), BatchNorm(48), Relu(), MaxPool()),
        *(Gemm(rng, 48 * 4 * 4, 128), Relu(), Gemm(rng, 128, 10)),
    ]
    speeds = [{name: np.zeros_like(weight) for name, weight in layer.weights.items()} for layer in layers]
    steps = EPOCHS * (len(images) // BATCH)
    for step, batch in enumerate(_batches(len(images), rng)):
        rate = RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
        noise = NOISE * rng.standard_normal(images[batch].shape).astype(np.float32)
        _learn(layers, speeds, images[batch] + noise, labels[batch], rate)
    return layers


def _batches(count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    for _ in range(EPOCHS):
        order = rng.permutation(count)
        yield from (order[start : start + BATCH] for start in range(0, count - BATCH + 1, BATCH))


def _learn(
    layers: Sequence[Layer], speeds: list[dict[str, np.ndarray]], x: np.ndarray, labels: np.ndarray, rate: float
) -> None:
    for layer in layers:
        x = layer.forward(x)
    shares = np.exp(x - x.max(1, keepdims=True))
    grad = shares / shares.sum(1, keepdims=True)  # softmax minus one-hot: the gradient of the cross entropy
    grad[np.arange(len(labels)), labels] -= 1
    grad /= np.float32(len(labels))
    for layer in reversed(layers):
        grad = layer.backward(grad)
    for layer, speed in zip(layers, speeds, strict=True):
        for name, weight in layer.weights.items():
            decay = DECAY if name == "W" else 0
            speed[name] = MOMENTUM * speed[name] + layer.gradients[name] + decay * weight
            layer.weights[name] = (weight - rate * speed[name]).astype(np.float32)


def to_onnx(layers: Sequence[Layer]) -> onnx.ModelProto:
    """Return the trained network as a framework would export it, with batch norms apart; any batch size."""
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    current = "image"
    for index, layer in enumerate(layers):
        following = "logits" if index == len(layers) - 1 else f"x{index}"
        made, used = _nodes(layer, f"layer{index}", current, following)
        nodes += made
        weights += [numpy_helper.from_array(array, name) for name, array in used.items()]
        current = following
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 10])],
        weights,
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, producer_name="examples.digits.train", opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def _nodes(layer: Layer, name: str, x: str, y: str) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Return the nodes that compute a layer, and the weights they use by name."""
    if isinstance(layer, Conv):
        node = helper.make_node("Conv", [x, f"{name}.W"], [y], name, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        return [node], {f"{name}.W": layer.weights["W"]}
    if isinstance(layer, BatchNorm):
        arrays = {**layer.weights, "mean": layer.mean, "variance": layer.variance}
        used = {f"{name}.{key}": array.astype(np.float32) for key, array in arrays.items()}
        return [helper.make_node("BatchNormalization", [x, *used], [y], name, epsilon=EPSILON)], used
    if isinstance(layer, MaxPool):
        pool = helper.make_node("MaxPool", [x], [f"{name}.pool"], name, kernel_shape=[2, 2], strides=[2, 2])
        return [pool, helper.make_node("Flatten", [f"{name}.pool"], [y], f"{name}.flatten")], {}
    if isinstance(layer, Gemm):
        used = {f"{name}.{key}": array for key, array in layer.weights.items()}
        return [helper.make_node("Gemm", [x, *used], [y], name, transB=1)], used
    return [helper.make_node("Relu", [x], [y], name)], {}


if __name__ == "__main__":
    main()
