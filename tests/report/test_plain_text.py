"""Names of any letters in tables and plots: shown as they are, but for escapes of control characters."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparsebert import results
from sparsebert.report.page import Report
from sparsebert.report.picture import Picture
from sparsebert.report.plain_text import figure_text, markdown_text, printable
from sparsebert.report.sections import Section
from sparsebert.report.table import Table

# Of what plots, Markdown, HTML, spreadsheets and terminals each read as more than a letter.
SIGNS = "$_*`~|\\<>[]()!&;#\"'=+-@^{}%:/ \t\n\r\x00\x1b[\x85\u2028\u202e\ud800\ufffe\u200b" + "aB1é中"
NAMES = st.text(st.sampled_from(SIGNS) | st.characters(), min_size=1, max_size=24)
HOSTILE = (
    "$$",
    "$x_{$",
    "_",
    "__init__",
    "a|b\\|c",
    "<script>alert(1)</script>",
    "&lt;",
    "\x1b[31m",
    "\ud800",
)


def shown(text: str) -> str:
    """A text as a reader sees it, with single spaces."""
    return " ".join(printable(text).split())


def of_html(page: str, tag: str) -> list[str]:
    """The texts of all elements with a tag."""
    texts: list[str] = []

    class Reader(HTMLParser):
        inside = False

        def handle_starttag(self, name: str, attributes: object) -> None:
            self.inside = name == tag
            if self.inside:
                texts.append("")

        def handle_endtag(self, name: str) -> None:
            self.inside = self.inside and name != tag

        def handle_data(self, data: str) -> None:
            if self.inside:
                texts[-1] += data

    Reader().feed(page)
    return [" ".join(text.split()) for text in texts]


class TestText:
    @pytest.mark.parametrize(
        ("text", "seen"),
        [
            ("a\x1b[31mb", r"a\x1b[31mb"),
            ("a\tb\x85c", "a b c"),
            ("two\nlines", "two\nlines"),
            ("\u202egnp.exe", r"\u202egnp.exe"),
            ("caf\udce9", r"caf\udce9"),
            ("é 中 ±\u00a01", "é 中 ±\u00a01"),
        ],
    )
    def test_control_characters_are_seen(self, text: str, seen: str) -> None:
        assert printable(text) == seen

    @given(NAMES)
    def test_what_is_printable_is_so_and_stays(self, name: str) -> None:
        text = printable(name)
        assert printable(text) == text
        text.encode()
        assert not {unicodedata.category(each) for each in text.replace("\n", "")} & {"Cc", "Cs", "Zl", "Zp"}

    @pytest.mark.parametrize(
        "name", ["avx512_bf16", "f(x; m_IMP * theta_0)", "82.0 [92.1 ± 0.1]", "*", "3 < 4", "5 $"]
    )
    def test_ordinary_names_have_no_backslash_in_markdown(self, name: str) -> None:
        assert markdown_text(name) == name


class TestTables:
    @settings(deadline=None)
    @given(st.lists(NAMES, min_size=2, max_size=2))
    @example(list(HOSTILE[:2]))
    @example(["a\\", "|"])
    def test_markdown_shows_each_cell_as_it_is(self, names: list[str]) -> None:
        markdown = (
            pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable(["table", "strikethrough"])
        )
        page = markdown.render(Table("", ("name", "value"), (tuple(names),)).markdown())
        assert of_html(page, "td") == list(map(shown, names))
        assert set(re.findall(r"<(\w+)", page)) <= {"table", "thead", "tbody", "tr", "th", "td"}

    @given(st.lists(NAMES, min_size=2, max_size=2))
    def test_csv_and_notebook_have_each_cell(self, names: list[str]) -> None:
        table = Table("", ("name", "value"), (tuple(names),))
        _, cells = csv.reader(io.StringIO(table.csv(), newline=""))
        assert [cell.removeprefix("'") for cell in cells] == [
            printable(name).removeprefix("'") for name in names
        ]
        (*_, row) = table._repr_html_().split("<tr>")
        assert of_html(row, "th") + of_html(row, "td") == list(map(shown, names))

    @pytest.mark.parametrize("name", HOSTILE)
    def test_a_page_shows_titles_sources_and_cells(self, name: str, tmp_path: Path) -> None:
        pytest.importorskip("jinja2")
        table = Table(f"Table of {name}", ("name", name), ((name, "1"),), (f"note on {name}",))
        records = [results.stamp("prune", {"environment": None})]
        report = Report(f"Results: {name}", records, [Section([table], [])], [name])
        page = report.html()
        page.encode()
        report.markdown().encode()
        assert of_html(page, "h1") == [shown(f"Results: {name}")]
        assert of_html(page, "h3") == [shown(f"Table of {name}")]
        assert page.count("<script>") == 1


class TestPlots:
    pytest.importorskip("matplotlib")

    def figure(self, name: str) -> object:
        from sparsebert.report.plots import new_figure

        figure, axes = new_figure()
        axes.plot([1, 1000], [1, 2], label=figure_text(name))
        axes.plot([1], [1], label="another")
        axes.set_xscale("log")
        axes.set_yticks([1, 2], [figure_text(name), "two"])
        axes.set_title(f"title {name}")
        axes.set_xlabel(f"label {name}")
        axes.annotate(f"note {name}", (1, 1))
        axes.legend()
        figure.suptitle(f"figure {name}")
        return figure

    @pytest.mark.filterwarnings("ignore:Glyph")
    @settings(deadline=None, max_examples=8, derandomize=True)
    @given(NAMES)
    @example("$$")
    @example("$x_{$")
    @example("_name")
    @example("\x00\ud800")
    def test_a_plot_shows_names_as_they_are(self, name: str) -> None:
        from sparsebert.report.page.themed_svg import themed_svg

        svg = themed_svg(self.figure(name), "p-", f"alternative of {printable(name)}")
        svg.encode()
        texts = [
            " ".join("".join(each.itertext()).split()) for each in ElementTree.fromstring(svg).iter("text")
        ]
        seen = "".join(texts).replace(" ", "")
        for text in ("title", "label", "note", "figure"):
            assert (text + shown(name)).replace(" ", "") in seen
        # As the label of a curve and as the name of a tick.
        assert seen.count(shown(name).replace(" ", "")) >= 6
        assert "another" in texts
        assert r"\mathdefault" not in seen

    def test_a_picture_has_a_file_and_words(self, tmp_path: Path) -> None:
        for name in HOSTILE:
            picture = Picture(
                f"picture {name}", f"what {name} shows", lambda name=name: self.figure(name), name
            )
            assert picture.png().startswith(b"\x89PNG")
            (picture.alt + picture.caption + picture.stem).encode()
