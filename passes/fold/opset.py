"""Raising the operator set, so that fused operators can be used.

`onnx.version_converter` needs a copy of the whole model and rewrites more than asked for. What changed from operator
set 11 on is little: most operators only took more types or optional attributes, which their schemas tell, and the rest
is in a table here. A model with anything else is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.graph import Variable, walk_graphs
from graphopt.shapes import STANDARD_DOMAINS

if TYPE_CHECKING:
    from graphopt.passes.fold.workbench import Workbench

OLDEST = 11
_OLDEST_IR = 4
_CONSTANT_COST = 40  # bytes of a small initializer with its name
_REDUCTIONS = frozenset(
    {"ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
     "ReduceSumSquare"}
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """What a version of the operator set changed about operators, beyond more types and optional attributes.

    Attributes:
        version: The first with the change.
        refusal: Returns why a node cannot be converted, or an empty text.
        convert: Rewrites a node.
    """

    version: int
    refusal: Callable[[gs.Node, Workbench], str]
    convert: Callable[[gs.Node, Workbench], None]


def raise_opset(bench: Workbench, wanted: int, allowance: int) -> str:
    """Raise the operator set of the model.

    Args:
        bench: The graph.
        wanted: The new version.
        allowance: Bytes that the conversion may add.

    Returns:
        Why it cannot be done, and then nothing was changed; empty if it was.
    """
    graph = bench.model.graph
    present = int(graph.opset or 0)
    if graph.functions:
        return "the model has functions, which have operator sets of their own"
    if (graph.ir_version or 0) < _OLDEST_IR or present < OLDEST:
        return f"operator sets before {OLDEST} are not raised"
    nodes = [node for node in bench.nodes() if (node.domain or "") in STANDARD_DOMAINS]
    reason = next((reason for node in nodes if (reason := _refusal(node, present, wanted, bench))), "")
    if reason:
        return f"the operator set stays {present}: {reason}"
    if _CONSTANT_COST * len(_new_constants(nodes, present, wanted)) > allowance:
        return f"the operator set stays {present}: a newer one would make the file larger"
    for node in nodes:
        for change in _changes(node.op, present, wanted):
            change.convert(node, bench)
    for scope in walk_graphs(graph):
        scope.opset = wanted
    return ""


def _changes(op: str, present: int, wanted: int) -> list[Change]:
    return [change for change in CHANGES.get(op, ()) if present < change.version <= wanted]


def _refusal(node: gs.Node, present: int, wanted: int, bench: Workbench) -> str:
    changes = _changes(node.op, present, wanted)
    reasons = [change.refusal(node, bench) for change in changes]
    if any(reasons):
        return f"{node.op} '{node.name}' {next(filter(None, reasons))}"
    return "" if changes or _only_extended(node.op, present, wanted) else f"{node.op} changed since"


def _only_extended(op: str, present: int, wanted: int) -> bool:
    """Return whether an operator took nothing but more types, optional inputs and optional attributes."""
    try:
        old, new = onnx.defs.get_schema(op, present, ""), onnx.defs.get_schema(op, wanted, "")
    except onnx.defs.SchemaError:
        return False
    if new.deprecated or old.deprecated:
        return False
    attributes = new.attributes
    kept = all(name in attributes and _default(attributes[name]) == _default(a) for name, a in old.attributes.items())
    return kept and len(new.inputs) >= len(old.inputs) and len(new.outputs) >= len(old.outputs)


def _default(attribute: onnx.defs.OpSchema.Attribute) -> bytes:
    value: bytes = attribute.default_value.SerializeToString()
    return value


def _new_constants(nodes: list[gs.Node], present: int, wanted: int) -> set[tuple[int, ...]]:
    """Return the attributes that become inputs."""
    moved = [node.attrs.get("axes", node.attrs.get("split")) for node in nodes if _changes(node.op, present, wanted)]
    return {tuple(value) for value in moved if isinstance(value, list)}


def _never(node: gs.Node, bench: Workbench) -> str:
    return ""


def _always(node: gs.Node, bench: Workbench) -> str:
    return "means something else there"


def _nothing(node: gs.Node, bench: Workbench) -> None:
    pass


def _to_input(attribute: str) -> Callable[[gs.Node, Workbench], None]:
    """Return what turns an attribute with a list into the second input."""

    def convert(node: gs.Node, bench: Workbench) -> None:
        values = node.attrs.pop(attribute, None)
        if values:
            bench.set_input(node, 1, bench.new_constant(attribute, np.array(values, np.int64), node))

    return convert


def _count_outputs(node: gs.Node, bench: Workbench) -> None:
    if "split" not in node.attrs and (len(node.inputs) < 2 or node.inputs[1].is_empty()):
        node.attrs["num_outputs"] = len(node.outputs)


def _not_last_axis(node: gs.Node, bench: Workbench) -> str:
    shape = bench.types[node.inputs[0]].shape
    if shape is not None and node.attrs.get("axis", 1) % max(len(shape), 1) == len(shape) - 1:
        return ""
    return "is not known to be over the last axis, and was over all from its axis on"


def _state_axis(node: gs.Node, bench: Workbench) -> None:
    node.attrs["axis"] = -1


def _resize_refusal(node: gs.Node, bench: Workbench) -> str:
    if node.attrs.get("coordinate_transformation_mode") in ("tf_half_pixel_for_nn", "tf_crop_and_resize"):
        return "has coordinates that were renamed"
    roi_known = len(node.inputs) < 2 or node.inputs[1].is_empty() or bench.constant(node.inputs[1]) is not None
    given = [index for index in (2, 3) if _given(node, index, bench)]
    return "" if roi_known and len(given) == 1 else "does not say plainly whether it goes by scales or sizes"


def _given(node: gs.Node, index: int, bench: Workbench) -> bool:
    """Return whether an input is there and may have elements."""
    if len(node.inputs) <= index or node.inputs[index].is_empty():
        return False
    constant = bench.constant(node.inputs[index])
    return constant is None or 0 not in constant.shape


def _omit_empty(node: gs.Node, bench: Workbench) -> None:
    """Leave out the region, and the scales where there are sizes: both had to be there, be it without elements."""
    for index in range(1, len(node.inputs)):
        if not node.inputs[index].is_empty() and (index == 1 or not _given(node, index, bench)):
            bench.set_input(node, index, Variable(""))


def _drop_ratio(node: gs.Node, bench: Workbench) -> None:
    node.attrs.pop("ratio", None)


def _trains(node: gs.Node, bench: Workbench) -> str:
    return "gives out statistics" if len(node.outputs) > 1 else ""


def _rounds_up(node: gs.Node, bench: Workbench) -> str:
    return "rounds its size up" if node.attrs.get("ceil_mode", 0) else ""


def _rename_mode(node: gs.Node, bench: Workbench) -> None:
    renamed = {"bilinear": "linear", "bicubic": "cubic"}
    mode = node.attrs.get("mode", "bilinear")
    node.attrs["mode"] = renamed.get(mode, mode)


def _state_old_mode(node: gs.Node, bench: Workbench) -> None:
    node.attrs.setdefault("coordinate_transformation_mode", "output_half_pixel")


_LAST_AXIS = (Change(13, _not_last_axis, _state_axis),)
_AXES_13 = (Change(13, _never, _to_input("axes")),)
_AXES_18 = (Change(18, _never, _to_input("axes")),)
CHANGES: dict[str, tuple[Change, ...]] = {
    "AveragePool": (Change(19, _rounds_up, _nothing),),
    "BatchNormalization": (Change(14, _trains, _nothing),),
    "DFT": (Change(20, _always, _nothing),),
    "Dropout": (Change(12, _never, _drop_ratio),),
    "GridSample": (Change(20, _never, _rename_mode),),
    "GroupNormalization": (Change(21, _always, _nothing),),
    "Hardmax": _LAST_AXIS,
    "LogSoftmax": _LAST_AXIS,
    "ReduceSum": _AXES_13,
    "Resize": (Change(13, _resize_refusal, _omit_empty),),
    "RoiAlign": (Change(16, _never, _state_old_mode),),
    "Softmax": _LAST_AXIS,
    "Split": (Change(13, _never, _to_input("split")), Change(18, _never, _count_outputs)),
    "Squeeze": _AXES_13,
    "Unsqueeze": _AXES_13,
    **dict.fromkeys(_REDUCTIONS, _AXES_18),
}
