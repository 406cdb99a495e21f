"""A picture of records: how it is drawn, what it says in words, and the numbers behind it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsebert.report.plain_text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sparsebert.report.table import Table

# Bytes: file systems take 255, and endings follow.
_LONGEST_STEM = 120


@dataclass(frozen=True)
class Picture:
    """A picture of some records.

    Attributes:
        title: Title.
        alt: What the picture shows, in a sentence with the numbers of its message.
        draw: Draws it; raises like ``sparsebert.report.plots.require_matplotlib``.
        caption: How the figures were made: machine, versions, what bands and marks mean, what is missing
            and why. Empty if the picture itself says so.
        numbers: The numbers drawn, a row for each mark: plain figures, for a CSV file. None if a table of
            the same section holds them.
    """

    title: str
    alt: str
    draw: Callable[[], Figure]
    caption: str = ""
    numbers: Table | None = None

    def __post_init__(self) -> None:
        """Escape control characters."""
        for name in ("title", "alt", "caption"):
            object.__setattr__(self, name, printable(getattr(self, name)))

    @property
    def stem(self) -> str:
        """The title as the name of a file without its ending."""
        return file_stem(self.title)

    def png(self) -> bytes:
        """Draw the picture and return it as PNG."""
        content = io.BytesIO()
        self.draw().savefig(content, format="png")
        return content.getvalue()


def file_stem(title: str) -> str:
    """Return a title as the name of a file without its ending."""
    stem = re.sub(r"[^\w.+=-]+", "-", title.lower()).strip("-.")
    return stem.encode()[:_LONGEST_STEM].decode(errors="ignore")
