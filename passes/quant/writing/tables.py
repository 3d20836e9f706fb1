"""Tables whose rows go into integer kernels: stored in the integers that these read.

    Gather(table) -> QuantizeLinear   becomes   Gather(integers of the table), the same integers

That rounds nothing that was not rounded before, and saves the way from integers of the table's own to floats and back.
Of other tables, whose rows become floats, a Transpose behind moves the integers:

    Gather(table) -> DequantizeLinear -> Transpose   becomes   Gather(table) -> Transpose -> DequantizeLinear

ONNX Runtime does the same, but puts a QuantizeLinear in between, which stays: it drops only those with a single scale.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.clean import clean
from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, Node, Variable, tensor_names, walk_graphs
from graphopt.model import Model
from graphopt.passes.quant.nodes.placement import Placement
from graphopt.passes.quant.nodes.sites import DynamicSite
from graphopt.passes.quant.nodes.units import Unit, name_of, outputs_of_scopes
from graphopt.passes.quant.numbers.ranges import Affine


def into_integers(sites: Iterable[DynamicSite], placement: Placement) -> list[DynamicSite]:
    """Return the Gathers of sites that hand their rows to integer units only, and whose table no float node reads.

    A matrix product may read it as well: it has integers of its own.
    """
    sites = list(sites)
    if not sites:
        return []
    readers = {id(unit.node) for unit in placement.units}
    products = {id(unit.node) for unit in placement.units if unit.weight is not None}
    products |= {id(site.node) for site in sites if site.node.op != "Gather"}
    handed_out = outputs_of_scopes(sites[0].scope)
    found = []
    for site in sites:
        table, rows = site.node.inputs[0], site.node.outputs[0]
        if site.node.op != "Gather" or id(rows) in handed_out:
            continue
        alone = all(reader is site.node or _goes_into(reader, products) for reader in table.outputs)
        if alone and rows.name in placement.stored and all(id(reader) in readers for reader in rows.outputs):
            found.append(site)
    return found


def _goes_into(reader: gs.Node, products: set[int]) -> bool:
    """Whether a reader of a weight is one of the products, or a Transpose that only they read."""
    if reader.op == "Transpose":
        return all(id(behind) in products for behind in reader.outputs[0].outputs)
    return id(reader) in products


def untying(units: Iterable[Unit], sites: Iterable[DynamicSite]) -> dict[int, str]:
    """Return, by position, why units must stay float: a Gather that stays float shares their weight, a tied embedding.

    The floats would stay in the file, with integers beside them.
    """
    integer = {id(site.node) for site in sites}
    found = {}
    for unit in units:
        readers = [] if unit.weight is None else unit.weight.outputs
        tied = [reader for reader in readers if reader.op == "Gather" and id(reader) not in integer]
        if tied:
            found[unit.position] = f"Gather '{name_of(tied[0])}' shares its weight and stays float: the file would grow"
    return found


def merge_tables(model: Model, sites: Iterable[DynamicSite]) -> int:
    """Store the tables of sites, whose rows only a QuantizeLinear reads, in its integers; return how many there are.

    Args:
        model: Edited in place and cleaned up.
        sites: Gathers of this very model.
    """
    taken, count = tensor_names(model.graph), 0
    for site in sites:
        (quantize,) = site.node.outputs[0].outputs
        assert quantize.op == "QuantizeLinear"
        table, codes = site.node.inputs[0], quantize.outputs[0]
        site.node.inputs[0] = Constant(unique_name(f"{table.name}_quantized", taken), _codes(table, quantize))
        quantize.inputs.clear()
        quantize.outputs.clear()
        site.node.outputs[0] = codes
        count += 1
    clean(model.graph)
    return count


def _codes(table: gs.Constant, quantize: gs.Node) -> np.ndarray:
    scale, zero = (tensor.values for tensor in quantize.inputs[1:3])
    parameters = Affine(np.float32(scale), int(zero), signed=zero.dtype == np.int8)
    return parameters.codes(table.values)


def transpose_integers(model: Model) -> None:
    """Let a Transpose of rows of a table move them before they become floats.

    Args:
        model: Edited in place and cleaned up.
    """
    taken, changed = tensor_names(model.graph), False
    for scope in walk_graphs(model.graph):
        here = {id(node) for node in scope.nodes}
        waiting = [node for node in scope.nodes if _restores_rows(node)]
        for node in waiting:  # grows: of what moved, the next Transpose may move the integers as well
            for reader in [item for item in node.outputs[0].outputs if item.op == "Transpose" and id(item) in here]:
                waiting.append(_transposed(scope, node, reader, taken))
                changed = True
    if changed:
        clean(model.graph)


def _restores_rows(node: gs.Node) -> bool:
    """Whether a node turns rows of a table into floats, with a scale for each column."""
    if node.op != "DequantizeLinear" or "axis" not in node.attrs or isinstance(node.inputs[0], gs.Constant):
        return False
    return [maker.op for maker in node.inputs[0].inputs] == ["Gather"]


def _transposed(scope: gs.Graph, dequantize: gs.Node, transpose: gs.Node, taken: set[str]) -> gs.Node:
    """Turn integers into floats behind a Transpose instead of before it; return the node that does."""
    codes, scale, zero = dequantize.inputs
    moved, output = (
        Variable(unique_name(f"{transpose.outputs[0].name}_codes", taken), codes.dtype),
        transpose.outputs[0],
    )
    transpose.inputs[0], transpose.outputs[0] = codes, moved
    order, axis = transpose.attrs.get("perm"), int(dequantize.attrs["axis"])
    axis = -1 - axis if order is None else list(order).index(axis % len(order))  # without `perm` it reverses the axes
    fresh = Node("DequantizeLinear", f"{output.name}/DequantizeLinear", {"axis": axis}, [moved, scale, zero], [output])
    scope.nodes.append(fresh)
    return fresh
