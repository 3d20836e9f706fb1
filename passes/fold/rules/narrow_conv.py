"""A convolution over an axis that is only there for it."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Constant, Node
from graphopt.passes.fold.rules.match import fuse, made_by
from graphopt.passes.fold.rules.rule import Outcome, Rule, done
from graphopt.passes.fold.workbench import Workbench

_PER_AXIS = ("kernel_shape", "strides", "dilations")


class NarrowConv(Rule):
    """``Squeeze(Conv(Unsqueeze(x, a), W), a) -> Conv(x, W)`` without the spatial axis a, along which W has size 1.

    Nobody else may read what is in between, W must be a constant that nobody else uses, and the axis must not be
    padded.
    """

    name = "narrow-conv"
    ops = frozenset({"Conv"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Let the convolution read and make tensors without the axis."""
        before = made_by(node.inputs[0], "Unsqueeze", bench)
        readers = node.outputs[0].outputs
        after = readers[0] if readers and readers[0].op == "Squeeze" else None
        if before is None or after is None or not bench.only_reader(after, node.outputs[0]):
            return False
        axes, weight = axes_of(before, bench), node.inputs[1]
        shape = bench.types[weight].shape
        if axes is None or shape is None or len(shape) < 4 or axes_of(after, bench) != axes or len(axes) != 1:
            return False
        axis = axes[0]
        if axis < 2 or shape[axis] != 1 or _is_padded(node, axis - 2, len(shape) - 2):
            return False
        if not bench.only_reader(node, node.inputs[0]):
            return "what it convolves is used elsewhere too"
        if not isinstance(weight, Constant) or bench.uses(weight) != 1:
            return "its weight is no constant, or is used elsewhere too"
        values = weight.values
        weight.values = values.reshape(*values.shape[:axis], *values.shape[axis + 1 :])
        _drop_axis(node, axis - 2, len(shape) - 2)
        bench.set_input(node, 0, before.inputs[0])
        return done(bench.bypass(before, before.inputs[0]) or bench.bypass(after, node.outputs[0]))


def axes_of(node: gs.Node, bench: Workbench) -> list[int] | None:
    """Return the axes that a Squeeze or an Unsqueeze states, counted from the front; None where they are not known."""
    given = node.attrs.get("axes")
    axes = given if isinstance(given, list) else bench.ints(node.inputs[1]) if len(node.inputs) > 1 else None
    shape = bench.types[node.outputs[0] if node.op == "Unsqueeze" else node.inputs[0]].shape
    return None if axes is None or shape is None else [axis % len(shape) for axis in axes]


def _is_padded(node: gs.Node, place: int, spatial: int) -> bool:
    pads = node.attrs.get("pads")
    return isinstance(pads, list) and bool(pads[place] or pads[spatial + place])


def _drop_axis(node: gs.Node, place: int, spatial: int) -> None:
    for name in _PER_AXIS:
        if isinstance(node.attrs.get(name), list):
            node.attrs[name] = [size for index, size in enumerate(node.attrs[name]) if index != place]
    if isinstance(node.attrs.get("pads"), list):
        node.attrs["pads"] = [size for index, size in enumerate(node.attrs["pads"]) if index % spatial != place]


class SinkUnsqueeze(Rule):
    """``Transpose(Unsqueeze(x, a), p) -> Unsqueeze(Transpose(x, p without a), place of a in p)`` before a Conv.

    Nobody else may read what is in between. `NarrowConv` may then take the new axis away.
    """

    name = "sink-unsqueeze"
    ops = frozenset({"Transpose"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Exchange the two nodes."""
        before = made_by(node.inputs[0], "Unsqueeze", bench)
        perm, readers = node.attrs.get("perm"), node.outputs[0].outputs
        if before is None or not isinstance(perm, list) or len(readers) != 1 or readers[0].op != "Conv":
            return False
        axes = axes_of(before, bench)
        if axes is None or len(axes) != 1 or not bench.only_reader(node, node.inputs[0]):
            return False
        axis, source, output = axes[0], before.inputs[0], node.outputs[0]
        rest = [place - (place > axis) for place in perm if place != axis]
        if rest == sorted(rest) or bench.is_result(output):
            return False
        known = bench.types[source]
        shape = None if known.shape is None else tuple(known.shape[place] for place in rest)
        turned = bench.new_variable(node.name or output.name, type(known)(known.dtype, shape))
        bench.add(Node("Transpose", node.name, {"perm": rest}, [source], [turned]), node)
        unsqueeze = Node("Unsqueeze", before.name, {}, [turned], [])
        place = perm.index(axis)
        if len(before.inputs) > 1:
            unsqueeze.inputs.append(bench.new_constant("axes", np.array([place], np.int64), node))
        else:
            unsqueeze.attrs["axes"] = [place]
        fuse([node, before], unsqueeze, bench)
        return True
