"""Another library's error in one line."""

from __future__ import annotations

import pytest

from sparsebert_kernels.errors import one_line


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
