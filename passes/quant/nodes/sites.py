"""Nodes that can be quantized with ranges found at run time, in the graph and in the bodies of If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.base import Skip
from graphopt.ir.graph import walk_graphs
from graphopt.model import Model
from graphopt.passes.quant.nodes.units import QUANTIZERS, name_of
from graphopt.targets import Target

_FLOAT32 = np.dtype(np.float32)
MATRICES = frozenset({"MatMul", "Gemm"})  # operators whose weights can be stored in blocks
_TABLE = 2**16  # bytes; smaller tables are not worth a node


@dataclass(frozen=True, eq=False)
class DynamicSite:
    """A node that can be quantized dynamically.

    Attributes:
        position: Place of the node among those of the graph and its bodies; copies of a model keep it.
        node: MatMul, Gemm, LSTM or Gather.
        scope: The graph or body it is in.
    """

    position: int
    node: gs.Node
    scope: gs.Graph


def find_sites(graph: gs.Graph, target: Target, opset: int) -> tuple[list[DynamicSite], list[Skip]]:
    """Return the nodes that can be quantized dynamically, bodies included, and those that look like it but cannot."""
    sites: list[DynamicSite] = []
    skipped: list[Skip] = []
    position = 0
    for scope in walk_graphs(graph):
        for node in scope.nodes:
            reason = _reason(node, target, opset)
            if reason == "":
                sites.append(DynamicSite(position, node, scope))
            elif reason is not None:
                skipped.append(Skip(name_of(node), reason))
            position += 1
    return sites, skipped


def sites_in(model: Model, sites: Iterable[DynamicSite]) -> list[DynamicSite]:
    """Return the same sites of a copy of their model."""
    places = [(node, scope) for scope in walk_graphs(model.graph) for node in scope.nodes]
    return [DynamicSite(site.position, *places[site.position]) for site in sites]


def _reason(node: gs.Node, target: Target, opset: int) -> str | None:
    """Return nothing for a site, why a weighted node is none, or None where nobody would expect one."""
    if node.domain not in (None, "", "ai.onnx"):
        return None
    if node.op == "Gather":
        return _table_reason(node, target, opset)
    if node.op not in ("MatMul", "Gemm", "LSTM", "GRU", "RNN"):
        return None
    weight, _ = stored_weight(node)
    if weight is None:
        return None if node.inputs[1].inputs else "its weight is an input, which a caller may set"
    if target.kernel(node.op, "dynamic", opset) is None:
        return f"{target.name} has no integer kernel for {node.op}"
    if np.dtype(weight.dtype) != _FLOAT32:
        return f"its weight is {np.dtype(weight.dtype).name}, not float32"
    if isinstance(node.inputs[0], gs.Constant) or 0 in weight.shape:
        return None
    if not np.isfinite(weight.values).all():
        return "its weight holds NaN or infinities"
    if any(producer.op in QUANTIZERS for producer in node.inputs[0].inputs):
        return "it is quantized already"
    return _lstm_reason(node) if node.op == "LSTM" else _matrix_reason(node, weight)


def _matrix_reason(node: gs.Node, weight: gs.Constant) -> str:
    if len(weight.shape) != 2:
        return "its weight is no matrix"
    scaled = float(node.attrs.get("alpha", 1.0)) != 1.0 or float(node.attrs.get("beta", 1.0)) != 1.0
    return "it transposes or scales its inputs" if scaled or node.attrs.get("transA", 0) else ""


def stored_weight(node: gs.Node) -> tuple[gs.Constant | None, bool]:
    """Return the constant weight of a node and whether it is used transposed: by transB, or by a Transpose before."""
    weight, transposed = node.inputs[1], bool(node.op == "Gemm" and node.attrs.get("transB", 0))
    turned = weight.inputs[0] if weight.inputs and weight.inputs[0].op == "Transpose" else None
    if turned is not None and node.op in ("MatMul", "Gemm") and len(turned.inputs[0].shape or ()) == 2:
        swaps = list(turned.attrs.get("perm", [1, 0])) == [1, 0]
        weight, transposed = turned.inputs[0], transposed != swaps
    return (weight, transposed) if isinstance(weight, gs.Constant) else (None, False)


def matrix_of(node: gs.Node) -> np.ndarray:
    """Return the weight of a MatMul or Gemm as [inputs, outputs]."""
    weight, transposed = stored_weight(node)
    assert weight is not None
    values: np.ndarray = weight.values.T if transposed else weight.values
    return values


def site_size(site: DynamicSite) -> int:
    """Return the number of weights that a site stores in integers."""
    if site.node.op == "LSTM":
        return sum(int(np.prod(site.node.inputs[index].shape)) for index in (1, 2))
    return int(np.prod(site.node.inputs[0].shape)) if site.node.op == "Gather" else weight_size(site)


def weight_size(site: DynamicSite) -> int:
    """Return the number of weights of a MatMul or Gemm."""
    weight, _ = stored_weight(site.node)
    return 0 if weight is None else int(np.prod(weight.shape))


def _table_reason(node: gs.Node, target: Target, opset: int) -> str | None:
    table, indices = node.inputs
    if not isinstance(table, gs.Constant) or isinstance(indices, gs.Constant) or np.dtype(table.dtype) != _FLOAT32:
        return None
    small = len(table.shape) != 2 or int(np.prod(table.shape)) * 4 < _TABLE or int(node.attrs.get("axis", 0)) != 0
    if small or target.kernel("Gather", "weight-only", opset) is None:
        return None
    return "" if np.isfinite(table.values).all() else "its table holds NaN or infinities"


def _lstm_reason(node: gs.Node) -> str:
    if int(node.attrs.get("layout", 0)) != 0:
        return "its layout is batch first"
    if not isinstance(node.inputs[2], gs.Constant) or 0 in node.inputs[2].shape:
        return "its recurrent weight is not stored in the file"
    return ""
