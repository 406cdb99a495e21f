"""The table of two revisions: the latest measurement of each case, base by base."""

from __future__ import annotations

from typing import Any

from sparsebert.bench.environment import detect
from sparsebert.report.format import BUSY_NOTE
from sparsebert.report.revision_tables import revision_tables
from sparsebert.report.sections import KINDS
from sparsebert.results import Record, stamp


def row(case: str, ratio: float = 1.02, **changes: Any) -> Record:
    fields = {
        "environment": detect().record() | {"revision": "abc1234"},
        "base": "0123456789ab",
        "case": case,
        "ratio": {"median": ratio, "p20": 0.99, "p80": 1.04},
        "base_us": {"median": 1234.5, "p20": 1200.0, "p80": 1300.0},
        "here_us": {"median": 1210.3, "p20": 1190.0, "p80": 1290.0},
        "rounds": 21,
        "error": 0.0,
        "must": 0.98,
        "passed": ratio >= 0.98,
        "busy": False,
    }
    return stamp("revision", fields | changes)


def test_each_case_shows_its_latest_measurement() -> None:
    (table,) = revision_tables([row("a", 0.9), row("b"), row("a", 0.95, busy=True)])
    assert table.title == "Speed against revision 0123456789ab"
    assert table.rows == (
        ("a", "0.95x?", "0.99, 1.04", "1,234.5", "1,210.3", "NO"),
        ("b", "1.02x", "0.99, 1.04", "1,234.5", "1,210.3", "yes"),
    )
    assert "this revision (abc1234)" in table.notes[0]
    assert table.notes[1:] == (BUSY_NOTE,)


def test_bases_and_machines_have_tables_of_their_own() -> None:
    rows = [row("a"), row("a", base="another"), {"kind": "environment"}]
    assert len(revision_tables(rows)) == 2
    elsewhere = row("a", environment=rows[0]["environment"] | {"cpu": "another"})
    assert len(KINDS["revisions"].tables([*rows, elsewhere])) == 3
