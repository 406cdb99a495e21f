"""A report: its tables and pictures, the origin of its records, and both as HTML or Markdown."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsebert import __version__
from sparsebert.report.format import Record, counted, machine_text, record_errors, versions_text
from sparsebert.report.page.content import LIMIT_TEXT, Content, fitting
from sparsebert.report.page.files import Files, Link, links
from sparsebert.report.picture import Picture
from sparsebert.report.plain_text import markdown_text, printable
from sparsebert.report.plots import require_matplotlib
from sparsebert.report.sections import Section
from sparsebert.report.table import Table


@dataclass(frozen=True)
class Report:
    """The content of a page.

    Attributes:
        title: Its title.
        records: The records that it shows.
        sections: Their tables and pictures.
        sources: Names of the files and folders of the records.
    """

    title: str
    records: Sequence[Record]
    sections: Sequence[Section]
    sources: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Escape control characters."""
        object.__setattr__(self, "title", printable(self.title))
        object.__setattr__(self, "sources", tuple(map(printable, self.sources)))

    @property
    def tables(self) -> list[Table]:
        """All tables, in the order of the page."""
        return [table for section in self.sections for table in section.tables]

    @property
    def pictures(self) -> list[Picture]:
        """All pictures, in the order of the page."""
        return [picture for section in self.sections for picture in section.pictures]

    @property
    def size(self) -> str:
        """The number of tables in words: ``3 tables``."""
        return counted(len(self.tables), "table")

    @property
    def dates(self) -> str:
        """First and last day of the records (UTC)."""
        return _days(self.records)

    @property
    def origins(self) -> list[str]:
        """Each machine with its versions, revisions of sparsebert, number of records and days.

        Raises:
            ValueError: The environment of a record is damaged.
        """
        groups: dict[str, list[Record]] = {}
        with record_errors("the environment of a record"):
            for row in self.records:
                groups.setdefault(_origin(row), []).append(row)
            return [
                f"{printable(origin)}{_revisions(rows)}: {counted(len(rows), 'record')}, {_days(rows)}"
                for origin, rows in groups.items()
            ]

    def markdown(self) -> str:
        """Return the page in Markdown, without pictures; raises like ``origins``."""
        origins = "\n".join(f"- {markdown_text(origin)}" for origin in self.origins)
        head = f"# {markdown_text(self.title)}\n\nRecords of {self.dates} (UTC):\n\n{origins}"
        if self.sources:
            head += f"\n\nSources: {', '.join(map(markdown_text, self.sources))}"
        return "\n\n".join([head, *(table.markdown() for table in self.tables)]) + "\n"

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self.tables)

    def html(self, file: Path | None = None, files: Files | None = None) -> str:
        """Return a self-contained page of HTML, below 3 MB.

        Args:
            file: Where the page will stand, for its links; by default in the current folder.
            files: Files to link to. The page does not need them.

        Raises:
            ValueError: A record is damaged, or as ``require_renderer``.
        """
        require_renderer()
        import jinja2

        folder = Path(__file__).parent
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(folder),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        template = environment.get_template("page.html")
        style, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
        # Only this script runs, whatever a record holds. The browser compares the element's whole text.
        digest = base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode()
        lack = self._lack_of_plots()

        def links_of(shown: object) -> list[Link]:
            return links((files or {}).get(id(shown), ()), file or Path("page.html"))

        def render(content: Content) -> str:
            return template.render(
                report=self,
                content=content,
                lack=lack,
                counted=counted,
                limit=LIMIT_TEXT,
                version=__version__,
                style=style,
                script=script,
                digest=digest,
            )

        return fitting(self.sections, links_of, lack, render)

    def _lack_of_plots(self) -> str:
        """Return the reason why pictures cannot be drawn; "" if they can, or if there are none."""
        try:
            if self.pictures:
                require_matplotlib()
        except ValueError as error:
            return str(error)
        return ""


def require_renderer() -> None:
    """Raise ValueError if jinja2 is not installed."""
    if importlib.util.find_spec("jinja2") is None:
        raise ValueError("a page of HTML needs jinja2: pip install 'sparsebert[report]'")


def _origin(row: Record) -> str:
    """Return machine and versions of a record, as far as it holds them."""
    environment: Record | None = row.get("environment")
    if environment:
        gpu = f", {environment['gpu']}" if environment["gpu"] else ""
        versions_of = {"Python": environment["python"], "sparsebert": environment["sparsebert"]}
        return f"{machine_text(environment)}{gpu}, {versions_text(versions_of)}"
    if versions := row.get("versions"):
        return f"machine not recorded, {versions_text(versions)}"
    if "triton" in row:
        return f"independent of the machine, triton {row['triton']}"
    return "machine and versions not recorded"


def _revisions(rows: Iterable[Record]) -> str:
    """Return the revisions of source checkouts, oldest record first."""
    names = dict.fromkeys((row.get("environment") or {}).get("revision") for row in rows)
    revisions = [each for each in names if each]
    return f" (revision {', '.join(revisions)})" if revisions else ""


def _days(rows: Iterable[Record]) -> str:
    times = (row.get("timestamp") for row in rows)
    days = sorted({str(time)[:10] for time in times if time}) or ["no day recorded"]
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
