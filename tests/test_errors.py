"""Another library's error in one line, and unknown names."""

from __future__ import annotations

import pytest

from sparsebert_kernels.errors import one_line, unknown


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError(" a\n b\tc "), "a b c"),
        (KeyError(), "KeyError"),
        (ValueError("x" * 201), f"{'x' * 200}..."),
        (ValueError("x" * 200), "x" * 200),
    ],
)
def test_one_line(error: Exception, line: str) -> None:
    assert one_line(error) == line


def test_an_unknown_name_is_answered_by_the_known_ones_and_the_nearest() -> None:
    assert str(unknown("task", "sst", ["sst2", "mrpc"])) == (
        "unknown task 'sst'; known: mrpc, sst2; did you mean 'sst2'?"
    )
    assert str(unknown("task", "x", [])) == "unknown task 'x'; known: none"


def test_of_many_known_names_an_error_lists_the_nearest_and_counts_the_others() -> None:
    cells = [f"{row}/{column}" for row in ("imp", "random", "dense", "snip") for column in "abcdefghi"]
    assert str(unknown("cell", "imp/z", cells)).startswith("unknown cell 'imp/z'; nearest of 36: imp/")
    (nearest, *_) = str(unknown("cell", "snip/aa", cells)).partition("nearest of 36: ")[2].split(", ")
    assert nearest == "snip/a"
    # A name like no other is not answered by silence.
    assert str(unknown("cell", "????", cells)).count("/") == 3
