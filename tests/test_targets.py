"""Targets: names, what this machine has, and the table's own consistency."""

from __future__ import annotations

import onnx
import pytest

from graphopt.errors import UsageError
from graphopt.targets import CONDITIONS, get_target, machine, target_names
from graphopt.targets.machine import classify, cpuinfo_flags


def test_every_name_resolves() -> None:
    for name in target_names():
        assert get_target(name).name in (*target_names(), "cpu")


def test_unknown_name_lists_the_allowed_ones() -> None:
    with pytest.raises(
        UsageError, match="no target 'gpu'; allowed: cpu, cpu-avx2, cpu-avx512, cpu-vnni, cuda, tensorrt, openvino"
    ):
        get_target("gpu")


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (frozenset({"avx2"}), "cpu-avx2"),
        (frozenset({"avx2", "avx512"}), "cpu-avx512"),
        (frozenset({"avx2", "avx512", "vnni"}), "cpu-vnni"),
        (frozenset({"avx2", "vnni"}), "cpu-vnni"),
        (frozenset(), "cpu"),
    ],
)
def test_cpu_is_the_best_of_this_machine(monkeypatch: pytest.MonkeyPatch, found: frozenset[str], name: str) -> None:
    monkeypatch.setattr("graphopt.targets.instructions", lambda: found)
    target = get_target("cpu")
    assert target.name == name
    assert target.runs_here


def test_other_processors_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.targets.instructions", lambda: frozenset({"avx2"}))
    assert not get_target("cpu-vnni").runs_here
    assert get_target("cpu-avx2").runs_here


def test_weights_have_seven_bits_where_sums_saturate() -> None:
    assert [get_target(name).weight_limit for name in ("cpu-avx2", "cpu-avx512", "cpu-vnni")] == [64, 64, 127]
    assert {get_target(name).weight_limit for name in ("tensorrt", "openvino")} == {127}


def test_accelerators_only_read_integers() -> None:
    for name in ("tensorrt", "openvino"):
        target = get_target(name)
        assert all(kernel.float_output and kernel.form == "static" for kernel in target.kernels)
        assert not target.runs_here
        assert not target.fuses_in_onnxruntime
        assert not target.has("dynamic")
    assert get_target("cpu-avx2").has("dynamic")


def test_flags_of_the_first_processor_are_read() -> None:
    text = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512bw avx512_vnni\nbugs\t: x\nprocessor : 1\nflags : fpu\n"
    assert classify(cpuinfo_flags(text)) == {"avx2", "avx512", "vnni"}
    assert classify(cpuinfo_flags("Features\t: neon asimd\n")) == frozenset()
    assert classify(frozenset({"avx2", "avx_vnni"})) == {"avx2", "vnni"}
    assert classify(frozenset({"avx2", "avx512f"})) == {"avx2"}  # Knights Landing has no AVX512BW


def test_numpy_and_the_kernel_agree_here() -> None:
    assert classify(machine.numpy_flags()) - {"vnni"} == machine.instructions() - {"vnni"}


def test_lines_name_real_operators_conditions_and_opsets() -> None:
    for name in target_names():
        for kernel in get_target(name).kernels:
            assert set(kernel.conditions) <= set(CONDITIONS)
            schema = onnx.defs.get_schema(kernel.op, kernel.last_opset or onnx.defs.onnx_opset_version())
            assert kernel.weighted is None or kernel.weighted < len(schema.inputs)
            assert ("one-parameter-set" in kernel.conditions) == (kernel.form == "pass-through")


def test_lines_are_found_by_opset() -> None:
    target = get_target("cpu-avx2")
    assert target.kernel("MaxPool", "pass-through", 11) is None
    assert target.kernel("MaxPool", "pass-through", 22) is None
    assert target.kernel("MaxPool", "pass-through", 17) is not None
    assert target.kernel("Sub", "static", 17) is None
    assert target.kernel("GRU", "dynamic", 17) is None
    assert get_target("cuda").kernel("Conv", "static", 17) is None
