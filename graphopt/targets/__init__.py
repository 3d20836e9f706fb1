"""Where a compressed model will run: execution provider, instructions, and which operators have an integer kernel."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.errors import UsageError
from graphopt.targets.accelerators import INPUTS_ONLY, OPENVINO_KERNELS, TENSORRT_KERNELS, UNSIGNED_INPUTS_ONLY
from graphopt.targets.kernels import CONDITIONS, CPU_KERNELS, X86, Convention, Form, Kernel
from graphopt.targets.machine import instructions

__all__ = ["CONDITIONS", "Convention", "Form", "Kernel", "Target", "get_target", "target_names"]

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_TENSORRT, _OPENVINO = "TensorrtExecutionProvider", "OpenVINOExecutionProvider"


@dataclass(frozen=True)
class Target:
    """Where the result will run.

    Attributes:
        name: "cpu-avx2", "cpu-avx512", "cpu-vnni", "cuda", "tensorrt", "openvino", or "cpu" on a processor that is none
            of these.
        provider: ONNX Runtime's execution provider.
        instructions: What the processor must have, of "avx2", "avx512" and "vnni".
        kernels: The table of integer kernels.
        convention: How integers are written for them.
    """

    name: str
    provider: str
    instructions: frozenset[str]
    kernels: tuple[Kernel, ...]
    convention: Convention = X86

    @property
    def runs_here(self) -> bool:
        """Whether the provider is installed and the instructions are present, so that latency can be measured."""
        import onnxruntime  # late: it takes a while, and most users of a target do not ask

        return self.provider in onnxruntime.get_available_providers() and self.instructions <= instructions()

    @property
    def weight_limit(self) -> int:
        """Largest magnitude of an int8 weight.

        Without VNNI the kernels add pairs of products in 16 bits (VPMADDUBSW), which saturate: 255 * 127 * 2 does not
        fit, 255 * 64 * 2 does. So weights have 7 bits there, and the sums are exact.
        """
        return 64 if self.provider == _CPU and "vnni" not in self.instructions else 127

    @property
    def fuses_in_onnxruntime(self) -> bool:
        """Whether ONNX Runtime's own optimizer makes the integer kernels, so that its graph shows what became of it."""
        return self.provider == _CPU

    def has(self, form: Form) -> bool:
        """Whether any operator has a kernel of a form."""
        return any(kernel.form == form for kernel in self.kernels)

    def kernel(self, op: str, form: Form, opset: int) -> Kernel | None:
        """Return the line for an operator in a form, or None if the target has no such kernel in this opset."""
        for kernel in self.kernels:
            if (kernel.op, kernel.form) == (op, form) and kernel.first_opset <= opset <= (kernel.last_opset or opset):
                return kernel
        return None


_TARGETS = (
    Target("cpu-avx2", _CPU, frozenset({"avx2"}), CPU_KERNELS),
    Target("cpu-avx512", _CPU, frozenset({"avx2", "avx512"}), CPU_KERNELS),
    Target("cpu-vnni", _CPU, frozenset({"avx2", "vnni"}), CPU_KERNELS),
    Target("cuda", _CUDA, frozenset(), ()),  # no integer kernels: an int8 graph runs on the CPU, with copies in between
    Target("tensorrt", _TENSORRT, frozenset(), TENSORRT_KERNELS, INPUTS_ONLY),
    Target("openvino", _OPENVINO, frozenset(), OPENVINO_KERNELS, UNSIGNED_INPUTS_ONLY),
)
_GENERIC = Target("cpu", _CPU, frozenset(), CPU_KERNELS)


def target_names() -> tuple[str, ...]:
    """Return the names that `get_target` takes."""
    return ("cpu", *(target.name for target in _TARGETS))


def get_target(name: str) -> Target:
    """Return a target by name.

    Args:
        name: One of `target_names`. "cpu" is this machine's processor: the last of cpu-avx2, cpu-avx512 and cpu-vnni
            whose instructions it has, or, if it is none of them, a target of that name with the same kernels and
            7-bit weights, which are right everywhere.

    Raises:
        UsageError: There is no such target.
    """
    if name == "cpu":
        here = [target for target in _TARGETS if target.instructions and target.instructions <= instructions()]
        return here[-1] if here else _GENERIC
    for target in _TARGETS:
        if target.name == name:
            return target
    raise UsageError(f"there is no target '{name}'; allowed: {', '.join(target_names())}")
