"""What a page shows of a report, so that it stays below its size: rows, tables and pictures are left out."""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import count
from typing import TYPE_CHECKING

from sparsebert.report.format import record_errors
from sparsebert.report.page.files import Link
from sparsebert.report.page.themed_svg import themed_svg
from sparsebert.report.picture import Picture
from sparsebert.report.sections import Section
from sparsebert.report.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIMIT_BYTES = 3_000_000
LIMIT_TEXT = "3 MB"
# Bytes of a page without its drawings; the rest is for these.
_TEXT_BYTES = 2_000_000
# Rows of each table that are tried until the tables fit.
_ROWS = (sys.maxsize, 1000, 300, 100, 30, 10)
# Bytes of a drawing: above, an SVG becomes a PNG, and a PNG is made smaller.
_DRAWING_BYTES = 200_000
_LEAST_DPI = 50
_LEFT_OUT = f"the page stays below {LIMIT_TEXT}"


@dataclass(frozen=True)
class ShownTable:
    """A table of a page.

    Attributes:
        anchor: Its id in the page.
        table: The table; a very wide one is transposed.
        rows: Number of rows that are shown, the first ones.
        links: Its files.
    """

    anchor: str
    table: Table
    rows: int
    links: list[Link]


@dataclass
class ShownPicture:
    """A picture of a page.

    Attributes:
        anchor: Its id in the page.
        picture: The picture.
        links: Its files.
        numbers: The numbers behind it.
        lack: The reason why it is not drawn.
        drawing: An element of HTML; "" if it is not drawn.
    """

    anchor: str
    picture: Picture
    links: list[Link]
    numbers: ShownTable | None
    lack: str
    drawing: str = ""


@dataclass(frozen=True)
class ShownSection:
    """A section of a page, with its id in the page and its files."""

    anchor: str
    title: str
    tables: list[ShownTable]
    pictures: list[ShownPicture]
    links: list[Link]


@dataclass(frozen=True)
class Content:
    """The sections of a page, and the number of tables, the last ones, for which it has no room."""

    sections: list[ShownSection]
    missing_tables: int = 0

    @property
    def pictures(self) -> list[ShownPicture]:
        """All pictures, the first of each section before the second of any."""
        ranked = [(rank, each) for section in self.sections for rank, each in enumerate(section.pictures)]
        return [each for _, each in sorted(ranked, key=lambda pair: pair[0])]


def fitting(
    sections: Sequence[Section],
    links: Callable[[object], list[Link]],
    lack: str,
    render: Callable[[Content], str],
) -> str:
    """Return a page below ``LIMIT_BYTES``.

    Long tables are shortened first, then the last tables are left out. Pictures are drawn, the first of each
    section before the second of any, until the page is full.

    Args:
        sections: All sections.
        links: Returns the files of a section, table or picture.
        lack: The reason why pictures cannot be drawn; "" if they can.
        render: Returns the page of a content.

    Raises:
        ValueError: The page is too large even without tables and drawings.
    """
    tables = sum(len(section.tables) for section in sections)
    for rows, most in [
        *((rows, tables) for rows in _ROWS),
        *((_ROWS[-1], tables >> halved) for halved in range(1, tables.bit_length() + 1)),
    ]:
        content = _content(sections, links, lack or _LEFT_OUT, rows, most)
        size = len(render(content).encode())
        if size <= _TEXT_BYTES:
            break
    for number, shown in enumerate(() if lack else content.pictures, start=1):
        drawing = _drawing(shown.picture, f"p{number}-")
        size += len(drawing.encode())
        if size > LIMIT_BYTES:
            break
        shown.drawing = drawing
    page = render(content)
    if (size := len(page.encode())) > LIMIT_BYTES:
        raise ValueError(f"a page of {size / 1e6:.1f} MB is too large for a reader: report fewer records")
    return page


def _content(
    sections: Sequence[Section], links: Callable[[object], list[Link]], lack: str, rows: int, tables: int
) -> Content:
    """Return the sections with this number of tables, and with this number of rows of each table."""
    table_ids, picture_ids = count(1), count(1)
    left = tables

    def shown_table(table: Table, anchor: str) -> ShownTable:
        return ShownTable(anchor, table.upright(), rows, links(table))

    def shown_picture(picture: Picture) -> ShownPicture:
        anchor = f"picture-{next(picture_ids)}"
        numbers = shown_table(picture.numbers, "") if picture.numbers else None
        return ShownPicture(anchor, picture, links(picture), numbers, lack)

    shown = []
    for number, section in enumerate(sections, start=1):
        kept = section.tables[:left]
        left -= len(kept)
        shown.append(
            ShownSection(
                f"section-{number}",
                section.title,
                [shown_table(table, f"table-{next(table_ids)}") for table in kept],
                list(map(shown_picture, section.pictures)),
                links(section),
            )
        )
    missing = sum(len(section.tables) for section in sections) - tables
    return Content([each for each in shown if each.tables or each.pictures], missing)


def _drawing(picture: Picture, prefix: str) -> str:
    """Return a picture as an element of HTML: SVG in the page's colours, or PNG if that is too large."""
    with record_errors(f"a record for the plot {picture.title!r}"):
        figure = picture.draw()
        drawing = themed_svg(figure, prefix, picture.alt)
        if len(drawing) <= _DRAWING_BYTES:
            return drawing
        figure.set_layout_engine("none")
        data = base64.b64encode(_small_png(figure)).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(picture.alt)}">'


def _small_png(figure: Figure) -> bytes:
    """Return a figure as PNG, with fewer dots the larger it is."""
    dpi = figure.dpi
    while True:
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=dpi)
        # Base64 takes four bytes for three.
        if (size := len(content.getvalue()) * 4 / 3) <= _DRAWING_BYTES or dpi <= _LEAST_DPI:
            return content.getvalue()
        dpi = max(_LEAST_DPI, min(0.9, (_DRAWING_BYTES / size) ** 0.5) * dpi)
