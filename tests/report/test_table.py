"""Tables of text."""

from __future__ import annotations

from sparsebert.report.table import Table


def _table(columns: int, rows: int = 1) -> Table:
    return Table(
        "T",
        tuple(f"c{i}" for i in range(columns)),
        tuple(tuple("x" * columns) for _ in range(rows)),
        ("note",),
    )


class TestMarkdown:
    def test_columns_stay_side_by_side_while_they_fit_a_page(self) -> None:
        assert len(_table(14).markdown().splitlines()) == 7  # title, blank, head, rule, row, blank, note

    def test_a_very_wide_table_shows_its_columns_as_rows(self) -> None:
        wide = _table(15)
        assert wide.markdown() == wide.transposed().markdown()
        assert "| c14 | x |" in wide.markdown()

    def test_a_table_that_is_longer_than_wide_is_not_turned(self) -> None:
        assert "| c0 | c1 |" in _table(15, rows=15).markdown()
