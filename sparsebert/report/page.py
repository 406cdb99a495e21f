"""A report as a page of HTML or Markdown: tables, pictures, and the origin of the records."""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsebert.report.format import Record, counted, machine_text, record_errors, versions_text
from sparsebert.report.picture import Picture
from sparsebert.report.plots import require_matplotlib
from sparsebert.report.sections import Section
from sparsebert.report.table import Table

TEMPLATE = "page.html"


@dataclass(frozen=True)
class Report:
    """The content of a page."""

    title: str
    records: Sequence[Record]
    sections: Sequence[Section]

    @property
    def tables(self) -> list[Table]:
        """All tables, in the order of the page."""
        return [table for section in self.sections for table in section.tables]

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
                f"{origin}{_revisions(rows)}: {counted(len(rows), 'record')}, {_days(rows)}"
                for origin, rows in groups.items()
            ]

    def markdown(self) -> str:
        """Return the page in Markdown, without pictures; raises like ``origins``."""
        origins = "\n".join(f"- {origin}" for origin in self.origins)
        head = f"# {self.title}\n\nRecords of {self.dates} (UTC):\n\n{origins}"
        return "\n\n".join([head, *(table.markdown() for table in self.tables)]) + "\n"

    def html(self) -> str:
        """Return a self-contained page of HTML.

        Raises:
            ValueError: A record is damaged, and as ``require_renderer``.
        """
        require_renderer()
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        lack = ""
        if any(section.pictures for section in self.sections):
            try:
                require_matplotlib()
            except ValueError as error:
                lack = str(error)
        shown = [
            {"tables": section.tables, "pictures": [] if lack else list(map(_embedded, section.pictures))}
            for section in self.sections
        ]
        return environment.get_template(TEMPLATE).render(report=self, sections=shown, lack=lack)


def require_renderer() -> None:
    """Raise ValueError if jinja2 is not installed."""
    if importlib.util.find_spec("jinja2") is None:
        raise ValueError("a page of HTML needs jinja2: pip install 'sparsebert[report]'")


def _embedded(picture: Picture) -> dict[str, str]:
    with record_errors(f"a record for the plot {picture.title!r}"):
        data = base64.b64encode(picture.png()).decode()
    return {"title": picture.title, "alt": picture.alt, "source": f"data:image/png;base64,{data}"}


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
