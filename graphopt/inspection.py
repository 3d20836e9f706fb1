"""What is in a model file, without changing it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.cost import Figures, NodeCost, figures, node_costs
from graphopt.ir.graph import walk_nodes
from graphopt.reader import load
from graphopt.report import FileInfo
from graphopt.report.build import input_file
from graphopt.report.encode import figures_json
from graphopt.samples.generated import example
from graphopt.shapes import shapes_for

if TYPE_CHECKING:
    from graphopt.model import Interface, Model, TensorSpec


@dataclass(frozen=True)
class Inspection:
    """Facts about a model file.

    Attributes:
        file: The file.
        producer: Name and version of the program that made it.
        ir_version: Version of the file format.
        opsets: Version by operator domain; "" is ONNX's own.
        interface: Inputs and outputs.
        figures: Size and cost.
        operators: How often each operator occurs, the most frequent first; "domain::Op" for other domains.
        nodes: Cost of every node, in graph order.
    """

    file: FileInfo
    producer: str
    ir_version: int
    opsets: dict[str, int]
    interface: Interface
    figures: Figures
    operators: dict[str, int]
    nodes: tuple[NodeCost, ...]

    def largest(self, figure: str, limit: int = 10) -> tuple[NodeCost, ...]:
        """Return the nodes with the most "parameters" or "macs", the largest first; none with zero."""
        found = sorted((node for node in self.nodes if getattr(node, figure)), key=lambda node: -getattr(node, figure))
        return tuple(found[:limit])

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "file": {"path": self.file.path, "sha256": self.file.sha256, "nbytes": self.file.nbytes},
            "producer": self.producer,
            "ir_version": self.ir_version,
            "opsets": self.opsets,
            "inputs": [_spec(spec) for spec in self.interface.inputs],
            "outputs": [_spec(spec) for spec in self.interface.outputs],
            "figures": figures_json(self.figures),
            "operators": self.operators,
            "nodes": [asdict(cost) for cost in self.nodes],
        }


def _spec(spec: TensorSpec) -> dict[str, Any]:
    dtype = None if spec.dtype is None else spec.dtype.name
    return {"name": spec.name, "dtype": dtype, "shape": None if spec.shape is None else list(spec.shape)}


def inspect_model(path: Path) -> Inspection:
    """Read a model file and return the facts about it.

    Raises:
        ModelError: It cannot be read.
    """
    model = load(path)
    skeleton = model.skeleton()
    file = input_file(model)
    assert file is not None, "a model that was just read has a file"
    shapes = shapes_for(model, example(model))
    return Inspection(
        file=file,
        producer=f"{skeleton.producer_name} {skeleton.producer_version}".strip(),
        ir_version=skeleton.ir_version,
        opsets={item.domain: item.version for item in skeleton.opset_import},
        interface=model.interface,
        figures=figures(model, shapes),
        operators=_operators(model),
        nodes=node_costs(model, shapes),
    )


def _operators(model: Model) -> dict[str, int]:
    roots = (model.graph, *model.graph.functions)
    counted = Counter(
        f"{node.domain}::{node.op}" if node.domain not in (None, "", "ai.onnx") else node.op
        for root in roots
        for node in walk_nodes(root)
    )
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))
