"""What the nodes of a plan compute with after rounding, for a switchboard."""

from __future__ import annotations

import numpy as np

from graphopt.model import Model
from graphopt.passes.quant.nodes.placement import Placement
from graphopt.passes.quant.nodes.sites import DynamicSite, matrix_of
from graphopt.passes.quant.nodes.units import Unit
from graphopt.passes.quant.numbers.store import WeightStore
from graphopt.passes.quant.search.switchboard import Rounding, Twin
from graphopt.passes.quant.writing.blocks import decode_blocks, encode_blocks
from graphopt.passes.quant.writing.dynamic import quantize_recurrent


def unit_twin(model: Model, unit: Unit, store: WeightStore) -> Twin:
    """Return what a unit with fixed ranges computes with."""
    inputs = {1: store.weight(unit).restored()}
    shift = store.bias_shift.get(unit.position)
    if shift is not None:
        bias = unit.bias.values if unit.bias is not None else np.zeros(len(shift), np.float32)
        inputs[2] = np.asarray(bias + shift.reshape(bias.shape), np.float32)
    return Twin(unit.node, model.graph, inputs)


def site_twin(site: DynamicSite, store: WeightStore) -> Twin:
    """Return what a site with ranges found at run time computes with; an LSTM's inputs are left as they are."""
    node = site.node
    if node.op == "Gather":
        return Twin(node, site.scope, {0: store.table(site.position, node.inputs[0].values).restored()})
    if node.op == "LSTM":
        inputs = {}
        for index in (1, 2):
            codes, scale = quantize_recurrent(node.inputs[index].values, pairs=store.pairs)
            inputs[index] = np.asarray(codes * scale[:, :, None], np.float32)
        return Twin(node, site.scope, inputs)
    restored = store.matrix(site.position, matrix_of(node)).restored()
    return Twin(node, site.scope, {1: restored}, rounded_input=True, attributes=_untransposed(site))


def block_twin(site: DynamicSite) -> Twin:
    """Return what a site with weights in blocks computes with; the rounding of its inputs in blocks is left out."""
    matrix = matrix_of(site.node)
    restored = decode_blocks(*encode_blocks(matrix.T))[:, : len(matrix)].T
    return Twin(site.node, site.scope, {1: np.ascontiguousarray(restored)}, attributes=_untransposed(site))


def tensor_roundings(model: Model, placement: Placement) -> list[Rounding]:
    """Return the roundings of the tensors that a placement stores."""
    made = {tensor.name: position for position, node in enumerate(model.graph.nodes) for tensor in node.outputs}
    return sorted(Rounding(made.get(name, -1), name) for name in placement.stored)


def _untransposed(site: DynamicSite) -> dict[str, int] | None:
    return {"transB": 0} if site.node.op == "Gemm" else None
