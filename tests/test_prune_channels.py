"""Structured pruning: what goes together, what may go at all, and what is left of the model."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings

from graphopt.cost import figures
from graphopt.ir.clean import clean
from graphopt.model import Model
from graphopt.passes.prune.channels.costs import mac_costs, weight_costs
from graphopt.passes.prune.channels.dependencies import Dependencies, find_dependencies
from graphopt.passes.prune.channels.removal import remove_classes
from graphopt.shapes import shapes_for
from tests.graphs import models
from tests.helpers import assert_same_outputs, outputs_of, parse, random_feeds


def floats(rng: np.random.Generator, *shape: int) -> str:
    """Return values for a text model, small so that nothing saturates."""
    values = rng.normal(size=int(np.prod(shape))) * 0.5
    return "{" + ",".join(f"{value:.4f}" for value in values) + "}"


class Text:
    """A model in ONNX's text syntax, with random weights by their shapes."""

    def __init__(self, inputs: str, outputs: str, body: str, opset: int = 17, **weights: tuple[int, ...]) -> None:
        rng = np.random.default_rng(5)
        declared = ", ".join(
            f"float[{','.join(map(str, shape))}] {name} = {floats(rng, *shape)}" for name, shape in weights.items()
        )
        self.text = (
            f'<ir_version: 8, opset_import: ["" : {opset}]>\ng ({inputs}) => ({outputs})\n<{declared}>\n{{ {body} }}'
        )

    def model(self) -> Model:
        return Model.from_proto(parse(self.text))


CASES: dict[str, tuple[Text, dict[str, int]]] = {
    "chain": (
        Text(
            "float[N, 3, 6, 6] x",
            "float[N, 2, 6, 6] y",
            "h = Conv(x, a, ab) r = Relu(h) y = Conv(r, b)",
            a=(4, 3, 1, 1),
            ab=(4,),
            b=(2, 4, 1, 1),
        ),
        {"h": 4},
    ),
    "depthwise": (
        Text(
            "float[N, 3, 6, 6] x",
            "float[N, 2, 6, 6] y",
            "h = Conv(x, a) d = Conv<group = 4, pads = [1,1,1,1]>(h, w, wb) c = HardSigmoid(d) y = Conv(c, b)",
            a=(4, 3, 1, 1),
            w=(4, 1, 3, 3),
            wb=(4,),
            b=(2, 4, 1, 1),
        ),
        {"h": 4},
    ),
    "groups of two": (
        Text(
            "float[N, 3, 6, 6] x",
            "float[N, 2, 6, 6] y",
            "h = Conv(x, a) g = Conv<group = 2>(h, w) y = Conv(g, b)",
            a=(8, 3, 1, 1),
            w=(6, 4, 1, 1),
            b=(2, 6, 1, 1),
        ),
        {"h": 4, "g": 3},
    ),
    "residual with squeeze and excitation": (
        Text(
            "float[N, 3, 6, 6] x",
            "float[N, 2, 6, 6] y",
            "h = Conv(x, a) p = GlobalAveragePool(h) q = Conv(p, s) r = Relu(q) t = Conv(r, e) u = Sigmoid(t) "
            "m = Mul(h, u) k = Conv(m, c) z = Add(k, h) y = Conv(z, b)",
            a=(4, 3, 1, 1),
            s=(3, 4, 1, 1),
            e=(4, 3, 1, 1),
            c=(4, 4, 1, 1),
            b=(2, 4, 1, 1),
        ),
        {"h": 4, "q": 3},
    ),
    "concat and split": (
        Text(
            "float[N, 3, 6, 6] x",
            "float[N, 2, 6, 6] y, float[N, 2, 6, 6] z",
            "h = Conv(x, a) k = Conv(x, c) j = Concat<axis = 1>(h, k) u, v = Split<axis = 1>(j) "
            "y = Conv(u, b) z = Conv(v, d)",
            a=(6, 3, 1, 1),
            c=(2, 3, 1, 1),
            b=(2, 4, 1, 1),
            d=(2, 4, 1, 1),
        ),
        {"h": 6, "k": 2},
    ),
    "flatten into a Gemm": (
        Text(
            "float[N, 3, 2, 2] x",
            "float[N, 2] y",
            "h = Conv(x, a) f = Flatten(h) y = Gemm<transB = 1>(f, b, c)",
            a=(4, 3, 1, 1),
            b=(2, 16),
            c=(2,),
        ),
        {"h": 4},
    ),
    "transposed convolution": (
        Text(
            "float[N, 3, 4, 4] x",
            "float[N, 2, 8, 8] y",
            "h = Conv(x, a) t = ConvTranspose<strides = [2,2]>(h, w, wb) y = Conv(t, b)",
            a=(4, 3, 1, 1),
            w=(4, 5, 2, 2),
            wb=(5,),
            b=(2, 5, 1, 1),
        ),
        {"h": 4, "t": 5},
    ),
    "normalized per channel": (
        Text(
            "float[N, 3, 6, 6] x",
            "float[N, 2, 6, 6] y",
            "h = Conv(x, a) n = InstanceNormalization(h, s, t) p = PRelu(n, q) y = Conv(p, b)",
            a=(4, 3, 1, 1),
            s=(4,),
            t=(4,),
            q=(4, 1, 1),
            b=(2, 4, 1, 1),
        ),
        {"h": 4},
    ),
    "channels of a feed-forward layer": (
        Text(
            "float[N, S, 4] x",
            "float[N, S, 4] y",
            "h = MatMul(x, a) c = Add(h, ab) e = Erf(c) g = Mul(e, c) o = MatMul(g, b) y = Add(o, x)",
            a=(4, 6),
            ab=(6,),
            b=(6, 4),
        ),
        {"h": 6},
    ),
}

HEADS = Text(
    "float[2, 3, 4] x, int64[4] heads, int64[3] whole",
    "float[2, 3, 4] y",
    "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) "
    "qs = Reshape(q, apart) ks = Reshape(k, apart) vs = Reshape(v, apart) "
    "qt = Transpose<perm = [0,2,1,3]>(qs) kt = Transpose<perm = [0,2,3,1]>(ks) vt = Transpose<perm = [0,2,1,3]>(vs) "
    "s = MatMul(qt, kt) p = Softmax<axis = -1>(s) o = MatMul(p, vt) ot = Transpose<perm = [0,2,1,3]>(o) "
    "om = Reshape(ot, merged) z = MatMul(om, wo) y = Add(z, x)",
    wq=(4, 6),
    wk=(4, 6),
    wv=(4, 6),
    wo=(6, 4),
)
HEADS.text = HEADS.text.replace(", int64[4] heads, int64[3] whole", "").replace(
    "<float", "<int64[4] apart = {0,0,3,2}, int64[3] merged = {0,0,6}, float", 1
)
CASES["attention"] = (HEADS, {"q": 3})


def followed(model: Model) -> tuple[Dependencies, dict[str, tuple[int, ...]]]:
    shapes = shapes_for(model, random_feeds(model.to_proto(), 0))
    return find_dependencies(model, shapes), shapes


def silenced(model: Model, found: Dependencies, gone: np.ndarray) -> None:
    """Zero the weights that sum over what goes, in place: nothing that reads it notices it any more."""
    for use in found.uses:
        if use.role == "takes":
            constant = use.node.inputs[use.index]
            values = np.moveaxis(np.array(constant.values), use.axis, 0)
            values[gone[use.atoms]] = 0
            constant.values = np.moveaxis(values, 0, use.axis)


def chosen(found: Dependencies, rng: np.random.Generator) -> np.ndarray:
    """Return some classes of every group, never all of one."""
    gone = np.zeros(found.size, bool)
    for group in found.groups:
        count = int(rng.integers(1, len(group.classes)))
        gone[rng.choice(group.classes, count, replace=False)] = True
    return gone


def check_law(model: Model, seed: int = 3) -> Model:
    """Silence and remove channels of every group, and compare outputs and costs; return the smaller model."""
    found, shapes = followed(model)
    gone = chosen(found, np.random.default_rng(seed))
    silenced(model, found, gone)
    smaller = model.copy()
    again = find_dependencies(smaller, shapes)
    assert remove_classes(smaller, again, gone) > 0
    clean(smaller.graph)
    feeds = random_feeds(model.to_proto(), 1)
    assert_same_outputs(outputs_of(smaller, feeds), outputs_of(model, feeds), rtol=1e-4, atol=1e-5)
    left = np.array([1 - gone[group.classes].mean() for group in found.groups])
    after = shapes_for(smaller, feeds)
    assert figures(smaller, after).macs == pytest.approx(mac_costs(model, found, shapes).total(left))
    every = np.ones(len(find_dependencies(smaller, after).groups))
    weights = weight_costs(smaller, find_dependencies(smaller, after), in_bytes=False).total(every)
    assert weight_costs(model, found, in_bytes=False).total(left) == pytest.approx(weights, abs=16)  # sizes of splits
    return smaller


@pytest.mark.parametrize("case", CASES)
def test_channels_that_nothing_reads_can_go(case: str) -> None:
    text, groups = CASES[case]
    model = text.model()
    found, _ = followed(model)
    assert sum((Counter({group.name: len(group.classes)}) for group in found.groups), Counter()) == groups
    check_law(model)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(models())
def test_channels_of_generated_models(proto: onnx.ModelProto) -> None:
    model = Model.from_proto(proto)
    infer = shapes_for(model, random_feeds(proto, 0))
    if find_dependencies(model, infer).groups:
        check_law(model)
