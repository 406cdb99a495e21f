"""Tables of what a start ticket saves: rounds, steps and minutes until a sparsity, with and without it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sparsebert.report.format import MISSING, Record, mean_text
from sparsebert.report.run_series import Spent, costs, metric_of, series
from sparsebert.report.table import Cell, Table
from sparsebert.tasks.verdict import summary
from sparsebert.tickets.ticket import SAME_SPARSITY

_NOTE = (
    "Until the end of the round that reaches the sparsity: rounds, optimizer steps and minutes (deciding on "
    "tickets, training and evaluation), means over seeds. Finding the start ticket is not included."
)


def start_tables(records: Iterable[Record]) -> list[Table]:
    """Return the table of each task and model that has a run with a start ticket.

    It has a row for each sparsity that such a run reaches, and the rows of the runs of the same method that
    started dense.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for row in records:
        if row["kind"] == "round":
            groups.setdefault((row["task"], row["model"]), []).append(row)
    return [
        start_table(f"Spent until a sparsity: {model} on {task}", rounds)
        for (task, model), rounds in groups.items()
        if any(row.get("start_ticket") for row in rounds)
    ]


def start_table(title: str, rounds: Sequence[Record], notes: Sequence[str] = ()) -> Table:
    """Return the table of the rounds of one task and model, with more notes; see ``start_tables``."""
    runs = {name: costs(by_round) for name, by_round in series(rounds).items()}
    from_ticket = [spent for points in runs.values() for spent in points if _start(spent)]
    rows: list[Record] = [
        {"run": name, "spent": spent}
        for name, points in sorted(runs.items())
        for spent in points
        if spent.sparsity and any(_comparable(spent, other) for other in from_ticket)
    ]
    shown: list[Spent] = [row["spent"] for row in rows]
    metric = metric_of(rounds[0])
    columns: dict[str, Cell] = {
        "run": lambda row: str(row["run"]),
        "sparsity": lambda row: f"{row['spent'].sparsity:.1%}",
        metric: lambda row: _metric_text(row["spent"], metric),
        "rounds": lambda row: str(row["spent"].rounds),
        "steps": lambda row: f"{row['spent'].steps:,.0f}",
        "minutes": lambda row: f"{row['spent'].seconds / 60:.1f}",
        "steps saved": lambda row: _saved(row["spent"], shown),
    }
    return Table.of(title, columns, rows, [_NOTE, *notes])


def _start(spent: Spent) -> Record | None:
    start: Record | None = spent.rows[0].get("start_ticket")
    return start


def _comparable(one: Spent, other: Spent) -> bool:
    """Whether two points are of one method and one sparsity."""
    same_method = one.rows[0]["method"] == other.rows[0]["method"]
    return same_method and abs(one.sparsity - other.sparsity) <= SAME_SPARSITY


def _saved(spent: Spent, others: Sequence[Spent]) -> str:
    """Return the share of steps that a run with a start ticket saves against the run that started dense."""
    dense = [each for each in others if not _start(each) and _comparable(each, spent)]
    if not _start(spent) or len(dense) != 1:
        return MISSING
    return f"{1 - spent.steps / dense[0].steps:.0%}"


def _metric_text(spent: Spent, metric: str) -> str:
    values = summary([row["metrics"][metric] for row in spent.rows])
    return mean_text(values.mean, values.std)
