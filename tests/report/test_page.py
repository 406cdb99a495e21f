"""A report's page: whole in one file, readable without pictures; nothing of a record is taken for HTML."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from typing import Any

import pytest

from sparsebert.report.page import Report
from sparsebert.report.sections import sections
from tests.report.test_run_tables import rounds

pytest.importorskip("jinja2")
DATED = {"timestamp": "2026-11-21T10:00:00+00:00"}
VOID = {"meta", "img", "br", "link"}


def page(*records: Any) -> Report:
    return Report("Results: all of it", records, sections(records))


@pytest.fixture
def sweep(bench_record: Any) -> list[Any]:
    return [bench_record(0.7), bench_record(0.9, busy=True, busy_reasons=["somebody compiles"])]


class Elements(HTMLParser):
    """Tags with their attributes; fails where one is not closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_it_needs_nothing_else(sweep: list[Any]) -> None:
    pytest.importorskip("matplotlib")
    text = page(*sweep).html()
    elements = Elements(text)
    assert not [tag for tag, _ in elements.found if tag in ("script", "link", "iframe", "object")]
    assert "http" not in re.sub(r'http-equiv|src="data:[^"]*"', "", text)
    assert "url(" not in text
    assert "default-src 'none'" in text
    (picture,) = elements.of("img")
    assert str(picture["src"]).startswith("data:image/png;base64,iVBOR")
    assert str(picture["alt"]).startswith("Speed-up against sparsity, element, 70% to 90%.")


def test_every_table_has_a_heading_headers_cells_and_notes(sweep: list[Any]) -> None:
    made = page(*sweep)
    text = made.html()
    elements = Elements(text)
    assert len(elements.of("table")) == len(made.tables) == 3
    assert "<summary>3 tables</summary>" in text
    for number, table in enumerate(made.tables, start=1):
        assert f'<h2 id="table-{number}">{table.title}</h2>' in text
        for cell in table.rows[0][1:]:
            assert f"<td>{cell}</td>" in text
    assert "<td>3.50x?</td>" in text
    assert "THE MACHINE IS TOO BUSY TO MEASURE" in text
    assert {attributes["href"] for attributes in elements.of("a")} == {"#table-1", "#table-2", "#table-3"}


def test_what_records_say_is_text() -> None:
    (row,) = rounds("imp", [0.5], [0.8], model="<script>alert('x')</script>&", **DATED)
    text = page(row).html()
    assert "<script" not in text
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
    assert "<img" not in text
    assert "3.50x" in text


def test_without_jinja2_it_is_said_what_to_install(sweep: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ValueError, match=r"needs jinja2: pip install 'sparsebert\[report\]'"):
        page(*sweep).html()


def test_markdown_holds_the_same_tables(sweep: list[Any]) -> None:
    made = page(*sweep)
    text = made.markdown()
    assert text.startswith("# Results: all of it\n\nRecords of ")
    for table in made.tables:
        assert table.markdown() in text
