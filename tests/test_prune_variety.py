"""Variants of pictures: what they are, when there are none, and which share they are in."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.prune.variety import Varied, enlarged, spliced
from graphopt.samples import Samples, open_samples
from tests.test_prune import model_of

PICTURES = "m (float[N,1,H,W] x, int64[N] k) => (float[N,1,H,W] y) { y = Identity(x) }"


def pictures(count: int, size: int = 16) -> Samples:
    """Return pictures of one colour each, the number of the sample."""
    values = np.zeros((count, 1, size, size), np.float32) + np.arange(count, dtype=np.float32)[:, None, None, None]
    return open_samples({"x": values, "k": np.arange(count)}, model_of(PICTURES).interface)


def test_variants_follow_their_samples_and_stay_in_their_shares() -> None:
    varied = list(Varied(pictures(8), variants=2))
    assert len(varied) == len(Varied(pictures(8), variants=2)) == 24
    for index, feeds in enumerate(varied):
        number = int(feeds["k"][0])
        assert number % 4 == index % 4
        assert (feeds["x"] == number).all(), "a cut-out of a picture of one colour has that colour"


def test_variants_are_the_same_every_time_and_differ_from_each_other() -> None:
    noise = np.random.default_rng(0).normal(size=(4, 1, 24, 24)).astype(np.float32)
    samples = open_samples({"x": noise, "k": np.arange(4)}, model_of(PICTURES).interface)
    varied = Varied(samples, variants=2)
    first, again = ([feeds["x"] for feeds in varied] for _ in range(2))
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert len({one.tobytes() for one in first}) == 12


@pytest.mark.parametrize("size", [1, 8])
def test_what_is_no_picture_has_no_variants(size: int) -> None:
    assert len(list(Varied(pictures(3, size)))) == 3


def test_a_number_of_samples_that_is_no_multiple_of_the_shares() -> None:
    numbers = [int(feeds["k"][0]) for feeds in Varied(pictures(6), variants=1)]
    assert numbers == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 4, 5]


def test_cut_outs_keep_size_and_order_of_pixels() -> None:
    rows = np.repeat(np.arange(32.0, dtype=np.float32)[:, None], 20, axis=1)[None, None]
    found = enlarged(rows, np.random.default_rng(1))
    assert found.shape == rows.shape
    steps = np.diff(found[0, 0, :, 0])
    assert set(np.unique(steps)) == {0.0, 1.0}, "nearest neighbours, in order, some twice"
    assert found[0, 0, -1, 0] - found[0, 0, 0, 0] < 31


def test_large_pictures_have_fewer_variants() -> None:
    large = np.broadcast_to(np.float32(0), (8, 1, 1024, 1024))  # half of the pixels that are enough
    samples = open_samples({"x": large, "k": np.arange(8)}, model_of(PICTURES).interface)
    assert len(Varied(samples, variants=3)) == 16
    assert len(Varied(samples.take(4), variants=3)) == 16
    assert len(Varied(samples.take(2), variants=3)) == 8


SEQUENCES = "m (int64[1,L] x, int64[1,L] k) => (int64[1,L] y) { y = Add(x, k) }"


def sequences(lengths: list[int]) -> Samples:
    """Return sequences that are the number of the sample throughout."""
    pairs = [{name: np.full((1, length), number) for name in "xk"} for number, length in enumerate(lengths)]
    return open_samples(pairs, model_of(SEQUENCES).interface)


def test_sequences_are_spliced_with_others_of_their_share() -> None:
    found = list(Varied(sequences([9] * 12), variants=2))
    assert len(found) == 36
    mixed = 0
    for index, feeds in enumerate(found):
        assert np.array_equal(feeds["x"], feeds["k"]), "all inputs are cut at the same place"
        assert feeds["x"].shape == (1, 9)
        numbers = set(feeds["x"].ravel().tolist())
        assert {number % 4 == 3 for number in numbers} == {index % 4 == 3}
        mixed += len(numbers) == 2
    assert mixed > 12


def test_sequences_of_other_lengths() -> None:
    one, other = ({"x": np.arange(start, stop)[None]} for start, stop in ((0, 9), (100, 104)))
    for seed in range(9):
        found = spliced(one, other, np.random.default_rng(seed))["x"].ravel()
        start = int(np.count_nonzero(found < 100))
        assert np.array_equal(found[:start], np.arange(start))
        assert np.array_equal(found[start:], np.arange(100, 104)[-(9 - start) :])
    pair = {"x": np.zeros((2, 9), np.int64)}
    assert spliced(one, pair, np.random.default_rng(0)) is one
    assert spliced({"x": np.array([[5]])}, other, np.random.default_rng(0))["x"].tolist() == [[5]]


def test_what_is_more_than_sequences_has_no_variants() -> None:
    model = model_of("m (int64[1,L] x, float[1,L] k) => (int64[1,L] y) { y = Identity(x) }")
    given = {"x": np.zeros((1, 9), np.int64), "k": np.zeros((1, 9), np.float32)}
    assert len(list(Varied(open_samples([given] * 4, model.interface)))) == 4
