"""The table of what methods take: a part of a model each, the latest of each method."""

from __future__ import annotations

from typing import Any

from sparsebert.bench.environment import detect
from sparsebert.report.memory_tables import memory_tables
from sparsebert.results import Record, stamp


def row(side: str, part: str = "BERT-base", **changes: Any) -> Record:
    fields = {
        "environment": detect().record(),
        "side": side,
        "part": part,
        "batch": 8,
        "tokens": 128,
        "density": 0.1,
        "trained": 84_936_194,
        "kept_bytes": 10_640_416,
        "held_bytes": 1_500_000_000,
        "peak_bytes": 2_500_000_000,
    }
    return stamp("memory", fields | changes)


def test_a_row_a_method() -> None:
    (table,) = memory_tables([row("movement"), row("smp", kept_bytes=1), row("smp")])
    assert table.title == "Training memory, BERT-base"
    assert table.rows[1] == ("smp", "84.9 M", "1,500 MB", "2,500 MB", "10.6 MB")
    assert len(table.rows) == 2
    assert "Density 10%, batch 8, 128 tokens" in table.notes[0]


def test_parts_are_kept_apart() -> None:
    tables = memory_tables([row("smp"), row("smp", "its encoder"), {"kind": "environment"}])
    assert [table.title for table in tables] == ["Training memory, BERT-base", "Training memory, its encoder"]
    assert memory_tables([{"kind": "environment"}]) == []
