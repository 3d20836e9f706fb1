"""Samples: every form of source, what fits, and what each misfit is called."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import SampleError
from graphopt.model import Interface, Model
from graphopt.samples import Samples, open_samples, random_samples

F32 = np.float32


def interface(*inputs: tuple[str, int, list[Any] | None]) -> Interface:
    """Return the interface of a model with these inputs: name, element type, shape."""
    infos = [helper.make_tensor_value_info(*item) for item in inputs]
    return interface_of(*infos)


def interface_of(*infos: onnx.ValueInfoProto) -> Interface:
    graph = helper.make_graph([helper.make_node("Identity", [infos[0].name], ["out"])], "g", infos, [])
    return Model.from_proto(helper.make_model(graph)).interface


IMAGE = interface(("x", TensorProto.FLOAT, ["n", 3, 4, 4]))
MIXED = interface(
    ("x", TensorProto.FLOAT, ["n", "length"]),
    ("state", TensorProto.FLOAT, [2, "n", 5]),
    ("rate", TensorProto.INT64, []),
)


def numbers(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=F32).reshape(shape)


def shapes(samples: Samples) -> list[dict[str, tuple[int, ...]]]:
    return [{name: value.shape for name, value in feeds.items()} for feeds in samples]


def message(source: Any, model: Interface = IMAGE, **options: Any) -> str:
    """Return what is said when all samples of a source are read."""
    with pytest.raises(SampleError) as caught:
        list(open_samples(source, model, **options))
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_slices_are_samples(tmp_path: Path, save: Any) -> None:
    images = numbers(6, 3, 4, 4)
    save(tmp_path / "s.npz", x=images)
    samples = open_samples(tmp_path / "s.npz", IMAGE)
    assert len(samples) == 6
    assert samples.source == str(tmp_path / "s.npz")
    assert not samples.is_random
    for _ in range(2):  # the stream starts afresh
        found = [feeds["x"] for feeds in samples]
        assert [item.shape for item in found] == [(1, 3, 4, 4)] * 6
        np.testing.assert_array_equal(np.concatenate(found), images)
    found = [feeds["x"] for feeds in samples.take(2)]
    np.testing.assert_array_equal(np.concatenate(found), images[[0, 3]])


def test_a_compressed_npz_is_inflated_once(tmp_path: Path) -> None:
    images, path = numbers(5, 3, 4, 4), tmp_path / "s.npz"
    np.savez_compressed(path, x=images)
    samples = open_samples(path, IMAGE)
    few = [feeds["x"] for feeds in samples.take(2)]
    assert len(list(samples)) == 5
    path.unlink()
    for first, second in zip(samples, samples, strict=True):  # side by side
        np.testing.assert_array_equal(first["x"], second["x"])
    np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in samples]), images)
    np.testing.assert_array_equal(np.concatenate(few), images[[0, 2]])


def test_npz_in_fortran_order(tmp_path: Path) -> None:
    images = numbers(4, 3, 4, 4)
    np.savez(tmp_path / "s.npz", x=np.asfortranarray(images))
    found = [feeds["x"] for feeds in open_samples(tmp_path / "s.npz", IMAGE).take(2)]
    np.testing.assert_array_equal(np.concatenate(found), images[[0, 2]])


def test_inputs_without_a_batch_axis_are_stacked_too(tmp_path: Path) -> None:
    states, rates = numbers(3, 2, 1, 5), np.array([1, 2, 3])
    np.savez(tmp_path / "s.npz", x=numbers(3, 7), state=states, rate=rates)
    found = list(open_samples(tmp_path / "s.npz", MIXED))
    assert [feeds["x"].shape for feeds in found] == [(1, 7)] * 3
    np.testing.assert_array_equal(np.stack([feeds["state"] for feeds in found]), states)
    assert [feeds["rate"].shape for feeds in found] == [()] * 3
    assert [int(feeds["rate"]) for feeds in found] == [1, 2, 3]


@pytest.mark.parametrize("save", [None, np.savez, np.savez_compressed])
def test_an_array_without_axes_belongs_to_every_sample(save: Any, tmp_path: Path) -> None:
    source: Any = {"x": numbers(3, 7), "state": numbers(3, 2, 1, 5), "rate": np.array(16)}
    if save is not None:
        save(tmp_path / "s.npz", **source)
        source = tmp_path / "s.npz"
    assert [int(feeds["rate"]) for feeds in open_samples(source, MIXED)] == [16] * 3


def test_a_fixed_batch_takes_several_slices() -> None:
    model = interface(("x", TensorProto.FLOAT, [4, 2]), ("y", TensorProto.FLOAT, [1, 2]))
    x, y = numbers(8, 2), numbers(2, 2)
    found = list(open_samples({"x": x, "y": y}, model))
    np.testing.assert_array_equal([feeds["x"] for feeds in found], x.reshape(2, 4, 2))
    np.testing.assert_array_equal([feeds["y"] for feeds in found], y.reshape(2, 1, 2))
    assert "has 7 slices; the model takes 4 at a time: give a multiple of 4" in message(
        {"x": numbers(7, 2), "y": y}, model
    )


def test_npy_for_a_single_input(tmp_path: Path) -> None:
    images = numbers(5, 3, 4, 4)
    np.save(tmp_path / "s.npy", images)
    found = [feeds["x"] for feeds in open_samples(tmp_path / "s.npy", IMAGE)]
    np.testing.assert_array_equal(np.concatenate(found), images)
    assert type(found[0]) is np.ndarray  # not a view of the file
    assert "one array does not do for the inputs x, state, rate" in message(tmp_path / "s.npy", MIXED)
    rest = frozenset({"state", "rate"})
    np.save(tmp_path / "t.npy", numbers(2, 7))
    assert shapes(open_samples(tmp_path / "t.npy", MIXED, optional=rest)) == [{"x": (1, 7)}] * 2


def test_folder_of_npz_in_natural_order_with_different_shapes(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        path = tmp_path / f"s{number}.npz"
        np.savez(path, x=numbers(1, number), state=numbers(2, 1, 5), rate=np.array(number))
    (tmp_path / "._s1.npz").write_bytes(b"what some systems leave behind")
    samples = open_samples(str(tmp_path), MIXED)
    assert [int(feeds["rate"]) for feeds in samples] == [1, 2, 10]
    assert [feeds["x"].shape[1] for feeds in samples] == [1, 2, 10]
    assert len(samples) == 3


def test_folder_of_npy(tmp_path: Path) -> None:
    for number in (0, 1):
        np.save(tmp_path / f"{number}.npy", numbers(1, 3, 4, 4) + number)
    assert [feeds["x"].flat[0] for feeds in open_samples(tmp_path, IMAGE)] == [0, 1]


def write_data_set(folder: Path, *values: onnx.TensorProto | onnx.SequenceProto | onnx.OptionalProto) -> None:
    folder.mkdir()
    for number, value in enumerate(values):
        (folder / f"input_{number}.pb").write_bytes(value.SerializeToString())
    (folder / "output_0.pb").write_bytes(b"not read")


def test_data_sets_of_onnx(tmp_path: Path) -> None:
    for number in (0, 1, 10, 2):
        values = (numbers(1, 7), numbers(2, 1, 5), np.array(number))
        write_data_set(tmp_path / f"test_data_set_{number}", *map(numpy_helper.from_array, values))
    (tmp_path / "model.onnx").touch()
    samples = open_samples(tmp_path, MIXED)
    assert [int(feeds["rate"]) for feeds in samples] == [0, 1, 2, 10]
    assert shapes(samples)[0] == {"x": (1, 7), "state": (2, 1, 5), "rate": ()}
    assert [int(feeds["rate"]) for feeds in open_samples(tmp_path / "test_data_set_10", MIXED)] == [10]
    (tmp_path / "test_data_set_0" / "input_3.pb").touch()
    assert "input_3.pb': the model has 3 inputs, so files are input_0 to input_2" in message(tmp_path, MIXED)


def test_data_sets_with_sequences_and_optionals(tmp_path: Path) -> None:
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    model = interface_of(
        helper.make_value_info("s", helper.make_sequence_type_proto(element)),
        helper.make_value_info("o", helper.make_optional_type_proto(element)),
    )
    items = [numbers(2), numbers(3)]
    write_data_set(
        tmp_path / "test_data_set_0",
        numpy_helper.from_list(items, dtype=TensorProto.FLOAT),
        numpy_helper.from_optional(None, dtype=onnx.OptionalProto.TENSOR),
    )
    (feeds,) = open_samples(tmp_path, model)
    for found, wanted in zip(feeds["s"], items, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert feeds["o"] is None


def test_an_array_is_no_sequence(tmp_path: Path) -> None:
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    model = interface_of(helper.make_value_info("s", helper.make_sequence_type_proto(element)))
    np.savez(tmp_path / "s.npz", s=numbers(3, 2))
    assert "input 's' is a sequence, not one array; give a list of arrays" in message(tmp_path / "s.npz", model)
    optional = interface_of(helper.make_value_info("o", helper.make_optional_type_proto(element)))
    assert shapes(open_samples([{"o": numbers(3, 2)}], optional)) == [{"o": (3, 2)}]


def test_data_sets_do_not_reach_outside(tmp_path: Path) -> None:
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1, 3, 4, 4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../secret")
    write_data_set(tmp_path / "test_data_set_0", tensor)
    assert "cannot be read as input 'x' (tensor_type): its values lie in another file" in message(tmp_path)
    (tmp_path / "test_data_set_0" / "input_0.pb").write_bytes(b"\x08\x01\x12")
    assert "cannot be read as input 'x'" in message(tmp_path)


CODE = """
import numpy as np

def feeds():
    import helper_of_mine  # its neighbour, imported only when it is called
    for number in range(3):
        yield {"x": np.full((1, 3, 4, 4), number, np.float32)}

def stacked():
    return {"x": np.zeros((5, 3, 4, 4), np.float32)}

def fails():
    yield {"x": np.zeros((1, 3, 4, 4), np.float32)}
    raise RuntimeError("the disk\\nis gone")

def bare():
    return [np.zeros((1, 3, 4, 4), np.float32)]

def nothing():
    return []

def number():
    return 3
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Work in a folder with a module of feeds; yields the module's name."""
    (tmp_path / "feeds_of_mine.py").write_text(CODE)
    (tmp_path / "helper_of_mine.py").write_text("")
    monkeypatch.chdir(tmp_path)
    path = sys.path[:]
    yield "feeds_of_mine"
    assert sys.path == path
    for name in ("feeds_of_mine", "helper_of_mine"):
        sys.modules.pop(name, None)


def test_function_is_called_afresh(code: str) -> None:
    samples = open_samples(f"{code}:feeds", IMAGE)
    assert samples.source == "feeds_of_mine:feeds"
    for _ in range(2):
        assert [feeds["x"].flat[0] for feeds in samples] == [0, 1, 2]
    assert len(samples) == 3
    assert len(open_samples(f"{code}:stacked", IMAGE)) == 5


def test_function_fails(code: str) -> None:
    with pytest.raises(SampleError, match=r"^'feeds_of_mine:fails' failed: RuntimeError: the disk is gone$") as caught:
        list(open_samples(f"{code}:fails", IMAGE))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "sample 0 of 'feeds_of_mine:bare' is of type ndarray" in message(f"{code}:bare")
    assert message(f"{code}:nothing") == "'feeds_of_mine:nothing' holds no samples"
    assert "returned a int; it must return or yield mappings" in message(f"{code}:number")
    assert "'feeds_of_mine' has no 'feed'; it has: feeds, stacked" in message(f"{code}:feed")
    assert "there is no module 'feeds_of_yours'" in message("feeds_of_yours:feeds")


def test_objects_in_memory() -> None:
    feeds = [{"x": numbers(1, 3, 4, 4)}, {"x": numbers(2, 3, 4, 4)}]
    for source in (feeds, tuple(feeds), lambda: iter(feeds)):
        samples = open_samples(source, IMAGE)
        assert len(samples) == 2
        assert shapes(samples) == [{"x": (1, 3, 4, 4)}, {"x": (2, 3, 4, 4)}]
    assert len(open_samples(numbers(7, 3, 4, 4), IMAGE)) == 7
    assert len(open_samples({"x": numbers(7, 3, 4, 4)}, IMAGE)) == 7
    assert "a generator can be read only once" in message(item for item in feeds)
    assert "samples cannot come from a int" in message(3)


def test_samples_can_be_held_against_another_model() -> None:
    samples = open_samples({"x": numbers(2, 3, 4, 4)}, IMAGE)
    assert len(open_samples(samples, IMAGE)) == 2
    other = interface(("y", TensorProto.FLOAT, ["n", 3, 4, 4]))
    assert "the model has no input 'x'; its inputs are y" in message(samples, other)


def test_a_source_that_changes_is_noticed() -> None:
    items = iter([{"x": numbers(1, 3, 4, 4)} for _ in range(4)])
    samples = open_samples(lambda: items, IMAGE)
    assert len(samples) == 3  # the first went into the check
    with pytest.raises(SampleError, match="gave 3 samples before and 0 now"):
        list(samples)
    items = iter([{"x": numbers(1, 3, 4, 4)} for _ in range(5)])
    with pytest.raises(SampleError, match="gave 4 samples before and 0 now"):
        list(open_samples(lambda: items, IMAGE).take(2))


def test_at_most_one_sample_is_held() -> None:
    alive: list[int] = []

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive.remove(1)

    def feeds() -> Iterator[dict[str, np.ndarray]]:
        for _ in range(5):
            alive.append(1)
            yield {"x": numbers(1, 3, 4, 4).view(Counted)}

    for item in open_samples(feeds, IMAGE):
        assert len(alive) <= 2  # the one in hand, and the one that is being made
        del item


def test_samples_that_change_between_readings_are_refused() -> None:
    calls: list[int] = []

    def shuffled() -> Iterator[dict[str, np.ndarray]]:
        calls.append(1)
        yield {"x": numbers(1, 3, 4, 4) + len(calls)}

    samples = open_samples(shuffled, IMAGE)
    with pytest.raises(SampleError, match=r"sample 0 of .* changed between two readings; .*\(seed its randomness"):
        list(samples)


def test_samples_that_run_dry_are_refused() -> None:
    calls: list[int] = []

    def once() -> Iterator[dict[str, np.ndarray]]:
        calls.append(1)
        yield from [{"x": numbers(1, 3, 4, 4)}] * (2 if len(calls) == 1 else 0)

    samples = open_samples(once, IMAGE)
    with pytest.raises(SampleError, match="gave 1 samples before and 0 now; they must stay the same"):
        list(samples)


def test_code_that_ends_the_process_is_an_error() -> None:
    def ends() -> Iterator[dict[str, np.ndarray]]:
        raise SystemExit(0)
        yield {}

    with pytest.raises(SampleError, match="failed: SystemExit"):
        open_samples(ends, IMAGE)


def test_take_is_evenly_spaced() -> None:
    samples = open_samples(numbers(10, 3, 4, 4), IMAGE)

    def picked(some: Samples) -> list[int]:
        return [int(feeds["x"].flat[0]) // 48 for feeds in some]

    assert picked(samples.take(5)) == [0, 2, 4, 6, 8]
    assert picked(samples.take(3)) == [0, 3, 6]
    assert picked(samples.take(5).take(2)) == [0, 4]
    assert len(samples.take(3)) == 3
    assert picked(samples.take(99)) == list(range(10))
    with pytest.raises(ValueError, match="at least one sample must be taken, not 0"):
        samples.take(0)


def x_of(array: np.ndarray) -> list[dict[str, np.ndarray]]:
    return [{"x": array}]


VAGUE = interface(("x", TensorProto.FLOAT, ["?", 3, "?", "unk"]))


@pytest.mark.parametrize(
    "feeds, model, wanted",
    [
        ({"y": numbers(1)}, IMAGE, "the model has no input 'y'; its inputs are x"),
        ({}, IMAGE, "input 'x' is missing; found nothing, needed x"),
        (
            {"x": np.zeros((1, 3, 4, 4))},
            IMAGE,
            "input 'x' has type float64; the model takes float32: convert it with array.astype('float32')",
        ),
        (
            {"x": np.zeros((1, 3, 4, 4), np.int32)},
            interface(("x", TensorProto.INT64, ["n", 3, 4, 4])),
            "input 'x' has type int32; the model takes int64",
        ),
        (
            {"x": numbers(3, 4, 4)},
            IMAGE,
            "input 'x' has shape [3, 4, 4]; the model takes [n, 3, 4, 4]: reshape it to 4 dimensions",
        ),
        (
            {"x": numbers(1, 4, 4, 3)},
            IMAGE,
            "input 'x' has shape [1, 4, 4, 3]; the model takes [n, 3, 4, 4]: axis 1 must have the size 3",
        ),
        (
            {"x": numbers(2, 7), "state": numbers(2, 1, 5), "rate": np.array(1)},
            MIXED,
            "input 'state' has shape [2, 1, 5]; the model takes [2, n, 5]: 'n' is 1 here and 2 in 'x'",
        ),
        ({"x": [[1.0], [1.0, 2.0]]}, IMAGE, "input 'x' is no array: "),
    ],
)
def test_misfits(feeds: dict[str, Any], model: Interface, wanted: str) -> None:
    assert message([feeds], model).startswith(f"sample 0 of 'list in memory': {wanted}")


def test_misfits_of_stacked_arrays(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    np.savez(path, x=numbers(3, 4))
    assert message(path) == (
        f"'{path}': input 'x' has shape [3, 4]; the model takes [n, 3, 4, 4], "
        "so N samples stacked along the first axis have shape [N, n, 3, 4, 4] or [N, 3, 4, 4]"
    )
    np.savez(path, x=numbers(6, 4, 4, 3))
    assert message(path).startswith(f"sample 0 of '{path}': input 'x' has shape [1, 4, 4, 3]")
    two = interface(("x", TensorProto.FLOAT, ["n"]), ("y", TensorProto.FLOAT, ["n"]))
    assert "'x' holds 6 samples and 'y' 5" in message({"x": numbers(6), "y": numbers(5)}, two)
    np.savez(path, z=numbers(3, 4))
    assert message(path) == f"'{path}': the model has no input 'z'; its inputs are x"


def test_symbols_that_name_no_size_may_differ() -> None:
    assert shapes(open_samples(x_of(numbers(1, 3, 8, 9)), VAGUE)) == [{"x": (1, 3, 8, 9)}]
    unknown = interface(("x", TensorProto.FLOAT, ["unk", 3, "unk", "Dim"]), ("y", TensorProto.FLOAT, ["Dim"]))
    assert len(open_samples([{"x": numbers(1, 3, 8, 9), "y": numbers(4)}], unknown)) == 1
    negative = interface(("x", TensorProto.FLOAT, [-1, 3, -1, -1]))
    assert shapes(open_samples(x_of(numbers(1, 3, 8, 9)), negative)) == [{"x": (1, 3, 8, 9)}]
    assert "takes [?, 3, ?, ?]" in message(x_of(numbers(1, 2, 8, 9)), negative)
    assert shapes(open_samples(x_of(numbers(2)), interface(("x", TensorProto.FLOAT, None)))) == [{"x": (2,)}]


def test_optional_inputs_may_be_missing() -> None:
    feeds = [{"x": numbers(1, 7), "state": numbers(2, 1, 5)}]
    assert "input 'rate' is missing" in message(feeds, MIXED)
    assert shapes(open_samples(feeds, MIXED, optional=frozenset({"rate"})))[0].keys() == {"x", "state"}


def test_unusual_types(tmp_path: Path) -> None:
    model = interface(("x", TensorProto.BFLOAT16, ["n", 2]), ("s", TensorProto.STRING, ["n"]))
    values = numbers(3, 2).astype(ml_dtypes.bfloat16)
    np.savez(tmp_path / "s.npz", x=values, s=np.array(["a", "bc", "d"]))
    found = list(open_samples(tmp_path / "s.npz", model))
    assert found[0]["x"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in found]), values)
    assert [feeds["s"].tolist() for feeds in found] == [["a"], ["bc"], ["d"]]
    assert found[0]["s"].dtype == object
    big_endian = x_of(numbers(1, 3, 4, 4).astype(">f4"))
    (feeds,) = open_samples(big_endian, IMAGE)
    assert feeds["x"].dtype.isnative
    np.testing.assert_array_equal(feeds["x"], big_endian[0]["x"])


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    assert "there is no such file or folder; samples are .npz" in message(tmp_path / "no.npz")
    (tmp_path / "s.csv").write_text("1,2")
    assert message(tmp_path / "s.csv").startswith(f"'{tmp_path / 's.csv'}': samples are .npz")
    (tmp_path / "folder").mkdir()
    assert "folder' holds no samples" in message(tmp_path / "folder")
    np.savez(tmp_path / "s.npz", x=numbers(6, 3, 4, 4))
    whole = (tmp_path / "s.npz").read_bytes()
    for name, data in {"half": whole[: len(whole) // 2], "none": b"", "other": b"PK\x03\x04" + bytes(99)}.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(data)
        assert message(path).startswith(f"'{path}' cannot be read: ")
    with zipfile.ZipFile(tmp_path / "s.npz") as archive, zipfile.ZipFile(tmp_path / "short.npz", "w") as short:
        short.writestr("x.npy", archive.read("x.npy")[:-4])
    assert "short.npz' cannot be read: array 'x.npy' is truncated" in message(tmp_path / "short.npz")
    (tmp_path / "s.npy").write_bytes(b"\x93NUMPY")
    assert "s.npy' cannot be read" in message(tmp_path / "s.npy")
    np.savez(tmp_path / "empty.npz", x=numbers(0, 3, 4, 4))
    assert "empty.npz' holds no samples" in message(tmp_path / "empty.npz")
    (tmp_path / "folder" / "a.npz").write_bytes(whole[:50])
    assert "a.npz' cannot be read" in message(tmp_path / "folder")


def test_pickles_are_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=np.array([{}], object))
    np.save(tmp_path / "s.npy", np.array([{}], object))
    (tmp_path / "folder").mkdir()
    np.savez(tmp_path / "folder" / "s.npz", x=np.array([{}], object))
    for name in ("s.npz", "s.npy", "folder"):
        assert "it holds pickled Python objects, which are not read; save plain arrays" in message(tmp_path / name)


def test_random_samples_are_seeded() -> None:
    def values(samples: Samples) -> np.ndarray:
        return np.stack([feeds["x"] for feeds in samples])

    samples = random_samples(IMAGE, seed=3, count=4)
    assert samples.is_random
    assert samples.source == "random"
    assert len(samples) == 4
    assert values(samples).shape == (4, 1, 3, 4, 4)
    np.testing.assert_array_equal(values(samples), values(random_samples(IMAGE, seed=3, count=4)))
    np.testing.assert_array_equal(values(samples.take(2)), values(samples)[[0, 2]])
    assert samples.take(2).is_random
    assert len(np.unique(values(samples))) == 4 * 48  # samples differ
    assert not np.array_equal(values(samples), values(random_samples(IMAGE, seed=4, count=4)))
    assert open_samples("random", IMAGE, seed=3).is_random
    assert 0.8 < values(random_samples(IMAGE, count=20)).std() < 1.2


def test_random_sizes() -> None:
    model = interface(
        ("image", TensorProto.FLOAT, ["n", 3, "height", None]),
        ("ids", TensorProto.INT32, ["batch_size", "seq"]),
        ("mask", TensorProto.BOOL, ["?", "seq"]),
        ("state", TensorProto.FLOAT16, [2, "BatchSize", 5]),
        ("words", TensorProto.STRING, [3]),
        ("bytes", TensorProto.UINT8, [1, "?", "?", -1]),
    )
    samples = random_samples(model, count=3)
    assert shapes(samples)[0] == {
        "image": (1, 3, 64, 64),
        "ids": (1, 16),
        "mask": (1, 16),
        "state": (2, 1, 5),
        "words": (3,),
        "bytes": (1, 16, 16, 16),
    }
    for feeds in samples:
        assert set(np.unique(feeds["ids"])) == {0, 1} == set(np.unique(feeds["bytes"]))
        assert feeds["mask"].any()
        assert not feeds["mask"].all()
        assert feeds["words"].tolist() == ["a"] * 3
        assert feeds["state"].dtype == np.float16
    assert "image" not in next(iter(random_samples(model, optional=frozenset({"image"}))))
    with pytest.raises(SampleError, match=r"^input 'x' does not state how many axes it has, so no random values"):
        random_samples(interface(("x", TensorProto.FLOAT, None)))
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    with pytest.raises(SampleError, match=r"^input 's' is no tensor"):
        random_samples(interface_of(helper.make_value_info("s", sequence)))
