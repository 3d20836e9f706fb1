"""A softmax that is written out becomes the operator."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Node
from graphopt.passes.fold.rules.match import fuse, made_by, reads_only_inside
from graphopt.passes.fold.rules.reduction import reduced_axes
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.workbench import Workbench


class Softmax(Rule):
    """``e / sum(e)``, e = ``exp(x - max(x))`` ``-> Softmax(x)``, over the last axis.

    In float32, where nobody reads what is computed in between.
    """

    name = "softmax"
    ops = frozenset({"Div"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Replace the five nodes."""
        exp, total = made_by(node.inputs[0], "Exp", bench), made_by(node.inputs[1], "ReduceSum", bench)
        centered = None if exp is None else made_by(exp.inputs[0], "Sub", bench)
        top = None if centered is None else made_by(centered.inputs[1], "ReduceMax", bench)
        if exp is None or total is None or centered is None or top is None:
            return False
        source = centered.inputs[0]
        if total.inputs[0] is not exp.outputs[0] or top.inputs[0] is not source:
            return False
        shape = bench.types[source].shape
        last = None if shape is None else [len(shape) - 1]
        if last is None or any(reduced_axes(step, bench) != last for step in (total, top)):
            return False
        if not all(step.attrs.get("keepdims", 1) for step in (total, top)) or bench.types[source].dtype != np.float32:
            return False
        nodes = [node, total, exp, centered, top]
        if not reads_only_inside(nodes, bench):
            return "what is computed in between is used elsewhere too"
        fuse(nodes, Node("Softmax", node.name, {"axis": last[0]}, [source], []), bench)
        return True
