"""What removal is worth, in tables: sizes beside the published ones, speed by batch and length."""

from __future__ import annotations

from typing import Any

from sparsebert.report.compaction_tables import compaction_tables


def size(least: int, exact: int, stored: int, accuracy: float) -> dict[str, Any]:
    return {
        "kind": "compaction",
        "model": "tiny",
        "task": "sst2",
        "min_row_weights": least,
        "density": 0.03,
        "weights": {"configured": 1000, "exact": exact, "stored": stored},
        "metrics": {"accuracy": accuracy},
    }


def measured(bench_record: Any) -> list[dict[str, Any]]:
    workload = bench_record()["workload"] | {"model": "tiny"}
    return [
        bench_record(0.97, name, workload=workload, min_row_weights=0)
        for name in ("sparse", "compact", "onednn", "eager")
    ]


def test_sizes_stand_beside_accuracy_and_what_was_published() -> None:
    (table,) = compaction_tables([size(0, 500, 520, 0.8), size(10, 250, 250, 0.75)])
    assert table.rows == (
        ("exact", "3.00%", "50.00%", "52.00%", "80.0", "47.43 %, 1.37x"),
        (
            "rows of fewer than 10 weights dropped (lossy)",
            "3.00%",
            "25.00%",
            "25.00%",
            "75.0",
            "25.19 %, 1.76x",
        ),
    )


def test_sides_of_one_batch_and_length_share_a_row(bench_record: Any) -> None:
    sides = measured(bench_record)
    _, speeds = compaction_tables([size(0, 500, 520, 0.8), *sides])
    ((rule, batch, _, *figures),) = speeds.rows
    assert (rule, batch) == ("exact", str(sides[0]["workload"]["batch"]))
    assert len(figures) == 7


def test_models_have_tables_of_their_own(bench_record: Any) -> None:
    other = size(0, 500, 520, 0.9) | {"model": "other"}
    tables = compaction_tables([size(0, 500, 520, 0.8), *measured(bench_record), other])
    assert [table.title for table in tables] == [
        "Compaction: tiny on sst2, SMP-S",
        "Speed after compaction, whole model, fp32",
        "Compaction: other on sst2, SMP-S",
    ]


def test_without_sizes_there_is_no_table(bench_record: Any) -> None:
    assert compaction_tables([bench_record(0.9)]) == []
