"""Tables and plots of fused models as a server runs them."""

from __future__ import annotations

from typing import Any

import pytest

from sparsebert.report.sections import KINDS
from sparsebert.report.serving_tables import line_pictures, serving_tables

MACHINE = {
    "cpu": "A CPU",
    "cores": 2,
    "gpu": None,
    "onednn": "3.12",
    "kernels": "avx512",
    "versions": {"torch": "2.13"},
}


def record(part: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "serving", "environment": MACHINE, "part": part, "busy": False, **fields}


def line(**fields: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "vary": "tokens",
        "usual": {"density": 0.1, "layers": 4},
        "points": [[32, 1.5], [3200, 120.0]],
        "constant_ms": 0.25,
        "slope_ms": 0.0375,
        "deviation": 0.0625,
    }
    return record("line", **{**given, **fields})


LATENCY = {"tokens": 16, "calls": 10_000, "p50_ms": 0.75, "p99_ms": 1.25, "longest_ms": 3.0}
SIDE = {"sentences": 320, "batch": 32, "seconds": 4.0, "speedup": 2.0, "tokens": 8000}
SIDE["padded_tokens"] = 16_000
THREADS = {"batch": 8, "threads": 2, "one_ms": 320.0, "many_ms": 170.0, "speedup": 1.9, "rounds": 7}


def test_every_part_has_its_table() -> None:
    rows = [
        line(),
        record("latency", **LATENCY),
        record("batches", side="fused", **SIDE),
        record("threads", **THREADS),
    ]
    lines, latency, batches, threads = serving_tables(rows)
    assert lines.rows == (("tokens", "32", "3200", "1.5", "120", "0.25", "6.2%"),)
    assert latency.rows == (("16", "10,000", "0.75", "1.25", "3.00"),)
    assert batches.rows == (("fused", "4.00", "80.0", "8,000", "16,000", "2.00x"),)
    assert threads.rows == (("8", "320.0", "2", "170.0", "1.90x"),)
    assert all("A CPU" in table.notes[0] for table in (lines, latency, batches, threads))


def test_only_the_latest_figure_counts() -> None:
    (table,) = serving_tables([line(), line(vary="layers"), line(deviation=0.5)])
    assert [(row[0], row[-1]) for row in table.rows] == [("tokens", "50.0%"), ("layers", "6.2%")]


def test_figures_of_a_busy_machine_are_marked() -> None:
    (table,) = serving_tables([record("latency", **LATENCY, busy=True)])
    assert table.rows[0][2:4] == ("0.75?", "1.25?")
    assert "do not quote" in table.notes[1]


class TestPictures:
    def test_show_each_line(self) -> None:
        pytest.importorskip("matplotlib")
        (picture,) = line_pictures([line(), record("threads", **THREADS)])
        assert picture.title == "Time against tokens"
        assert "2 measured points" in picture.alt
        assert picture.png().startswith(b"\x89PNG")

    def test_are_part_of_a_report(self) -> None:
        kind, rows = KINDS["serving"], [line(), {"kind": "other"}]
        assert len(kind.tables(rows)) == len(kind.pictures(rows)) == 1

    def test_a_record_without_a_field_is_an_error(self) -> None:
        broken = line()
        del broken["points"]
        with pytest.raises(ValueError, match="'serving'"):
            KINDS["serving"].tables([broken])
