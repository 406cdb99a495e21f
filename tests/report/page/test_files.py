"""Files beside a page: names that every file system takes, and cells that no spreadsheet computes."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from sparsebert.report.page import save_tables
from sparsebert.report.page.files import links
from sparsebert.report.table import Table


def table(title: str, *cells: str) -> Table:
    return Table(title, ("name",), tuple((cell,) for cell in cells))


def test_every_table_has_a_file_of_its_own(tmp_path: Path) -> None:
    tables = [table(title, title) for title in ("A", "a!", "A 2", "a", "A-2-2")]
    files = save_tables(tables, [], tmp_path)
    assert [files[id(each)][0].name for each in tables] == [
        "a.csv",
        "a-2.csv",
        "a-2-2.csv",
        "a-3.csv",
        "a-2-2-2.csv",
    ]
    assert all(files[id(each)][0].read_text().split("\n")[1] == each.title for each in tables)


def test_a_long_name_in_any_script_fits_a_file_system(tmp_path: Path) -> None:
    long = table("模" * 300, "x")
    (file,) = save_tables([long], [], tmp_path)[id(long)]
    assert file.exists()
    (link,) = links([file], tmp_path / "page.html")
    assert link.href.isascii()


@pytest.mark.parametrize("cell", ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+A(B1)", "\t=1"])
def test_a_name_is_never_a_formula(cell: str) -> None:
    assert list(csv.reader(io.StringIO(table("T", cell).csv())))[1] == [f"'{cell}".replace("\t", " ")]


@pytest.mark.parametrize("cell", ["-", "-0.31", "+1.2 points", "-3.1 ± 0.2", "-0.3 (0.1)", "a=b", "bert@2"])
def test_figures_and_other_names_stay_as_they_are(cell: str) -> None:
    assert list(csv.reader(io.StringIO(table("T", cell).csv())))[1] == [cell]
