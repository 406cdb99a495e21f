"""Tables of where the weights of tickets stay, from "inspect" records."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from sparsebert.report.format import MISSING, Record, counted
from sparsebert.report.table import Cell, Table
from sparsebert.report.ticket_labels import TicketLabel, differences
from sparsebert.tasks.verdict import summary
from sparsebert.tickets.density_grid import DensityGrid, density_cells, layer_names, percent
from sparsebert.tickets.kept_weights import HEAD_TYPES, MLP_TYPES, HeadCounts, KeptWeights
from sparsebert.tickets.survivors import Survivors

# What a table or picture of tickets can show.
PARTS = ("density", "heads", "survivors", "overlap", "masks")
# Tickets of a square table of overlaps; more of them are summarised, and drawn.
MOST_IN_A_SQUARE = 12
_TICKET: dict[str, Cell] = {
    "ticket": lambda row: str(row["name"]),
    "method": lambda row: str(row["method"]),
    "pruned": lambda row: str(row["granularity"]),
    "task": lambda row: row["task"] or MISSING,
    "seed": lambda row: MISSING if row["seed"] is None else str(row["seed"]),
    "sparsity": lambda row: f"{row['sparsity']:.2%}",
    "density": lambda row: f"{row['density']:.2%}",
    "matrices": lambda row: str(len(row["matrices"])),
    "of them empty": lambda row: str(sum(not each["kept"] for each in row["matrices"])),
}


def inspect_tables(
    records: Iterable[Record], show: Collection[str] = PARTS, *, brief: bool = False
) -> list[Table]:
    """Return the tables of "inspect", "inspect_survivors" and "inspect_overlap" records.

    Args:
        records: The records.
        show: Which of ``PARTS``.
        brief: Where there are several tickets, show what compares them, and no table of each.
    """
    records = list(records)
    tickets = [row for row in records if row["kind"] == "inspect"]
    tables = [Table.of("Tickets", _TICKET, tickets, _unknown_heads(tickets))] if tickets else []
    if len(tickets) > 1 and "density" in show:
        tables += _compared(tickets)
    if len(tickets) == 1 or not brief:
        for row in tickets:
            tables += _of_ticket(row["name"], KeptWeights.of_record(row), show)
    for row in records:
        if row["kind"] == "inspect_survivors" and "survivors" in show:
            tables.append(_survivors_table(row))
    for row in records:
        if row["kind"] == "inspect_overlap" and "overlap" in show:
            tables += _overlap_tables(row)
    return tables


def density_table(title: str, grid: DensityGrid) -> Table:
    """Return densities in per cent: a row for each layer, a column for each type of matrix."""
    columns, rows, _ = density_cells(grid)
    return Table(title, columns, tuple(rows), ("Density: kept weights in per cent of all.",))


def overlap_pairs(row: Record) -> list[tuple[TicketLabel, TicketLabel, float, float]]:
    """Return the labels of every two tickets, their Jaccard index and that of chance."""
    labels = [TicketLabel(**each) for each in row["tickets"]]
    return [
        (labels[i], labels[j], row["jaccard"][i][j], row["chance"][i][j])
        for i, j in combinations(range(len(labels)), 2)
    ]


def _of_ticket(name: str, counts: KeptWeights, show: Collection[str]) -> list[Table]:
    tables = []
    if "density" in show:
        tables.append(density_table(f"Density by layer and matrix: {name}", counts.grid))
    if "masks" in show:
        tables.append(_type_table(name, counts))
    if "heads" in show and counts.heads is not None:
        tables.append(_head_table(name, counts.heads))
    return tables


def _type_table(name: str, counts: KeptWeights) -> Table:
    """Return what the masks of each type leave empty: matrices, rows, columns and blocks."""
    rows = []
    for kind in dict.fromkeys(each.type for each in counts.matrices):
        group = [each for each in counts.matrices if each.type == kind]
        blocks = [counts.blocks[each.key] for each in group]
        weights = sum(each.weights for each in group)
        lines = [
            1
            - sum(getattr(each, f"live_{side}") for each in group)
            / sum(getattr(each, side) for each in group)
            for side in ("rows", "columns")
        ]
        empty = sum(int((each == 0).sum()) for each in blocks) / sum(each.size for each in blocks)
        density = sum(each.kept for each in group) / weights
        rows.append((kind, f"{weights:,}", *map(percent, (density, *lines, empty))))
    size = counts.block
    columns = ("matrix", "weights", "density", "empty rows", "empty columns", f"empty {size}x{size} blocks")
    note = "In per cent."
    # Compaction takes BERT-like models.
    if any(each.type in (*HEAD_TYPES, *MLP_TYPES) for each in counts.matrices):
        note += " Compaction removes empty rows and columns."
    return Table(f"What the masks leave empty: {name}", columns, tuple(rows), (note,))


def _head_table(name: str, heads: HeadCounts) -> Table:
    density = heads.density()
    rows = tuple((layer, *map(percent, density[i])) for i, layer in enumerate(layer_names(heads.layers)))
    columns = ("layer", *(str(head) for head in range(heads.heads)))
    spread = ", ".join(
        f"{kind} {100 * np.nanstd(heads.density(kind)):.2f}" for kind in HEAD_TYPES if kind in heads.kept
    )
    notes = (
        f"Density of each head, in per cent: its rows of {_listed(heads.kept)} together.",
        f"Standard deviation over the heads, in percentage points: {spread}.",
    )
    return Table(f"Density by head: {name}", columns, rows, notes)


def _listed(kept: Mapping[str, object]) -> str:
    names = [f"columns of {kind}" if kind == "attention_output" else kind for kind in kept]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _compared(tickets: Sequence[Record]) -> list[Table]:
    """Return densities by layer and by type, a column for each ticket."""
    grids = [KeptWeights.of_record(row).grid for row in tickets]
    by_layer = [dict(zip(grid.layers, grid.by_layer, strict=True)) for grid in grids]
    by_type = [dict(zip(grid.types, grid.by_type, strict=True)) for grid in grids]
    tables = []
    for what, densities in (("layer", by_layer), ("matrix", by_type)):
        places = list(dict.fromkeys(place for each in densities for place in each))
        shown = layer_names(places) if what == "layer" else places
        rows = tuple(
            (text, *(percent(each.get(place)) for each in densities))
            for place, text in zip(places, shown, strict=True)
        )
        columns = (what, *(row["name"] for row in tickets))
        note = "Density: kept weights in per cent of all."
        if rows:
            tables.append(Table(f"Density by {what}", columns, rows, (note,)))
    return tables


def _survivors_table(row: Record) -> Table:
    survivors, names = Survivors.of_record(row), row["names"]
    columns = ("layer", *(str(head) for head in range(survivors.heads.shape[1])), "MLP")
    layers = layer_names(survivors.layers)
    those = f"{counted(len(names), 'ticket')} ({row['group']})"
    if survivors.all_survive:
        rows = tuple(
            (
                layer,
                *map(_mean_std, survivors.head_density[i], survivors.head_std[i]),
                _mean_std(survivors.mlp_density[i], survivors.mlp_std[i]),
            )
            for i, layer in enumerate(layers)
        )
        note = (
            "Every head and MLP survives in every ticket. Mean density ± standard deviation (n - 1), in per "
            "cent."
        )
        return Table(f"Density by head over {those}", columns, rows, (note, _names_note(names)))
    rows = tuple(
        (layer, *map(str, survivors.heads[i]), str(survivors.mlps[i])) for i, layer in enumerate(layers)
    )
    note = (
        "Number of tickets in which a head keeps a weight of its value and of its output, and an MLP of both "
        "of its matrices (Prasanna et al. 2020)."
    )
    return Table(f"Survivors in {those}", columns, rows, (note, _names_note(names)))


def _names_note(names: Sequence[str]) -> str:
    return f"Tickets: {', '.join(names)}."


def _overlap_tables(row: Record) -> list[Table]:
    names = [each["name"] for each in row["tickets"]]
    notes = [
        f"Jaccard index of the kept weights; matrices: {row['matrices']}. In brackets, and by chance: that "
        "of independent masks with the same density in each matrix."
    ]
    notes += [row["note"]] if row["note"] else []
    tables = []
    if len(names) <= MOST_IN_A_SQUARE:
        rows = tuple(
            (
                name,
                *(
                    "1" if i == j else f"{row['jaccard'][i][j]:.3f} ({row['chance'][i][j]:.3f})"
                    for j in range(len(names))
                ),
            )
            for i, name in enumerate(names)
        )
        tables.append(Table("Overlap of tickets", ("ticket", *names), rows, tuple(notes)))
    groups: dict[str, list[tuple[float, float]]] = {}
    for one, other, jaccard, chance in overlap_pairs(row):
        apart = ", ".join(differences(one, other)) or "nothing recorded"
        groups.setdefault(apart, []).append((jaccard, chance))
    by_difference = []
    for apart, values in groups.items():
        of_pairs = summary([jaccard for jaccard, _ in values])
        std = MISSING if of_pairs.std is None else f"{of_pairs.std:.3f}"
        by_chance = float(np.mean([chance for _, chance in values]))
        by_difference.append((apart, str(len(values)), f"{of_pairs.mean:.3f}", std, f"{by_chance:.3f}"))
    columns = ("pairs that differ in", "pairs", "mean", "std", "by chance")
    return [
        *tables,
        Table("Overlap by difference", columns, tuple(by_difference), () if tables else tuple(notes)),
    ]


def _unknown_heads(tickets: Iterable[Record]) -> list[str]:
    """Return a note on the tickets whose heads cannot be told apart."""
    names = [
        row["name"]
        for row in tickets
        if row["heads"] is None and any(each["type"] in HEAD_TYPES for each in row["matrices"])
    ]
    return (
        [f"Without heads, whose number is not recorded: {', '.join(names)}. Pass the model."] if names else []
    )


def _mean_std(mean: float, std: float) -> str:
    return MISSING if np.isnan(mean) else f"{100 * mean:.1f}±{100 * std:.1f}"
