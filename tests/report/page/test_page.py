"""A report's page: whole in one file, readable without pictures; nothing of a record is taken for HTML."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from dataclasses import replace
from typing import Any

import pytest

from sparsebert.report.page import Report
from sparsebert.report.sections import Section, sections
from sparsebert.report.table import Table
from tests.html_elements import Elements
from tests.report.test_run_tables import rounds

pytest.importorskip("jinja2")
DATED = {"timestamp": "2026-11-21T10:00:00+00:00"}


def page(*records: Any) -> Report:
    return Report("Results: all of it", records, sections(records))


@pytest.fixture
def sweep(bench_record: Any) -> list[Any]:
    return [bench_record(0.7), bench_record(0.9, busy=True, busy_reasons=["somebody compiles"])]


def test_it_needs_nothing_else(sweep: list[Any]) -> None:
    pytest.importorskip("matplotlib")
    text = page(*sweep).html()
    elements = Elements(text)
    assert not [tag for tag, _ in elements.found if tag in ("link", "iframe", "object", "image")]
    assert "http" not in text.replace("http-equiv", "")
    assert not re.search(r"url\((?!#p1-)", text)
    assert "default-src 'none'" in text


def test_no_script_runs_but_its_own(sweep: list[Any]) -> None:
    text = page(*sweep).html()
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\"" in text


def test_a_picture_is_named_and_described(sweep: list[Any]) -> None:
    pytest.importorskip("matplotlib")
    (picture,) = Elements(page(*sweep).html()).of("svg")
    assert picture["role"] == "img"
    assert str(picture["aria-label"]).startswith("Speed-up against sparsity, element, 70% to 90%.")


def test_the_numbers_of_a_picture_stand_below_it(sweep: list[Any]) -> None:
    made = page(*sweep)
    numbers = Table("Numbers", ("x", "y"), (("1", "2345"),))
    section = replace(made.sections[0], pictures=[replace(made.pictures[0], numbers=numbers, caption="How")])
    text = replace(made, sections=[section]).html()
    assert "<td>2345</td>" in text
    assert '<p class="note">How</p>' in text


def test_every_table_has_a_heading_headers_cells_and_notes(sweep: list[Any]) -> None:
    made = page(*sweep)
    text = made.html()
    elements = Elements(text)
    assert len(made.tables) == 3
    with_numbers = sum(picture.numbers is not None for picture in made.pictures)
    assert len(elements.of("table")) == len(made.tables) + with_numbers
    assert "3 tables and 1 picture, from 2 records" in text
    for number, table in enumerate(made.tables, start=1):
        assert f'<h3 id="table-{number}">{table.title}</h3>' in text
        for cell in table.rows[0][1:]:
            assert f"<td>{cell}</td>" in text
    assert "<td>3.50x?</td>" in text
    assert "THE MACHINE IS TOO BUSY TO MEASURE" in text


def test_contents_name_every_section_table_and_picture(sweep: list[Any]) -> None:
    elements = Elements(page(*sweep).html())
    links = {str(attributes["href"]) for attributes in elements.of("a")}
    assert links == {
        "#results",
        *(f"#section-{number}" for number in (1, 2)),
        *(f"#table-{number}" for number in (1, 2, 3)),
        "#picture-1",
    }
    assert links <= {f"#{attributes.get('id')}" for _, attributes in elements.found}


def test_what_records_say_is_text() -> None:
    (row,) = rounds("imp", [0.5], [0.8], model="<script>alert('x')</script>&", **DATED)
    text = page(row).html()
    assert len(Elements(text).of("script")) == 1
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;" in text


def test_machines_versions_and_days_are_said(bench_record: Any) -> None:
    first = bench_record(timestamp="2026-11-20T10:00:00+00:00")
    environment = first["environment"] | {"revision": "abc+"}
    made = page(first, bench_record(environment=environment), *rounds("imp", [0.5], [0.8], **DATED))
    assert made.dates.startswith("2026-11-20 to ")
    here, run = made.origins
    assert here.startswith(f"{environment['cpu']}, cores: {environment['cores']}")
    assert f"Python {environment['python']}, sparsebert {environment['sparsebert']} (revision " in here
    assert "abc+): 2 records, 2026-11-20 to " in here
    assert run == "machine not recorded, sparsebert 0.1.0, torch 2.13: 1 record, 2026-11-21"
    for text in (made.html(), made.markdown()):
        assert made.dates in text
        assert run in text


def test_a_record_need_not_say_when_it_was_made() -> None:
    for made in (page(*rounds("imp", [0.5], [0.8])), page(*rounds("imp", [0.5], [0.8], timestamp=None))):
        assert made.dates == "no day recorded"
        assert made.size == "1 table"


@pytest.mark.parametrize(
    "damaged",
    [{"environment": "a laptop"}, {"environment": 7}, {"environment": {"gpu": None}}],
    ids=str,
)
def test_a_damaged_environment_is_one_line(damaged: dict[str, Any]) -> None:
    made = page(*rounds("imp", [0.5], [0.8], **DATED))
    records = [row | damaged for row in made.records]
    with pytest.raises(
        ValueError, match=r"^a record for the tables of kind 'runs' is not as this version writes it"
    ):
        page(*records)


def test_the_same_records_give_the_same_page(sweep: list[Any]) -> None:
    assert page(*sweep).html() == page(*sweep).html()


def test_without_matplotlib_one_line_says_why_there_are_no_pictures(
    sweep: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = page(*sweep).html()
    assert "Without pictures: plots need matplotlib: pip install &#39;sparsebert[report]&#39;" in text
    assert "<svg" not in text
    assert "Not drawn: plots need matplotlib" in text
    assert "3.50x" in text


def test_without_jinja2_it_is_said_what_to_install(sweep: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ValueError, match=r"needs jinja2: pip install 'sparsebert\[report\]'"):
        page(*sweep).html()


def test_a_very_wide_table_is_read_from_top_to_bottom() -> None:
    columns = tuple(f"column {number}" for number in range(30))
    wide = Table("Wide", columns, (tuple(map(str, range(30))),))
    elements = Elements(Report("Wide", [], [Section([wide], [])]).html())
    assert len([each for each in elements.of("th") if each["scope"] == "row"]) == 29


def test_sources_are_named_once_the_title_cannot(sweep: list[Any]) -> None:
    made = replace(page(*sweep), sources=["a.jsonl", "<b>.jsonl"])
    assert "Sources: a.jsonl, &lt;b&gt;.jsonl" in made.html()
    assert "Sources: a.jsonl, \\<b>.jsonl" in made.markdown()


def test_markdown_holds_the_same_tables(sweep: list[Any]) -> None:
    made = page(*sweep)
    text = made.markdown()
    assert text.startswith("# Results: all of it\n\nRecords of ")
    for table in made.tables:
        assert table.markdown() in text
