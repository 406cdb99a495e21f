"""The measured roofline: points, ceilings and shares, by hand; machines apart, and records without FLOP."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsebert.report.cpu_roofline import CACHE, COMPUTE, MEMORY, cpu_roofline_tables, rooflines
from sparsebert.report.cpu_roofline_plots import cpu_roofline_figure, cpu_roofline_pictures
from sparsebert.report.profile_tables import NAMES, profile_tables
from sparsebert.report.sections import KINDS, sections

CEILINGS: dict[str, Any] = {
    "flops": {"fp32": 100e9, "int8": 400e9},
    "products": {"fp32": "oneDNN fp32 512x512x512", "int8": "oneDNN int8 512x512x512"},
    "read": 10e9,
    "copy": 12e9,
    "cache_read": 50e9,
    "cache_bytes": 2**20,
    "array_bytes": 2**28,
    "threads": 1,
    "rounds": 9,
    "medians": {},
}


def operation(part: str = "up", flops: float = 1e9, moved: float = 2e6, **changes: Any) -> dict[str, Any]:
    fields = {
        "part": part,
        "precision": "fp32",
        "format": "dense",
        "count": 1,
        "flops": flops,
        "bytes": moved,
        "weight_bytes": 10**6,
    }
    return fields | changes


@pytest.fixture
def profile(bench_record: Any) -> Any:
    """A "profile" record of a side, with one operation that takes 20 ms of a batch of 25."""

    def make(side: str = "dense, oneDNN", sparsity: float = 0.9, **changes: Any) -> dict[str, Any]:
        row = {**bench_record(sparsity), "kind": "profile", "side": side, "tolerance": "fp32"}
        times = dict.fromkeys(NAMES, 0.0) | {"up": 20.0, "python": 5.0}
        return row | {"parts_ms": times, "operations": [operation()], "ceilings": CEILINGS} | changes

    return make


def only_point(row: dict[str, Any]) -> Any:
    ((point,),) = (roofline.points() for roofline in rooflines([row]))
    return point


def test_a_point_is_useful_flop_per_byte_and_per_second_under_the_ceilings(profile: Any) -> None:
    point = only_point(profile())
    assert point.intensity == 500
    assert point.rate == pytest.approx(50e9)  # 1 GFLOP in 20 ms
    assert point.attainable == pytest.approx(100e9)
    assert point.share == pytest.approx(0.5)
    assert point.bound == COMPUTE
    assert (point.milliseconds, point.batch_milliseconds) == (20, 25)


@pytest.mark.parametrize(("flops", "shown", "explained"), [(2.004e9, "100%", False), (2.04e9, "102%", True)])
def test_a_share_over_a_hundred_per_cent_is_explained(
    profile: Any, flops: float, shown: str, explained: bool
) -> None:
    (table,) = cpu_roofline_tables([profile(operations=[operation(flops=flops)])])
    assert shown in table.markdown()
    assert ("as clocks vary" in table.markdown()) == explained


@pytest.mark.parametrize(
    ("moved", "count", "bound", "attainable"),
    [
        pytest.param(4e8, 1, MEMORY, 25e9, id="too large for the cache: 40 ms"),
        pytest.param(2e9, 2000, CACHE, 25e9, id="matrices that fit: 40 ms"),
    ],
)
def test_where_bytes_take_longer_than_flop_the_bandwidth_of_their_level_is_the_bound(
    profile: Any, moved: float, count: int, bound: str, attainable: float
) -> None:
    point = only_point(profile(operations=[operation(moved=moved, count=count)]))
    assert point.bound == bound
    assert point.attainable == pytest.approx(attainable)


def test_without_a_known_cache_memory_is_the_bound(profile: Any) -> None:
    ceilings = CEILINGS | {"cache_bytes": None, "cache_read": None}
    row = profile(operations=[operation(moved=2e9, count=2000)], ceilings=ceilings)
    assert only_point(row).bound == MEMORY
    (table,) = cpu_roofline_tables([row])
    assert "the last-level cache is not known" in " ".join(table.notes)


def test_each_precision_of_a_part_has_its_own_ceiling(profile: Any) -> None:
    parts = [operation(flops=1e9), operation(flops=1e9, precision="int8")]
    point = only_point(profile(operations=parts))
    assert point.attainable == pytest.approx(2e9 / (10e-3 + 2.5e-3))
    assert point.precision == "fp32, int8"


def test_a_precision_without_a_line_has_that_of_the_higher_one(profile: Any) -> None:
    """This CPU multiplies bf16 no faster than fp32."""
    assert only_point(profile(operations=[operation(precision="bf16")])).attainable == pytest.approx(100e9)


def test_fp64_has_no_share_and_is_not_drawn(profile: Any) -> None:
    row = profile(operations=[operation(precision="fp64")])
    assert only_point(row).share is None
    (table,) = cpu_roofline_tables([row])
    assert table.rows == (("dense, oneDNN", "50 (-)"),)
    assert "-: no ceiling was measured for this precision." in table.notes
    assert cpu_roofline_pictures([row]) == []


def test_a_table_has_a_row_for_each_side_and_ticket_the_dense_ones_once_and_first(profile: Any) -> None:
    rows = [profile(side, sparsity) for sparsity in (0.9, 0.5) for side in ("sparse", "dense, oneDNN")]
    rows.append(profile("sparse", 0.5, parts_ms=dict.fromkeys(NAMES, 0.0) | {"up": 40.0}))
    (table,) = cpu_roofline_tables(rows)
    assert table.columns == ("side", "up and activation")
    assert table.rows == (
        ("dense, oneDNN", "50 (50%)"),
        ("sparse, 50%", "25 (25%)"),
        ("sparse, 90%", "50 (50%)"),
    )


def test_a_bandwidth_that_bounds_a_part_is_named(profile: Any) -> None:
    (table,) = cpu_roofline_tables([profile(operations=[operation(moved=4e8)])])
    assert table.rows == (("dense, oneDNN", "50 (200% memory)"),)


def test_the_notes_hold_the_ceilings_and_what_counts(profile: Any) -> None:
    (table,) = cpu_roofline_tables([profile()])
    text = " ".join(table.notes)
    assert "fp32 100 GFLOP/s (oneDNN fp32 512x512x512); int8 400 GFLOP/s" in text
    assert "memory 10 GB/s reading and 12 copying; last-level cache (1 MiB) 50 GB/s reading" in text
    assert "bf16 " not in text.partition("Ceilings")[2]
    assert "not biases, activation functions, softmax or pruned weights" in text


def test_figures_of_a_busy_machine_are_marked(profile: Any) -> None:
    (table,) = cpu_roofline_tables([profile(busy=True)])
    assert table.rows == (("dense, oneDNN", "50? (50%)"),)
    assert "do not quote" in table.notes[-1]


def test_machines_are_kept_apart_and_the_page_says_so(profile: Any) -> None:
    here = profile()
    there = profile(environment=here["environment"] | {"cpu": "Another CPU"})
    for made in (cpu_roofline_tables([here, there]), cpu_roofline_pictures([here, there])):
        assert len({each.title for each in made}) == 2
        assert made[1].title.endswith(
            f"(Another CPU, cores: {here['environment']['cores']}, {here['environment']['kernels']})"
        )
    (table, _) = cpu_roofline_tables([here, there])
    assert "The records hold another machine's profiles, which are kept apart." in table.notes


def test_profiles_of_several_runs_say_whose_lines_are_drawn(profile: Any) -> None:
    faster = CEILINGS | {"flops": {"fp32": 200e9}, "products": {"fp32": "oneDNN"}}
    (table,) = cpu_roofline_tables([profile(), profile("sparse", ceilings=faster)])
    assert (
        "The profiles are of several runs: the lines are the last one's, each share its own." in table.notes
    )


def test_records_of_earlier_versions_have_no_roofline_and_their_profile_says_so(profile: Any) -> None:
    row = {name: value for name, value in profile().items() if name not in ("operations", "ceilings")}
    (section,) = sections([row])
    assert section.title == "Where the time goes"
    assert "No roofline: an earlier version wrote these records" in section.tables[0].notes[-1]
    assert not any("No roofline" in note for note in profile_tables([profile()])[0].notes)


def test_the_picture_shows_baselines_and_the_fastest_sparse_side_the_numbers_all(profile: Any) -> None:
    rows = [profile(side) for side in ("dense, oneDNN", "dense, fused", "sparse", "sparse, fused")]
    (picture,) = cpu_roofline_pictures(rows)
    assert picture.title.startswith("Measured roofline: element-sparse layers, bert-base")
    assert "dense, oneDNN: up and activation 50 (50%), median 50%" in picture.alt
    assert "sparse, fused, 90%: up and activation 50 (50%)" in picture.alt
    assert "dense, fused" not in picture.alt
    assert picture.numbers is not None
    assert [row[0] for row in picture.numbers.rows] == [
        "dense, oneDNN",
        "dense, fused",
        "sparse, 90%",
        "sparse, fused, 90%",
    ]
    assert picture.numbers.rows[0][1:] == (
        *("up and activation", "fp32", "500", "5e+10", "1e+11", "compute", "20", "false"),
    )


def test_slopes_lines_and_marks_are_drawn_at_their_places(profile: Any) -> None:
    pytest.importorskip("matplotlib")
    (roofline,) = rooflines([profile(), profile("sparse")])
    (axes,) = cpu_roofline_figure(roofline).axes
    memory, cache, fp32, int8 = (np.asarray(line.get_xydata()) for line in axes.get_lines())
    assert memory[-1] == pytest.approx([40, 400])  # 400 GFLOP/s at 10 GB/s
    assert cache[-1] == pytest.approx([8, 400])
    assert fp32[:, 1].tolist() == [100, 100]
    assert int8[:, 1].tolist() == [400, 400]
    marks = [np.asarray(each.get_offsets()) for each in axes.collections]
    assert [mark.tolist() for mark in marks if mark.size] == [[[500, 50]], [[500, 50]]]
    assert KINDS["cpu_roofline"].pictures([profile()])[0].png().startswith(b"\x89PNG")


def test_no_points_are_no_picture(profile: Any) -> None:
    (roofline,) = rooflines([profile(operations=[])])
    with pytest.raises(ValueError, match="nothing to plot"):
        cpu_roofline_figure(roofline)
