"""Which operators TensorRT and OpenVINO run in integers, and the pattern that they look for.

Both read QuantizeLinear and DequantizeLinear in front of the inputs of an operator and decide on the rest themselves:
what is behind an operator stays float in the file, biases too. TensorRT fuses the Add behind a convolution into it, so
only the other input of such an Add, the skip connection, is quantized. TensorRT wants int8 around zero; OpenVINO takes
both, but computes a convolution behind a Concat wrongly from int8 (2026.4.1, by 8 to 38 % of its energy) and rightly
from uint8, which its own kernels use.

Sources: TensorRT's developer guide ("Working with quantized types") and the conventions of its ModelOpt
(``modelopt/onnx/quantization/int8.py``, ``ort_utils.py``, ``graph_utils.py``); OpenVINO's NNCF
(``common/hardware/setups/cpu.py``, preset "mixed").
"""

from __future__ import annotations

from dataclasses import replace

from graphopt.targets.kernels import Convention, Kernel

INPUTS_ONLY = Convention(signed=True, integer_bias=False, stores_outputs=False, absorbs_clamps=False)
UNSIGNED_INPUTS_ONLY = replace(INPUTS_ONLY, signed=False)


def _reads(op: str, *conditions: str, weighted: int | None = None, weight_axis: int | None = None) -> Kernel:
    becomes = f"{op} (int8)"
    weight = ("constant-weight",) if weighted is not None else ()
    return Kernel(op, "static", becomes, weighted, weight_axis, float_output=True, first_opset=13,
                  conditions=(*weight, *conditions))  # fmt: skip


TENSORRT_KERNELS: tuple[Kernel, ...] = (
    _reads("Conv", "wide-channels", weighted=1, weight_axis=0),
    _reads("MatMul", "matrix-weight", weighted=1, weight_axis=1),
    _reads("Gemm", "bias-unit-beta", weighted=1, weight_axis=1),
    _reads("Add", "skip-input"),
    _reads("AveragePool", "spatial"),
    _reads("GlobalAveragePool", "spatial"),
    _reads("MaxPool", "spatial"),
)
OPENVINO_KERNELS: tuple[Kernel, ...] = (
    _reads("Conv", weighted=1, weight_axis=0),
    _reads("MatMul", "matrix-weight", weighted=1, weight_axis=1),
    _reads("Gemm", "bias-unit-beta", weighted=1, weight_axis=1),
    _reads("Add"),
    _reads("Mul"),
    _reads("AveragePool", "spatial"),
    _reads("GlobalAveragePool", "spatial"),
)
