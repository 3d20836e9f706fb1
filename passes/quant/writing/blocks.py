"""Weights of matrices in 8-bit blocks: MatMulNBits of ONNX Runtime.

Each block of 32 weights has a scale of its own, and the kernel also rounds the activations in blocks, at run time. So
an outlier costs the precision of its block only, where other forms let it stretch the range of a whole tensor.
Language models, whose activations have a few very large values, need that. It is as quick as dynamic quantization for
a single row (a decoder's next token), and slower for many. A table that a product reads transposed, a tied embedding,
is stored once, in the product's blocks, of which GatherBlockQuantized reads rows.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.clean import clean, disconnect
from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import Constant, Node, Variable, tensor_names
from graphopt.model import Model
from graphopt.passes.quant.nodes.sites import DynamicSite, stored_weight

BLOCK = 32  # weights to a scale
_MIDDLE = 128  # the code of zero
_INT8_ACTIVATIONS = 4  # accuracy level


def encode_blocks(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantize rows symmetrically in blocks of `BLOCK` inputs.

    Args:
        rows: [outputs, inputs]; the last block of a row is filled up with zeros.

    Returns:
        Codes uint8 [outputs, blocks, BLOCK] with 128 for zero, and scales float32 [outputs, blocks].
    """
    outputs, inputs = rows.shape
    count = -(-inputs // BLOCK)
    padded = np.zeros((outputs, count * BLOCK), np.float32)
    padded[:, :inputs] = rows
    blocks = padded.reshape(outputs, count, BLOCK)
    scales = np.abs(blocks).max(axis=2) / np.float32(_MIDDLE - 1)
    scales[scales < np.finfo(np.float32).tiny] = 1.0
    codes = np.rint(blocks / scales[:, :, None]) + _MIDDLE
    return codes.astype(np.uint8), scales


def decode_blocks(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return the rows that codes and scales stand for, float32 [outputs, blocks * BLOCK]."""
    values = (codes.astype(np.float32) - _MIDDLE) * scales[:, :, None]
    return np.asarray(values.reshape(len(codes), -1), np.float32)


def tied_tables(sites: Collection[DynamicSite], products: Collection[DynamicSite]) -> list[DynamicSite]:
    """Return the Gathers of sites whose rows are whole blocks, and the outputs of one of the products."""
    weights = [stored_weight(site.node) for site in products]
    turned = {id(weight) for weight, transposed in weights if weight is not None and transposed}
    tables = [site for site in sites if site.node.op == "Gather" and id(site.node.inputs[0]) in turned]
    return [site for site in tables if site.node.inputs[0].shape[1] % BLOCK == 0]


def quantize_blocks(model: Model, sites: Collection[DynamicSite], tables: Collection[DynamicSite] = ()) -> int:
    """Store the weights of MatMul and Gemm sites in blocks and clean up.

    Args:
        model: Edited in place.
        sites: Sites of this very model.
        tables: Gathers of tables that are among the weights; see `tied_tables`.

    Returns:
        How many nodes were changed.
    """
    taken = tensor_names(model.graph)
    known: dict[tuple[int, bool], tuple[gs.Constant, gs.Constant]] = {}
    for site in sites:
        weight, transposed = stored_weight(site.node)
        assert weight is not None
        key = id(weight), transposed
        if key not in known:
            codes, scales = encode_blocks(weight.values if transposed else weight.values.T)
            known[key] = (
                Constant(unique_name(f"{weight.name}_blocks", taken), codes),
                Constant(unique_name(f"{weight.name}_scales", taken), scales),
            )
        _replace(site, weight.shape[::-1] if transposed else weight.shape, known[key], taken)
    for table in tables:
        _gather(table, known[id(table.node.inputs[0]), True], taken)
    clean(model.graph)
    return len(sites) + len(tables)


def _replace(
    site: DynamicSite, shape: tuple[int, ...], stored: tuple[gs.Constant, gs.Constant], taken: set[str]
) -> None:
    """Put MatMulNBits, and an Add for the bias of a Gemm, in the place of a node."""
    node, output = site.node, site.node.outputs[0]
    data = node.inputs[0]
    bias = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    disconnect(node)
    product = output if bias is None else Variable(unique_name(f"{output.name}_unbiased", taken), dtype=np.float32)
    attrs = {"K": shape[0], "N": shape[1], "bits": 8, "block_size": BLOCK, "accuracy_level": _INT8_ACTIVATIONS}
    fresh = Node("MatMulNBits", f"{product.name}/MatMulNBits", attrs, [data, *stored], [product])
    fresh.domain = "com.microsoft"
    site.scope.nodes.append(fresh)
    if bias is not None:
        site.scope.nodes.append(Node("Add", f"{output.name}/Add", inputs=[product, bias], outputs=[output]))


def _gather(site: DynamicSite, stored: tuple[gs.Constant, gs.Constant], taken: set[str]) -> None:
    """Put GatherBlockQuantized, which reads codes as [rows, columns], in the place of a Gather."""
    node, output, (codes, scales) = site.node, site.node.outputs[0], stored
    indices, columns = node.inputs[1], int(np.prod(codes.shape[1:]))
    disconnect(node)
    shape = Constant(unique_name(f"{codes.name}_shape", taken), np.array([0, columns]))
    rows = Variable(unique_name(f"{codes.name}_rows", taken), dtype=np.uint8)
    site.scope.nodes.append(Node("Reshape", rows.name, inputs=[codes, shape], outputs=[rows]))
    attrs = {"bits": 8, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
    fresh = Node(
        "GatherBlockQuantized", f"{output.name}/GatherBlockQuantized", attrs, [rows, indices, scales], [output]
    )
    fresh.domain = "com.microsoft"
    site.scope.nodes.append(fresh)
