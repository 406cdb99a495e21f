"""An experiment: a table of rows (mostly methods) and columns (mostly tasks), with runs in its cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

# The value of an option as it stands on the command line, or True for a flag.
Value = str | bool


@dataclass(frozen=True)
class Place:
    """A cell of the table: a row and a column."""

    row: str
    column: str

    def __str__(self) -> str:
        return f"{self.row}/{self.column}"


@dataclass(frozen=True)
class Cell:
    """The training run of a cell with one seed.

    Attributes:
        place: Row and column.
        seed: Seed of the run.
        options: Options of ``sparsebert train`` by name without dashes, in the order of the command's help.
        sources: Options whose value is the result of another cell with the same seed.
        where: File and line of the row, for messages.
    """

    place: Place
    seed: int
    options: Mapping[str, Value]
    sources: Mapping[str, Place]
    where: str

    @property
    def name(self) -> str:
        """Name of the run and of its folder below the folder of the sweep."""
        return f"{self.place}/seed-{self.seed}"


@dataclass(frozen=True)
class Published:
    """A number of the paper.

    Attributes:
        mean: The number, in the experiment's unit.
        std: Its standard deviation; None where the paper has none.
        column: The paper's label of the column, if the small preset has another; else "".
    """

    mean: float
    std: float | None = None
    column: str = ""


@dataclass(frozen=True)
class Reference:
    """The table of the paper that the experiment repeats; empty fields are unknown."""

    paper: str
    title: str = ""
    url: str = ""
    table: str = ""
    page: str = ""


@dataclass(frozen=True)
class Grid:
    """An experiment as its file describes it, whole or as the small preset.

    Attributes:
        name: Name of the file without its ending.
        title: Title of the table.
        rows: Labels of the rows by name, in the order of the table.
        columns: Labels of the columns by name.
        cells: The runs, seed by seed: row by row, a cell after those whose results it needs.
        source: Origin of the published numbers.
        notes: How the paper ran it, and what is different here.
        metrics: Name of the metric by column; columns without one show the task's primary metric.
        published: The paper's numbers.
        relative_to: Name of the row whose metric is subtracted in the paper's numbers; "" for none.
        unit: Unit of the published numbers and of the table: "percent" (of a share) or "fraction".
        unavailable: Reasons why columns cannot run anywhere, by name.
        small: Whether this is the small preset, whose results are not comparable with the paper's.
    """

    name: str
    title: str
    rows: Mapping[str, str]
    columns: Mapping[str, str]
    cells: tuple[Cell, ...]
    source: Reference | None = None
    notes: str = ""
    metrics: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[Place, Published] = field(default_factory=dict)
    relative_to: str = ""
    unit: str = "percent"
    unavailable: Mapping[str, str] = field(default_factory=dict)
    small: bool = False

    def places(self) -> Iterator[Place]:
        """Yield the places that have cells, row by row."""
        yield from dict.fromkeys(cell.place for cell in self.cells)
