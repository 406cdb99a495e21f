"""Which bucket a batch goes to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebert.cuda_graphs.buckets import MIN_LENGTH, Buckets


@given(rows=st.integers(1, 5000), length=st.integers(1, 512))
def test_by_default_both_sides_are_rounded_up_by_less_than_half(rows: int, length: int) -> None:
    bucket = Buckets.parse(None, 512).shape_for(rows, length)
    assert bucket is not None
    assert rows <= bucket[0] <= max(1.5 * rows - 0.5, rows)
    assert length <= bucket[1] <= max(1.5 * length - 0.5, MIN_LENGTH)


def test_rounded_steps() -> None:
    buckets = Buckets.parse(None)
    steps = sorted({buckets.shape_for(count, 1)[0] for count in range(1, 129)})  # type: ignore[index]
    assert steps == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]
    steps = sorted({buckets.shape_for(1, count)[1] for count in range(1, 129)})  # type: ignore[index]
    assert steps == [16, 24, 32, 48, 64, 96, 128]


def test_a_length_is_rounded_to_the_models_positions_at_most() -> None:
    buckets = Buckets.parse(None, 514)
    assert buckets.shape_for(1, 513) == (1, 514)
    assert buckets.shape_for(1, 515) is None


def test_of_the_shapes_the_one_with_the_fewest_tokens_is_used() -> None:
    buckets = Buckets.parse([(32, 512), (8, 128), (32, 128), (1, 512)])
    assert buckets.shape_for(8, 128) == (8, 128)
    assert buckets.shape_for(9, 20) == (32, 128)
    assert buckets.shape_for(1, 129) == (1, 512)
    assert buckets.shape_for(2, 129) == (32, 512)
    assert buckets.shape_for(33, 8) is None


def test_a_number_of_tokens_holds_batches_of_any_length() -> None:
    buckets = Buckets.parse([4096])
    assert buckets.shape_for(32, 100) == (32, 128)
    assert buckets.shape_for(20, 100) == (32, 128)
    assert buckets.shape_for(8, 500) == (8, 512)
    assert buckets.shape_for(9, 500) is None
    assert buckets.shape_for(200, 5) == (256, 16)
    assert Buckets.parse([100]).shape_for(1, 97) == (1, 100)
    assert Buckets.parse([4096, (4, 40)]).shape_for(4, 40) == (4, 40)


@given(
    buckets=st.lists(st.integers(1, 300) | st.tuples(st.integers(1, 9), st.integers(1, 60)), min_size=1),
    rows=st.integers(1, 9),
    length=st.integers(1, 60),
)
def test_a_bucket_holds_its_batch(buckets: list[Any], rows: int, length: int) -> None:
    chosen = Buckets.parse(buckets, 60).shape_for(rows, length)
    if chosen is None:
        assert not any(b[0] >= rows and b[1] >= length for b in buckets if isinstance(b, tuple))
    else:
        assert chosen[0] >= rows
        assert length <= chosen[1] <= 60


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        ([], r"buckets must be a list of numbers of tokens and shapes, .*; got \[\]"),
        ("32", "buckets must be a list .*; got '32'"),
        (4096, "buckets must be a list .*; got 4096"),
        ([0], r"a bucket must be a positive number of tokens or \(sequences, tokens of each\), got 0"),
        ([True], "a bucket must be .*, got True"),
        ([(8, 0)], r"a bucket must be .*, got \(8, 0\)"),
        ([(8, 16, 2)], r"a bucket must be .*, got \(8, 16, 2\)"),
        ([4.5], "a bucket must be .*, got 4.5"),
        ([(8, 600)], r"bucket 8 x 600 is longer than the model's 512 positions; use \(8, 512\)"),
    ],
)
def test_malformed_buckets_are_refused(buckets: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Buckets.parse(buckets, 512)
