"""What quant says where it leaves a model as it was."""

from __future__ import annotations

import pytest

from graphopt.context import Context
from graphopt.evaluate import Evaluator
from graphopt.model import Model
from graphopt.passes.quant import Quant
from graphopt.targets import get_target
from tests.helpers import parse

_CONVOLUTION = """
<ir_version: 10, opset_import: ["" : {opset}]>
agraph (float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y)
<float[1, 1, 1, 1] w = {{2}}>
{{
  [one] y = Conv(x, w)
}}
"""


def notes(opset: int, quant: Quant) -> tuple[str, ...]:
    model, target = Model.from_proto(parse(_CONVOLUTION.format(opset=opset))), get_target("cpu-avx2")
    return quant.run(model, Context(target, Evaluator(model, target, samples=None))).notes


@pytest.mark.parametrize("opset", [11, 21])
def test_samples_are_asked_for_where_they_would_help(opset: int) -> None:
    (note,) = notes(opset, Quant())
    assert note == "what has an int8 kernel here (1 nodes) needs fixed ranges, so samples (--data); left as it was"


@pytest.mark.parametrize("quant", [Quant(exclude="one"), Quant(mode="dynamic")])
def test_samples_are_not_asked_for_where_they_would_not(quant: Quant) -> None:
    (note,) = notes(21, quant)
    assert note == "there is nothing that has an int8 kernel here; left as it was"
