"""Profiles: one table and one picture for each workload, the parts in the order of a bar."""

from __future__ import annotations

from typing import Any

import pytest

from sparsebert.report.profile_tables import NAMES, profile_figure, profile_pictures, profile_tables
from sparsebert.report.sections import KINDS


def profile(bench_record: Any, side: str, **parts: float) -> dict[str, Any]:
    row = {**bench_record(), "kind": "profile", "side": side}
    return row | {"parts_ms": dict.fromkeys(NAMES, 0.0) | parts}


def test_a_row_for_each_side_with_the_share_of_each_part_that_takes_time(bench_record: Any) -> None:
    rows = [
        profile(bench_record, "dense, oneDNN", qkv=30.0, python=10.0),
        profile(bench_record, "sparse, fused", qkv=5.0, layout=5.0),
    ]
    (table,) = profile_tables(rows)
    assert table.columns == ("side", "ms a batch", "query, key, value", "layout", "Python")
    assert table.rows == (
        ("dense, oneDNN", "40.00", "30.00 (75%)", "0.00 (0%)", "10.00 (25%)"),
        ("sparse, fused", "10.00", "5.00 (50%)", "5.00 (50%)", "0.00 (0%)"),
    )
    assert table.title.startswith("Where the time goes: 90.0% element-sparse")


def test_a_later_profile_of_a_side_replaces_the_earlier_one_and_busy_ones_are_marked(
    bench_record: Any,
) -> None:
    rows = [
        profile(bench_record, "sparse", up=2.0),
        {**profile(bench_record, "sparse", up=3.0), "busy": True},
    ]
    (table,) = profile_tables(rows)
    assert [row[1] for row in table.rows] == ["3.00?"]
    assert "do not quote" in table.notes[-1]


def test_the_picture_stacks_the_parts_of_each_side(bench_record: Any) -> None:
    pytest.importorskip("matplotlib")
    rows = [profile(bench_record, "dense", up=2.0, norm=1.0), profile(bench_record, "sparse", up=1.0)]
    (picture,) = profile_pictures(rows)
    assert picture.alt.endswith(
        "dense 3.0 ms, most of it up and activation (2.0 ms, 67%); sparse 1.0 ms, most of it up and "
        "activation (1.0 ms, 100%)."
    )
    assert picture.numbers is not None
    assert picture.numbers.rows[0] == ("dense", "up and activation", "2", "false")
    (axes,) = profile_figure(rows).axes
    assert [bar.get_width() for bar in axes.patches] == [2.0, 1.0, 1.0, 0.0]
    assert KINDS["profile"].pictures(rows)[0].png().startswith(b"\x89PNG")


def test_no_records_are_no_picture() -> None:
    with pytest.raises(ValueError, match="nothing to plot"):
        profile_figure([])
