"""Generated models that are alive: every node works on the newest value, and the last value is an output.

A graph whose edges are scattered is mostly dead code, in which any rewrite looks right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Value:
    """A tensor with its sizes; the first axis is the batch, of size `None` here."""

    name: str
    sizes: tuple[int, ...]


@dataclass
class Builder:
    """A model in the making.

    Attributes:
        draw: Hypothesis's draw.
        rng: Of weights; seeded by a drawn number.
        batch: Name or size of the batch axis.
        opset: Version of the operator set.
        values: What was computed so far; the last is the newest.
    """

    draw: st.DrawFn
    rng: np.random.Generator
    batch: str | int
    opset: int
    values: list[Value] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    count: int = 0

    @property
    def newest(self) -> Value:
        return self.values[-1]

    def chance(self, times: int = 2) -> bool:
        """Return True once in so many times; hypothesis shrinks to False."""
        return self.draw(st.integers(0, times - 1)) == times - 1

    def pick(self, *items: ItemT) -> ItemT:
        return self.draw(st.sampled_from(items))

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def node(self, op: str, inputs: list[str], sizes: tuple[int, ...], **attributes: Any) -> Value:
        """Add a node whose output becomes the newest value."""
        result = Value(self.fresh(op.lower()), sizes)
        name = "" if self.chance(8) else self.fresh("node")
        self.nodes.append(helper.make_node(op, inputs, [result.name], name=name, **attributes))
        self.values.append(result)
        return result

    def constant(self, values: np.ndarray, *, reuse: bool = True) -> str:
        """Store a weight: as a new one, a repetition under a new name, an old one, or a Constant node."""
        same = [t for t in self.weights if tuple(t.dims) == values.shape and t.data_type == _kind(values)]
        if same and reuse and self.chance(3):
            kept = self.pick(*same)
            if self.chance():
                return str(kept.name)
            values = numpy_helper.to_array(kept)
        name = self.fresh("w")
        tensor = numpy_helper.from_array(values, name)
        if self.chance(6):
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            return name
        self.weights.append(tensor)
        if self.chance(10):
            self.inputs.append(helper.make_tensor_value_info(name, tensor.data_type, values.shape))
        return name

    def floats(self, *shape: int) -> str:
        """Store random weights that keep the size of what they are applied to."""
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 4
        values = self.rng.standard_normal(shape) / max(1.0, fan_in**0.5)
        if self.chance(3):
            values = np.round(values * 8) / 8  # few levels, ties and zeros, as after training with quantization
        return self.constant(values.astype(np.float32))

    def positive(self, *shape: int) -> str:
        """Store random weights that one may divide by."""
        return self.constant(self.rng.uniform(0.5, 2, shape).astype(np.float32), reuse=False)


def _kind(values: np.ndarray) -> int:
    return int(helper.np_dtype_to_tensor_dtype(values.dtype))


def _per_channel(b: Builder) -> tuple[int, ...]:
    """Shape of an operand with one value per channel of the newest value."""
    channels = b.newest.sizes[0]
    return (channels,) if len(b.newest.sizes) == 1 else (channels, *(1 for _ in b.newest.sizes[1:]))


def conv(b: Builder) -> None:
    channels, height, width = b.newest.sizes
    kernel = b.pick(1, 3)
    group = b.pick(1, channels)
    out = b.pick(4, 8) if group == 1 else channels * b.pick(1, 2)
    weight = b.floats(out, channels // group, kernel, kernel)
    bias = [b.floats(out)] if b.chance() else []
    pad = kernel // 2
    b.node("Conv", [b.newest.name, weight, *bias], (out, height, width), pads=[pad] * 4, group=group)


def batch_norm(b: Builder) -> None:
    channels = b.newest.sizes[0]
    names = [b.floats(channels), b.floats(channels), b.floats(channels), b.positive(channels)]
    b.node("BatchNormalization", [b.newest.name, *names], b.newest.sizes, epsilon=b.pick(1e-5, 0.1))


def relu(b: Builder) -> None:
    b.node("Relu", [b.newest.name], b.newest.sizes)


def clip(b: Builder) -> None:
    """With an omitted lower bound."""
    b.node("Clip", [b.newest.name, "", b.constant(np.array(1.5, np.float32))], b.newest.sizes)


def add(b: Builder) -> None:
    """With an earlier value, itself, or a weight."""
    alike = [value.name for value in b.values if value.sizes == b.newest.sizes]
    other = b.pick(*alike) if b.chance() else b.floats(*_per_channel(b))
    operands = [b.newest.name, other]
    b.node("Add", operands[::-1] if b.chance() else operands, b.newest.sizes)


def mul(b: Builder) -> None:
    b.node(b.pick("Mul", "Div", "Sub"), [b.newest.name, b.positive(*_per_channel(b))], b.newest.sizes)


def neutral(b: Builder) -> None:
    """Times one or plus nothing."""
    op, value = b.pick(("Mul", 1.0), ("Add", 0.0), ("Div", 1.0))
    b.node(op, [b.newest.name, b.constant(np.array(value, np.float32), reuse=False)], b.newest.sizes)


def identity(b: Builder) -> None:
    b.node(b.pick("Identity", "Dropout"), [b.newest.name], b.newest.sizes)


def concat(b: Builder) -> None:
    if b.newest.sizes[0] > 16:
        return
    other = b.pick(*(value for value in b.values if value.sizes[1:] == b.newest.sizes[1:]))
    sizes = (b.newest.sizes[0] + other.sizes[0], *b.newest.sizes[1:])
    b.node("Concat", [b.newest.name, other.name], sizes, axis=1)


def transpose(b: Builder) -> None:
    """There and back; in between, sometimes, an elementwise node."""
    sizes, last = b.newest.sizes, len(b.newest.sizes)
    order = [0, *range(2, last + 1), 1]
    back = [0, last, *range(1, last)]
    b.node("Transpose", [b.newest.name], (*sizes[1:], sizes[0]), perm=order)
    if b.chance():
        relu(b)
    b.node("Transpose", [b.newest.name], sizes, perm=back)


def folded_weight(b: Builder) -> None:
    """Add what is computed from weights alone."""
    name = b.floats(*_per_channel(b))
    for op in ("Neg", "Exp")[: 1 + int(b.chance())]:
        result = b.fresh("computed")
        b.nodes.append(helper.make_node(op, [name], [result]))
        name = result
    b.node("Add", [b.newest.name, name], b.newest.sizes)


def cast(b: Builder) -> None:
    """Cast to the type it has."""
    b.node("Cast", [b.newest.name], b.newest.sizes, to=TensorProto.FLOAT)


def branch(b: Builder) -> None:
    """An If whose bodies read the newest value, weights around them and weights of their own."""
    value, outer = b.newest, b.floats(*_per_channel(b))
    bodies = []
    for op in ("Add", "Mul"):
        inner = numpy_helper.from_array(b.rng.standard_normal(_per_channel(b)).astype(np.float32), "own")
        first, second = b.fresh("inner"), b.fresh("inner")
        nodes = [helper.make_node(op, [value.name, "own"], [first]), helper.make_node("Add", [first, outer], [second])]
        output = helper.make_tensor_value_info(second, TensorProto.FLOAT, [b.batch, *value.sizes])
        bodies.append(helper.make_graph(nodes, f"{op}_body", [], [output], [inner]))
    if b.chance(3):
        condition = b.constant(np.array(True))
    else:
        condition = "flag"
        if all(info.name != condition for info in b.inputs):
            b.inputs.append(helper.make_tensor_value_info(condition, TensorProto.BOOL, []))
    b.node("If", [condition], value.sizes, then_branch=bodies[0], else_branch=bodies[1])


def pool(b: Builder) -> None:
    channels, height, width = b.newest.sizes
    if height < 4:
        return
    sizes = (channels, height // 2, width // 2)
    b.node(b.pick("MaxPool", "AveragePool"), [b.newest.name], sizes, kernel_shape=[2, 2], strides=[2, 2])


def flatten(b: Builder) -> None:
    """Leave images for rows."""
    size = int(np.prod(b.newest.sizes))
    if b.chance():
        b.node("Flatten", [b.newest.name], (size,))
    else:
        b.node("Reshape", [b.newest.name, b.constant(np.array([0, size], np.int64), reuse=False)], (size,))


def matmul(b: Builder) -> None:
    (size,) = b.newest.sizes
    out = b.pick(8, 32)
    b.node("MatMul", [b.newest.name, b.floats(size, out)], (out,))


def coarse(b: Builder) -> None:
    """Multiply by weights that were rounded once: to half precision, or to sixteen levels."""
    (size,) = b.newest.sizes
    out = b.pick(16, 64)
    values = b.rng.standard_normal((size, out)) / size**0.5
    rounded = values.astype(np.float16) if b.chance() else np.clip(np.round(values * 8), -8, 7) / 8
    b.node("MatMul", [b.newest.name, b.constant(rounded.astype(np.float32), reuse=False)], (out,))


def gemm(b: Builder) -> None:
    (size,) = b.newest.sizes
    out, transposed = b.pick(8, 32), int(b.chance())
    weight = b.floats(out, size) if transposed else b.floats(size, out)
    bias = [b.floats(out)] if b.chance() else []
    b.node("Gemm", [b.newest.name, weight, *bias], (out,), transB=transposed, alpha=b.pick(1.0, 0.5))


def softmax(b: Builder) -> None:
    b.node("Softmax", [b.newest.name], b.newest.sizes, axis=-1)


def reshape(b: Builder) -> None:
    """There and back."""
    (size,) = b.newest.sizes
    b.node("Reshape", [b.newest.name, b.constant(np.array([0, 2, size // 2], np.int64), reuse=False)], (2, size // 2))
    b.node("Reshape", [b.newest.name, b.constant(np.array([0, size], np.int64), reuse=False)], (size,))


COMMON = (relu, clip, add, mul, neutral, identity, concat, transpose, folded_weight, cast, branch)
IMAGE = (conv, conv, batch_norm, batch_norm, pool, *COMMON)
ROWS = (matmul, matmul, gemm, gemm, coarse, softmax, reshape, *COMMON)


@st.composite
def models(draw: st.DrawFn, most_nodes: int = 8) -> onnx.ModelProto:
    """Return valid float models, of images or rows, that ONNX Runtime runs."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    batch = draw(st.just("N") | st.just(2))
    b = Builder(draw, rng, batch, draw(st.sampled_from([13, 17, 21])))
    sizes = draw(st.sampled_from([(4, 6, 6), (3, 4, 4), (8,), (32,)]))
    b.values.append(Value("x", sizes))
    b.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *sizes]))
    for _ in range(draw(st.integers(1, most_nodes))):
        steps = IMAGE if len(b.newest.sizes) == 3 else ROWS
        step = draw(st.sampled_from(steps))
        if len(b.newest.sizes) == 3 and b.chance(6):
            step = flatten
        step(b)
        if b.chance(8):
            b.outputs.append(b.newest)
    if b.newest.name == "x":
        relu(b)
    return _finished(b)


def _finished(b: Builder) -> onnx.ModelProto:
    ends = {value.name: value for value in (*b.outputs, b.newest) if value.name != "x"}
    outputs = [
        helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [b.batch, *value.sizes]) for value in ends.values()
    ]
    listed = {info.name for info in b.inputs}
    shown = [tensor for tensor in b.weights if tensor.name not in listed and b.chance(10)]
    outputs += [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in shown]
    graph = helper.make_graph(b.nodes, "generated", b.inputs, outputs, b.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", b.opset)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model
