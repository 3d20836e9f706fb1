"""Embeddings that a product reads as well: one copy of their integers, in every form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from graphopt.ir.graph import constants
from graphopt.model import Model
from graphopt.passes.quant.nodes.sites import DynamicSite, find_sites
from graphopt.passes.quant.numbers.store import WeightStore
from graphopt.passes.quant.writing.blocks import quantize_blocks, tied_tables
from graphopt.passes.quant.writing.dynamic import quantize_dynamic
from graphopt.runtime.session import open_session
from graphopt.targets import get_target
from tests.helpers import parse

ROWS, COLUMNS = 700, 64
HEAD = '<ir_version: 8, opset_import: ["" : 17]> g'
TURNED = "h = Gather(w, i) t = Transpose<perm=[1, 0]>(w) y = MatMul(h, t)"
GEMM = "h = Gather(w, i) y = Gemm<transB=1>(h, w)"
FEEDS = {"i": np.arange(0, ROWS, 37)}


def build(nodes: str, columns: int = COLUMNS) -> Model:
    proto = parse(f"{HEAD} (int64[n] i) => (float[n, m] y) {{ {nodes} }}")
    rng = np.random.default_rng(5)
    table = rng.normal(size=(ROWS, columns)) * rng.uniform(0.2, 2, size=(ROWS, 1))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(table.astype(np.float32), "w"))
    return Model.from_proto(proto)


def integers(model: Model) -> list[tuple[int, ...]]:
    """Return the shapes of the large constants; all of them must be bytes."""
    large = [constant for constant in constants(model.graph) if np.prod(constant.shape) > 2 * ROWS]
    assert all(np.dtype(constant.dtype).itemsize == 1 for constant in large)
    return [tuple(constant.shape) for constant in large]


def error(before: Model, after: Model) -> float:
    with open_session(before) as first, open_session(after) as second:
        wanted, found = first.run(FEEDS)["y"], second.run(FEEDS)["y"]
    return float(np.square(found - wanted).sum() / np.square(wanted).sum())


@pytest.mark.parametrize("nodes", [TURNED, GEMM, TURNED.replace("h = Gather(w, i) ", "") + " h = Gather(w, i)"])
def test_a_table_that_a_product_reads_transposed_is_stored_once(nodes: str) -> None:
    model = build(nodes)
    result = model.copy()
    sites, _ = find_sites(result.graph, get_target("cpu-avx2"), 17)
    assert quantize_dynamic(result, sites, WeightStore(pairs=True)) == 2
    assert integers(result) == [(ROWS, COLUMNS)]
    assert error(model, result) < 1e-3


def test_products_in_either_direction_and_a_table() -> None:
    model = build("h = Gather(w, i) t = Transpose<perm=[1, 0]>(w) m = MatMul(h, t) y = MatMul(m, w)")
    result = model.copy()
    sites, _ = find_sites(result.graph, get_target("cpu-avx2"), 17)
    assert quantize_dynamic(result, sites, WeightStore(pairs=False)) == 3
    assert len(integers(result)) == 2, "scales of rows for one product, of columns for the other"
    assert error(model, result) < 1e-3


@pytest.mark.parametrize("nodes", [TURNED, GEMM])
def test_the_blocks_of_a_product_serve_its_table(nodes: str) -> None:
    model = build(nodes)
    result = model.copy()
    sites, _ = find_sites(result.graph, get_target("cpu-avx2"), 17)
    tables, products = split(sites)
    assert tied_tables(tables, products) == tables
    assert quantize_blocks(result, products, tables) == 2
    assert integers(result) == [(ROWS, COLUMNS // 32, 32)]
    assert error(model, result) < 1e-3


def test_rows_that_are_no_whole_blocks_or_other_weights_are_no_tied_tables() -> None:
    for model in (build(TURNED, columns=40), build("h = Gather(w, i) v = Identity(w) y = MatMul(h, v)")):
        tables, products = split(find_sites(model.graph, get_target("cpu-avx2"), 17)[0])
        assert tied_tables(tables, products) == []


def split(sites: Sequence[DynamicSite]) -> tuple[list[DynamicSite], list[DynamicSite]]:
    return [site for site in sites if site.node.op == "Gather"], [site for site in sites if site.node.op != "Gather"]
