"""Models whose channels can be followed, in ONNX's text syntax."""

from __future__ import annotations

import numpy as np

from graphopt.model import Model
from graphopt.passes.prune.channels.dependencies import Dependencies, find_dependencies
from graphopt.shapes import shapes_for
from tests.helpers import parse, random_feeds


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

STREAM = Text(
    "float[N, 3, 6, 6] x",
    "float[N, 2, 6, 6] y",
    "s = Conv(x, a, ab) h = Conv(s, e, eb) r = Relu(h) p = Conv<pads = [1,1,1,1]>(r, w, wb) z = Add(p, s) "
    "k = Conv<pads = [1,1,1,1]>(z, f) q = Relu(k) o = Conv(q, g) u = Add(o, z) y = Conv(u, b)",
    a=(4, 3, 1, 1),
    ab=(4,),
    e=(6, 4, 1, 1),
    eb=(6,),
    w=(4, 6, 3, 3),
    wb=(4,),
    f=(5, 4, 3, 3),
    g=(4, 5, 1, 1),
    b=(2, 4, 1, 1),
)
CASES["residual branches"] = (STREAM, {"s": 4, "h": 6, "k": 5})

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

WIDE = Text(
    "float[N, 3, 8, 8] x",
    "float[N, 2, 8, 8] y",
    "s = Conv(x, a, ab) h = Conv(s, e, eb) r = Relu(h) p = Conv<pads = [1,1,1,1]>(r, w, wb) z = Add(p, s) "
    "k = Conv(z, f, fb) q = Relu(k) o = Conv(q, g, gb) u = Add(o, z) y = Conv(u, b, bb)",
    a=(16, 3, 3, 3),
    ab=(16,),
    e=(24, 16, 1, 1),
    eb=(24,),
    w=(16, 24, 3, 3),
    wb=(16,),
    f=(24, 16, 1, 1),
    fb=(24,),
    g=(16, 24, 1, 1),
    gb=(16,),
    b=(2, 16, 1, 1),
    bb=(2,),
)
WIDE.text = WIDE.text.replace("s = Conv(x", "s = Conv<pads = [1,1,1,1]>(x")


def followed(model: Model) -> tuple[Dependencies, dict[str, tuple[int, ...]]]:
    shapes = shapes_for(model, random_feeds(model.to_proto(), 0))
    return find_dependencies(model, shapes), shapes
