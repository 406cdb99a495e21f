"""Pictures of where the weights of tickets stay, from "inspect" records."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sparsebert.report.format import Record, counted, span_text
from sparsebert.report.heat_map import (
    NOTHING_NOTE,
    colour_bar,
    draw_map,
    map_panels,
    norm,
    short_percent,
)
from sparsebert.report.inspect_tables import PARTS, overlap_pairs
from sparsebert.report.mask_picture import mask_figure
from sparsebert.report.picture import Picture
from sparsebert.report.plain_text import figure_text
from sparsebert.report.plots import line_style, new_grid
from sparsebert.report.ticket_labels import FIELDS, TicketLabel, seed_groups
from sparsebert.tickets.density_grid import layer_names
from sparsebert.tickets.kept_weights import KeptWeights
from sparsebert.tickets.survivors import Survivors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Types of matrices that have a panel each in the picture by layer.
_MOST_PANELS = 11
# Groups of tickets whose heads and masks a page draws: it stays below 3 MB.
MOST_DRAWN = 6
# Kept counts by group: its name, and the counts of its tickets.
Group = tuple[str, list[KeptWeights]]


def inspect_pictures(
    records: Iterable[Record], show: Collection[str] = PARTS, *, most: int | None = None
) -> list[Picture]:
    """Return pictures of densities by layer and by head, of survivors and overlaps, and of masks.

    Tickets that differ in the seed alone are drawn as their mean; of their masks, the first is drawn.

    Args:
        records: The records.
        show: Which of ``PARTS``.
        most: Groups whose heads and masks are drawn, the first ones, to limit the size of a page; None for
            all.
    """
    records = list(records)
    tickets = [row for row in records if row["kind"] == "inspect"]
    groups = _groups(tickets)
    pictures = [_layer_picture(groups)] if groups and "density" in show else []
    drawn = groups[:most]
    rest = f"The last one drawn: {len(drawn)} of {len(groups)}." if len(drawn) < len(groups) else ""
    if "heads" in show:
        heads = [_head_picture(group) for group in drawn if all(each.heads for each in group[1])]
        pictures += _noted(heads, rest)
    for kind, part, picture in (
        ("inspect_survivors", "survivors", _survivors_picture),
        ("inspect_overlap", "overlap", _overlap_picture),
    ):
        pictures += [picture(row) for row in records if row["kind"] == kind and part in show]
    return pictures + (_noted(list(map(_mask_picture, drawn)), rest) if "masks" in show else [])


def _noted(pictures: list[Picture], note: str) -> list[Picture]:
    """Give the last picture a caption."""
    return [*pictures[:-1], *(replace(each, caption=note) for each in pictures[-1:])]


def _groups(tickets: Sequence[Record]) -> list[Group]:
    """Return the tickets by group of seeds, and those of no group alone, in the order of the records.

    Tickets of different models are never of one group.
    """
    models: dict[tuple[object, ...], list[Record]] = {}
    for row in tickets:
        shapes = tuple((each["key"], each["rows"], each["columns"]) for each in row["matrices"])
        models.setdefault(shapes, []).append(row)
    named = [each for rows in models.values() for each in _seeds_of_one_model(rows)]
    times = Counter(name for name, _ in named)
    groups = []
    for name, rows in named:
        model = f", {rows[0]['model']}" if times[name] > 1 and rows[0]["model"] else ""
        groups.append((f"{name}{model}", [KeptWeights.of_record(row) for row in rows]))
    return groups


def _seeds_of_one_model(rows: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """Return the records of each group of seeds with its name."""
    labels = [TicketLabel(**{name: row[name] for name in ("name", *FIELDS, "requested")}) for row in rows]
    group_of = {id(label): group for group in seed_groups(labels) for label in group}
    groups: dict[int, tuple[str, list[Record]]] = {}
    for label, row in zip(labels, rows, strict=True):
        group = group_of.get(id(label), [label])
        name = label.name if len(group) == 1 else f"{label.without_seed}, {len(group)} seeds"
        groups.setdefault(id(group[0]), (name, []))[1].append(row)
    return list(groups.values())


def _layer_picture(groups: Sequence[Group]) -> Picture:
    names = ", ".join(name for name, _ in groups)
    totals = [each.grid.kept.sum() / max(each.grid.weights.sum(), 1) for _, group in groups for each in group]
    alt = (
        f"Density against layer, a panel for each type of matrix, for {names}; of whole tickets "
        f"{span_text(totals, '.1%')}. The tables of densities hold the figures."
    )
    return Picture("Density by layer and matrix", alt, functools.partial(layer_figure, groups))


def layer_figure(groups: Sequence[Group]) -> Figure:
    """Return density against layer, a panel for each type of matrix and one for all.

    This is Figure 2 of Static Model Pruning (Jiang et al. 2023). The band spans the seeds of a group.

    Raises:
        ValueError: matplotlib is not installed.
    """
    types = list(dict.fromkeys(kind for _, counts in groups for each in counts for kind in each.grid.types))
    panels = [*types, "all"] if len(types) <= _MOST_PANELS else ["all"]
    figure, all_axes = new_grid(len(panels), columns=4)
    for axes, panel in zip(all_axes, panels, strict=True):
        for number, (name, counts) in enumerate(groups):
            grids = [each.grid for each in counts]
            layers = layer_names(grids[0].layers)
            lines = np.stack(
                [
                    grid.by_layer if panel == "all" else grid.density[:, grid.types.index(panel)]
                    for grid in grids
                    if panel == "all" or panel in grid.types
                ]
                or [np.full(len(layers), np.nan)]
            )
            style = line_style(number) | {"markersize": 3, "linewidth": 1.2}
            axes.plot(layers, 100 * lines.mean(axis=0), **style, label=figure_text(name))
            if len(lines) > 1:
                low, high = 100 * lines.min(axis=0), 100 * lines.max(axis=0)
                axes.fill_between(layers, low, high, color=style["color"], alpha=0.2, linewidth=0)
        axes.set_title(panel, loc="left", fontsize=9)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=7)
    figure.supxlabel("layer", fontsize=8)
    figure.supylabel("kept weights (%)", fontsize=8)
    handles, names = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, loc="outside upper left", fontsize=7, ncols=4)
    return figure


def _head_picture(group: Group) -> Picture:
    name, counts = group
    density = _mean_density(counts, None)
    heads = counts[0].heads
    assert heads is not None
    layer, head = np.unravel_index(np.nanargmax(density), density.shape)
    below = float((density < 0.01).mean())
    alt = (
        f"Heat maps of the density of {heads.heads} heads in {counted(len(heads.layers), 'layer')}, one map "
        f"for each of {', '.join(heads.kept)}. Whole heads keep {np.nanmin(density):.1%} to "
        f"{np.nanmax(density):.1%}, most of them head {head} of layer {layer_names(heads.layers)[layer]}; "
        f"{below:.0%} of the heads keep less than 1%."
    )
    return Picture(f"Density by head: {name}", alt, functools.partial(head_figure, group))


def head_figure(group: Group) -> Figure:
    """Return the density of each head in each of its matrices, the mean of a group.

    This is Figure 3 of Static Model Pruning (Jiang et al. 2023), which shows query and value.

    Raises:
        ValueError: matplotlib is not installed.
    """
    name, counts = group
    heads = counts[0].heads
    assert heads is not None
    kinds = list(heads.kept)
    maps = [_mean_density(counts, kind) for kind in kinds]
    layers = layer_names(heads.layers)
    width = max(2.0, 0.24 * heads.heads)
    figure, panels = map_panels(
        [1] * len(kinds), (len(kinds) * width + 1, max(2.2, 0.24 * len(layers) + 1.2))
    )
    scale = norm(max(float(np.nanmax(each)) for each in maps), power=0.5)
    for axes, kind, values in zip(panels, kinds, maps, strict=True):
        image = draw_map(axes, values, scale, [list(map(short_percent, line)) for line in values])
        axes.set_title(kind, loc="left", fontsize=9)
        axes.set_yticks(range(len(layers)), layers)
        axes.set_xlabel("head", fontsize=8)
    panels[0].set_ylabel("layer", fontsize=8)
    colour_bar(figure, image, panels, "kept weights")
    figure.suptitle(f"{name} ({NOTHING_NOTE})", x=0.01, ha="left", fontsize=9)
    return figure


def _mean_density(counts: Sequence[KeptWeights], kind: str | None) -> np.ndarray:
    heads = [each.heads for each in counts]
    return np.mean([each.density(kind) for each in heads if each is not None], axis=0)


def _survivors_picture(row: Record) -> Picture:
    survivors = Survivors.of_record(row)
    always, never = ((survivors.heads == count).sum() for count in (survivors.tickets, 0))
    alt = (
        f"Heat map of {survivors.heads.size} heads and {survivors.mlps.size} MLPs over "
        f"{counted(survivors.tickets, 'ticket')} ({row['group']}): {always} heads survive in all of them, "
        f"{never} in none; {(survivors.mlps == survivors.tickets).sum()} MLPs survive in all. The table of "
        "survivors holds the figures."
    )
    return Picture(f"Survivors: {row['group']}", alt, functools.partial(survivors_figure, row))


def survivors_figure(row: Record) -> Figure:
    """Return the number of tickets in which each head and MLP survives, as in Prasanna et al. 2020.

    Where all survive in every ticket, it shows the mean density and its standard deviation instead.

    Raises:
        ValueError: matplotlib is not installed.
    """
    survivors = Survivors.of_record(row)
    layers, count = layer_names(survivors.layers), survivors.tickets
    if survivors.all_survive:
        maps = survivors.head_density, survivors.mlp_density[:, None]
        spread = survivors.head_std, survivors.mlp_std[:, None]
        texts = [_mean_std(*each) for each in zip(maps, spread, strict=True)]
        label, title = "mean density", "mean density ± standard deviation (%)"
    else:
        numbers = survivors.heads, survivors.mlps[:, None]
        maps = numbers[0] / count, numbers[1] / count
        texts = [[list(map(str, line)) for line in each] for each in numbers]
        label, title = "share of the tickets", f"tickets of {count} in which it survives (orange: none)"
    heads = survivors.heads.shape[1]
    size = max(4.0, 0.34 * (heads + 3) + 1.2), max(2.4, 0.34 * len(layers) + 1.2)
    figure, panels = map_panels([heads, 1], size)
    scale = norm(float(np.nanmax(np.concatenate([each.ravel() for each in maps]))))
    for axes, values, text in zip(panels, maps, texts, strict=True):
        image = draw_map(axes, values, scale, text)
    panels[0].set_yticks(range(len(layers)), layers)
    panels[0].set_xlabel("head", fontsize=8)
    panels[0].set_ylabel("layer", fontsize=8)
    panels[1].set_yticks([])
    panels[1].set_xticks([0], ["MLP"])
    colour_bar(figure, image, panels, label)
    figure.suptitle(f"{row['group']}: {title}", x=0.01, ha="left", fontsize=9)
    return figure


def _mean_std(means: np.ndarray, stds: np.ndarray) -> list[list[str]]:
    return [
        [f"{short_percent(mean)}\n±{100 * std:.1f}" for mean, std in zip(*line, strict=True)]
        for line in zip(means, stds, strict=True)
    ]


def _overlap_picture(row: Record) -> Picture:
    pairs = overlap_pairs(row)
    low, high = (find(pairs, key=lambda pair: pair[2]) for find in (min, max))
    alt = (
        f"Heat map of the Jaccard index of every two of {len(row['tickets'])} tickets: from {low[2]:.3f} "
        f"({low[0].name} and {low[1].name}) to {high[2]:.3f} ({high[0].name} and {high[1].name}); "
        f"independent masks would have {span_text((pair[3] for pair in pairs), '.3f')}."
    )
    return Picture("Overlap of tickets", alt, functools.partial(overlap_figure, row))


def overlap_figure(row: Record) -> Figure:
    """Return the Jaccard index of every two tickets, as Chen et al. 2020 compare the masks of tasks.

    Raises:
        ValueError: matplotlib is not installed.
    """
    names = [figure_text(each["name"]) for each in row["tickets"]]
    values = np.array(row["jaccard"], float)
    highest = float(values[~np.eye(len(names), dtype=bool)].max())
    side = max(3.2, 0.36 * len(names) + 0.075 * max(map(len, names)))
    figure, (axes,) = map_panels([1], (side + 1.2, side))
    scale = norm(highest)
    written = [[f"{value:.2f}" for value in line] for line in values]
    image = draw_map(axes, np.where(np.eye(len(names)) > 0, np.nan, values), scale, written)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    colour_bar(figure, image, [axes], "kept by both / kept by either", percent=False)
    title = "Jaccard index of the kept weights (orange: none in common)"
    figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    return figure


def _mask_picture(group: Group) -> Picture:
    name, counts = group
    first = counts[0]
    of = f"{name}, the first" if len(counts) > 1 else name
    empty = sum(int((blocks == 0).sum()) for blocks in first.blocks.values())
    total = sum(blocks.size for blocks in first.blocks.values())
    alt = (
        f"The masks of {len(first.matrices)} matrices, layer by layer, each block of "
        f"{first.block}x{first.block} weights in the colour of its density; "
        f"{empty / total:.1%} of the blocks keep nothing."
    )
    return Picture(f"Masks: {of}", alt, functools.partial(mask_figure, first, of))
