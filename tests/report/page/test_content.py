"""A page stays below 3 MB, whatever it is made of, and says what it leaves out."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from sparsebert.report.page import Report
from sparsebert.report.picture import Picture
from sparsebert.report.plots import new_figure
from sparsebert.report.sections import Section
from sparsebert.report.table import Table
from tests.html_elements import Elements

if TYPE_CHECKING:
    from matplotlib.figure import Figure

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")


def html(*sections: Section) -> str:
    text = Report("Results", [], sections).html()
    assert len(text.encode()) < 3_000_000
    Elements(text)
    return text


def picture(number: int, points: int, drawn: list[int] | None = None) -> Picture:
    """Return a picture whose SVG takes about 110 bytes for each point."""

    def draw() -> Figure:
        if drawn is not None:
            drawn.append(number)
        figure, axes = new_figure()
        figure.set_layout_engine("none")
        axes.plot(range(points), [x * x % 97 for x in range(points)], "o", color="#0072B2")
        return figure

    return Picture(f"Picture {number}", f"{number} in words", draw)


def table(number: int, rows: int, columns: int = 8) -> Table:
    cells = tuple(tuple(f"{row}.{column}" for column in range(columns)) for row in range(rows))
    return Table(f"Table {number}", tuple(map(str, range(columns))), cells)


def test_of_two_hundred_pictures_the_first_of_each_section_are_drawn_until_the_page_is_full() -> None:
    drawn: list[int] = []
    sections = [
        Section([], [picture(200 * section + number, 1700, drawn) for number in range(100)])
        for section in range(2)
    ]
    text = html(*sections)
    shown = text.count('role="img"')
    assert 10 < shown < 40
    assert len(text) > 2_700_000
    # The one that no longer fits is the last one drawn.
    assert drawn == [200 * (place % 2) + place // 2 for place in range(shown + 1)]
    assert text.count("Not drawn: the page stays below 3 MB.") == 200 - shown
    assert "Not drawn: the page stays below 3 MB. 99 in words" in text


def test_a_very_large_picture_becomes_pixels_that_are_no_more_than_needed() -> None:
    text = html(Section([], [picture(1, 4000), picture(2, 10)]))
    (image,) = Elements(text).of("img")
    assert str(image["src"]).startswith("data:image/png;base64,iVBOR")
    assert len(str(image["src"])) < 220_000
    assert image["alt"] == "1 in words"
    assert text.count("<svg") == 1


def test_long_tables_are_shortened_before_any_is_left_out() -> None:
    text = html(Section([table(1, 30_000), table(2, 5)], []))
    assert "The first 1000 rows of 30000: the page stays below 3 MB." in text
    assert text.count("<tr>") == 1001 + 6
    assert ">999.0</th>" in text


def test_of_very_many_tables_the_last_are_left_out() -> None:
    text = html(Section([table(number, 11) for number in range(2000)], [picture(1, 10)]))
    tables = text.count("<table")
    assert 0 < tables < 2000
    assert f"Without the last {2000 - tables} tables: the page stays below 3 MB." in text
    assert text.count('role="img"') == 1


def test_nothing_is_said_to_be_missing_from_a_page_that_holds_all() -> None:
    text = html(Section([table(1, 50)], [picture(1, 10)]))
    assert "below 3 MB" not in text


def test_what_no_omission_makes_small_enough_is_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"^a page of 3\.\d MB is too large for a reader: report fewer recor"
    ):
        Report("x" * 1_600_000, [], []).html()


@pytest.mark.parametrize("make", [lambda: picture(1, 10)])
def test_ids_of_several_pictures_differ(make: Callable[[], Picture]) -> None:
    text = html(Section([], [make(), make()]))
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert {name.partition("-")[0] for name in ids if re.match(r"p\d", name)} == {"p1", "p2"}
