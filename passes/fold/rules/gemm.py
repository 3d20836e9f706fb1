"""A matrix product and its bias become one operator."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.ir.graph import Node
from graphopt.passes.fold.rules.match import fuse
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.workbench import Workbench, is_standard


class ToGemm(Rule):
    """``MatMul(x, W) + c -> Gemm(x, W, c)`` for matrices of floats and c a constant with one number a column.

    Nobody else may read the product. ONNX Runtime makes the same of it by itself.
    """

    name = "gemm"
    ops = frozenset({"Add"})

    def apply(self, node: gs.Node, bench: Workbench) -> Outcome:
        """Replace the addition and the product."""
        if len(node.inputs) != 2 or bench.opset(node) < 11:
            return False
        for index in (0, 1):
            product, bias = bench.producer(node.inputs[index]), bench.constant(node.inputs[1 - index])
            if product is None or bias is None or product.op != "MatMul" or not is_standard(product):
                continue
            if not bench.only_reader(node, node.inputs[index]):
                return "the product is used elsewhere too"
            return _merge(node, product, bias, node.inputs[1 - index], bench)
        return False


def _merge(node: gs.Node, product: gs.Node, bias: gs.Constant, source: gs.Tensor, bench: Workbench) -> Outcome:
    shapes = [bench.types[tensor].shape for tensor in product.inputs]
    dtype = bench.types[product.inputs[1]].dtype
    if dtype is None or dtype.kind != "f" or any(shape is None or len(shape) != 2 for shape in shapes):
        return False
    columns = (shapes[1] or (None, None))[1]
    if not isinstance(columns, int) or tuple(bias.shape) not in ((columns,), (1, columns)):
        return False
    fuse([node, product], Node("Gemm", product.name, {}, [*product.inputs, source], []), bench)
    return True
