"""Tables of experiments: our results beside those of a paper, and what did not run and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sparsebert.report.format import (
    MISSING,
    NAMES,
    Record,
    counted,
    listed,
    machine_key,
    machine_text,
    megabytes,
    ratio_text,
    span_text,
)
from sparsebert.report.table import Table
from sparsebert.tasks import verdict

DONE = "done"
_UNITS = {"percent": (100.0, 2), "fraction": (1.0, 4)}
# Metrics other than shares are shown as they are.
_NO_SHARES = ("perplexity", "loss")


@dataclass(frozen=True)
class Cell:
    """The records of a cell over its seeds.

    Attributes:
        rows: The records.
        reference: The records of the cell whose metric is subtracted, as the paper does; None for none.
    """

    rows: tuple[Record, ...]
    reference: tuple[Record, ...] | None = None

    @property
    def first(self) -> Record:
        return self.rows[0]

    @property
    def done(self) -> list[Record]:
        """Records of the runs that are finished."""
        return [row for row in self.rows if row["status"] == DONE]

    @property
    def unit(self) -> tuple[float, int]:
        """Factor from the metric to the unit of the table, and digits to show."""
        metric = self.done[0]["metric"] if self.done else ""
        return (1.0, 2) if metric.startswith(_NO_SHARES) else _UNITS[self.first["unit"]]

    @property
    def ours(self) -> verdict.Summary | None:
        """Mean and deviation of our runs in the unit of the table."""
        factor, _ = self.unit
        values = {row["seed"]: row["value"] for row in self.done}
        if self.reference is not None:
            base = {row["seed"]: row["value"] for row in self.reference if row["status"] == DONE}
            values = {seed: value - base[seed] for seed, value in values.items() if seed in base}
        return verdict.summary([factor * value for value in values.values()]) if values else None

    @property
    def our_text(self) -> str:
        return MISSING if self.ours is None else _number(self.ours.mean, self.ours.std, self.unit[1])

    @property
    def their_text(self) -> str:
        published = self.first["published"]
        return MISSING if published is None else _number(published["mean"], published["std"])

    @property
    def difference(self) -> str:
        published = self.first["published"]
        if self.ours is None or published is None:
            return MISSING
        if self.first["small"]:
            return ""
        return f"{self.ours.mean - published['mean']:+.{self.unit[1]}f}"


def experiment_tables(records: Iterable[Record]) -> list[Table]:
    """Return the tables of each experiment: the paper's table, its cells in detail, and what is missing.

    A run of which there are several records counts once: as the latest with a result, of those with the
    options of the latest. What one sweep left out may thus be a result of another.
    """
    tables = []
    for group in _experiments(records):
        cells = _cells(group)
        tables.append(_overview(group, cells))
        tables.append(_details(group, cells))
        tables += _missing(group)
    return tables


def _experiments(records: Iterable[Record]) -> list[list[Record]]:
    """Group records by experiment and preset, with one record of each run."""
    runs: dict[tuple[object, ...], list[Record]] = {}
    for row in records:
        key = row["experiment"], row["small"], row["row"], row["column"], row["seed"]
        runs.setdefault(key, []).append(row)
    groups: dict[tuple[object, ...], list[Record]] = {}
    for each in runs.values():
        row = _valid(each)
        groups.setdefault((row["experiment"], row["small"]), []).append(row)
    return list(groups.values())


def _valid(rows: Sequence[Record]) -> Record:
    """Return the record of a run that counts, of several."""
    by_time = sorted(rows, key=lambda row: row["timestamp"])
    now = by_time[-1]
    same = [row for row in by_time if all(row[name] == now[name] for name in ("options", "sources"))]
    return next((row for row in reversed(same) if row["status"] == DONE), now)


def _cells(group: Iterable[Record]) -> dict[tuple[str, str], Cell]:
    """Return the cells by row and column, in the order of the experiment."""
    rows: dict[tuple[str, str], list[Record]] = {}
    for row in sorted(group, key=lambda row: (*row["place"], row["seed"])):
        rows.setdefault((row["row"], row["column"]), []).append(row)
    return {
        (row, column): Cell(tuple(each), _reference(row, column, each[0]["relative_to"], rows))
        for (row, column), each in rows.items()
    }


def _reference(
    row: str, column: str, base: str | None, rows: dict[tuple[str, str], list[Record]]
) -> tuple[Record, ...] | None:
    return None if base is None or row == base else tuple(rows.get((base, column), ()))


def _title(group: Sequence[Record]) -> str:
    first = group[0]
    if not first["small"]:
        return str(first["title"])
    # None is the model of another cell.
    names = dict.fromkeys(row["model"].rpartition("/")[2] for row in group if row["model"] is not None)
    models = ", ".join(names)
    return f"{first['title']}: small preset on {models}, another model than the paper's"


def _short_title(group: Sequence[Record]) -> str:
    return f"{group[0]['title']}{' (small preset)' if group[0]['small'] else ''}"


def _overview(group: Sequence[Record], cells: dict[tuple[str, str], Cell]) -> Table:
    """Return the table in the form of the paper: rows by columns, ours and theirs in brackets."""
    rows = {name: each.first["row_label"] for (name, _), each in cells.items()}
    columns = sorted({(each.first["place"][1], column) for (_, column), each in cells.items()})
    labels = []
    for _, column in columns:
        of_column = [each for (_, name), each in cells.items() if name == column]
        metric = next((row["metric"] for each in of_column for row in each.done), None)
        label = of_column[0].first["column_label"]
        labels.append(f"{label} ({metric})" if metric else label)
    content = tuple(
        (label, *(_both(cells.get((name, column))) for _, column in columns)) for name, label in rows.items()
    )
    return Table(_title(group), ("", *labels), content, tuple(_notes(group)))


def _both(cell: Cell | None) -> str:
    if cell is None:
        return ""
    theirs = "" if cell.first["published"] is None else f" [{cell.their_text}]"
    return f"{cell.our_text}{theirs}"


def _notes(group: Sequence[Record]) -> list[str]:
    first = group[0]
    source, seeds = first["source"], sorted({row["seed"] for row in group})
    unit = "In per cent" if first["unit"] == "percent" else "As fractions"
    notes = [f"{unit}; seed {seeds[0]}."]
    if len(seeds) > 1:
        numbers = ", ".join(map(str, seeds))
        notes = [f"{unit}, mean ± standard deviation (n - 1) over {len(seeds)} seeds: {numbers}."]
    if first["relative_to"] is not None:
        base = next(
            (row["row_label"] for row in group if row["row"] == first["relative_to"]), first["relative_to"]
        )
        notes.append(f"Minus the metric of the row {base!r}, with the same seed; that row itself is not.")
    if source is not None:
        where = ", ".join(
            filter(None, (source["table"], f"page {source['page']}" if source["page"] else "", source["url"]))
        )
        theirs = "In brackets:" if _has_published(group) else "The experiment is that of"
        theirs += f" {source['paper']}{f' ({where})' if where else ''}"
        columns = dict.fromkeys((row["published"] or {}).get("column") for row in group)
        others = listed(filter(None, columns))
        notes.append(f"{theirs}{f', column {others}' if others else ''}.")
    if first["small"]:
        notes.append(
            "The small preset trains another model, with options of its own: its numbers show the shape of "
            "the result alone."
        )
    return notes


def _has_published(group: Sequence[Record]) -> bool:
    return any(row["published"] is not None for row in group)


def _details(group: Sequence[Record], cells: dict[tuple[str, str], Cell]) -> Table:
    """Return the table of all cells, one a line: difference, sparsity, bytes, speed and time."""
    baselines = list(
        dict.fromkeys(
            name
            for each in cells.values()
            for row in each.done
            for name in row.get("speed", {}).get("ratio", {})
        )
    )
    columns = (
        *("cell", "ours", "theirs", "difference", "sparsity", "ticket MB"),
        *(f"vs {NAMES.get(name, name)}" for name in baselines),
        *(("weights MB",) if baselines else ()),
        *("minutes", "runs"),
    )
    rows = []
    for cell in cells.values():
        done = cell.done
        speed = next((row["speed"] for row in done if row.get("speed", {}).get("ratio")), None)
        doubt = "?" if speed and speed["busy"] else ""
        measured = [
            *(ratio_text(speed and speed["ratio"].get(name), doubt) for name in baselines),
            *([megabytes(speed and speed["weight_bytes"])] if baselines else []),
        ]
        rows.append(
            (
                f"{cell.first['row_label']}, {cell.first['column_label']}",
                cell.our_text,
                cell.their_text,
                cell.difference,
                span_text((row["sparsity"] for row in done), ".1%") if done else MISSING,
                megabytes(max(row["ticket_bytes"] for row in done)) if done else MISSING,
                *measured,
                f"{sum(row['seconds'] for row in done) / 60:.1f}" if done else MISSING,
                f"{len(done)} of {len(cell.rows)}",
            )
        )
    return Table(f"{_short_title(group)}: each cell", columns, tuple(rows), tuple(_detail_notes(group)))


def _detail_notes(group: Sequence[Record]) -> list[str]:
    notes = ["Minutes: wall time of all seeds. Ticket: its file, a bit a weight.", *_machine_notes(group)]
    if group[0]["small"] and _has_published(group):
        notes.append("Difference is empty: another model.")
    measured = [row["speed"] for row in group if row.get("speed", {}).get("ratio")]
    if measured:
        first = measured[0]
        tokens = span_text(first["lengths"], "d")
        notes.append(
            f"Speed: time of a dense baseline over ours in paired rounds, whole model in fp32, batches of "
            f"{first['batch']} with {tokens} tokens, {counted(first['threads'], 'thread')}; "
            "the outputs agreed first."
        )
        if any("fused" in each["ratio"] for each in measured):
            notes.append("vs fused: the gain of zeros alone, over the dense model in the same native call.")
    if any(each["busy"] for each in measured):
        notes.append("Figures marked ? were measured while the machine was busy; do not quote them.")
    return notes


def _machine_notes(group: Sequence[Record]) -> list[str]:
    """Return a note if the runs are of several machines, whose minutes and speed cannot be compared."""
    machines: dict[tuple[str, ...], list[Record]] = {}
    for row in group:
        if row["status"] == DONE and row["environment"]:
            machines.setdefault(machine_key(row), []).append(row)
    if len(machines) < 2:
        return []
    parts = [
        f"{machine_text(rows[0]['environment'])}: "
        + listed(dict.fromkeys(f"{row['row']}/{row['column']}/seed-{row['seed']}" for row in rows))
        for rows in machines.values()
    ]
    return [f"Of several machines, whose minutes and speed do not compare. {'; '.join(parts)}."]


def _missing(group: Sequence[Record]) -> list[Table]:
    """Return the table of the runs that are missing, or whose speed is, by reason; none if all ran."""
    reasons: dict[str, list[Record]] = {}
    for row in group:
        if row["status"] != DONE:
            reasons.setdefault(row["reason"], []).append(row)
        elif failed := row.get("speed", {}).get("failed"):
            reasons.setdefault(f"no speed: {failed}", []).append(row)
    if not reasons:
        return []
    rows = tuple(
        (
            ", ".join(dict.fromkeys(f"{row['row']}/{row['column']}" for row in each)),
            counted(len(each), "run"),
            reason,
        )
        for reason, each in reasons.items()
    )
    return [Table(f"{_short_title(group)}: not run", ("cells", "runs", "reason"), rows, prose=True)]


def _number(mean: float, std: float | None, digits: int = 2) -> str:
    """Return ``82.61 ± 0.24`` with trailing zeros cut where there is no more to show."""
    return f"{mean:.{digits}f}" if std is None else f"{mean:.{digits}f} ± {std:.{digits}f}"
