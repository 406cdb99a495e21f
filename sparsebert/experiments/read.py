"""The reader of experiments (``docs/experiments.md`` describes the format)."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sparsebert.experiments.grid import Cell, Grid, Place, Published, Reference
from sparsebert.experiments.order import in_order
from sparsebert.experiments.settings import (
    CellReference,
    Settings,
    TrainOptions,
    combined,
    read_settings,
    unknown_key,
)
from sparsebert.experiments.yaml_nodes import Node, read_yaml

_KEYS = (
    *("title", "source", "notes", "train", "seeds", "columns", "rows", "cells", "metric", "published"),
    *("unavailable", "small"),
)
_SMALL_KEYS = ("train", "seeds", "columns", "rows", "cells")
_SOURCE_KEYS = ("paper", "title", "url", "table", "page")
_PUBLISHED_KEYS = ("unit", "relative-to")
UNITS = ("percent", "fraction")
# Names of rows and columns become names of folders.
_NAME = re.compile(r"\w[\w.+-]{0,59}")
_MOST_SEED = 2**32 - 1


@dataclass(frozen=True)
class _Level:
    """A row or a column of one level: its options, label, and for a row the columns that it has."""

    settings: Settings
    label: str | None = None
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _Part:
    """The grid of a file, or what the small preset changes of it."""

    train: Settings
    columns: Mapping[str, _Level]
    rows: Mapping[str, _Level]
    cells: Mapping[Place, Settings]
    seeds: tuple[int, ...] = ()
    lines: Mapping[str, int] = field(default_factory=dict)


def read_experiment(path: str | os.PathLike[str], options: TrainOptions, *, small: bool = False) -> Grid:
    """Read an experiment.

    Args:
        path: The YAML file.
        options: The options of ``sparsebert train``.
        small: Whether to return the small preset instead of the whole experiment; both are checked.

    Raises:
        ValueError: In one line, with file and line: unknown keys (the nearest is offered), wrong types,
            values that the command line refuses, a grid without cells, a column without a task, published
            numbers for unknown rows or columns, references to cells that do not exist, have no ticket or
            form a cycle, and as :func:`sparsebert.experiments.yaml_nodes.read_yaml`.
    """
    document = read_yaml(path)
    top = _known(document, "an experiment", "key", _KEYS)
    for name in ("title", "rows", "columns"):
        if name not in top:
            raise ValueError(f"{document.file}: {name} is missing")
    whole = _part(top, options)
    grid = Grid(
        name=document.file.stem,
        title=top["title"].line_of_text("title"),
        rows=_labels(whole, whole, "rows"),
        columns=_labels(whole, whole, "columns"),
        cells=_ordered(document.file, whole, whole, top["rows"]),
        source=_source(top),
        notes=top["notes"].text("notes").strip() if "notes" in top else "",
        metrics=_metrics(top, whole),
        published=_published(top, whole),
        relative_to=_relative_to(top, whole),
        unit=_unit(top),
        unavailable=_unavailable(top, whole),
    )
    if "small" not in top:
        if small:
            raise ValueError(f"{document.file} has no small preset: run it whole")
        return grid
    preset = _small(top["small"], whole, options)
    columns, cells = _labels(whole, preset, "columns"), _ordered(document.file, whole, preset, top["small"])
    published = _published_for(cells, columns, grid)
    rows = _labels(whole, preset, "rows")
    small_grid = replace(grid, rows=rows, columns=columns, cells=cells, published=published, small=True)
    return small_grid if small else grid


def _known(node: Node, what: str, kind: str, keys: Collection[str]) -> dict[str, Node]:
    """Return the nodes of a mapping. Raises ValueError for a key that is not among ``keys``."""
    nodes = node.mapping(what)
    for key, each in nodes.items():
        if key not in keys:
            raise unknown_key(key, each, kind, keys)
    return nodes


def _part(top: Mapping[str, Node], options: TrainOptions) -> _Part:
    columns = _levels(top["columns"], "columns", options)
    rows = _levels(top["rows"], "rows", options, columns)
    lines = {key: node.line for each in ("columns", "rows") for key, node in top[each].mapping(each).items()}
    return _Part(
        read_settings(top["train"].mapping("train"), options) if "train" in top else {},
        columns,
        rows,
        _single_cells(top, rows, columns, options),
        _seeds(top["seeds"]) if "seeds" in top else (0,),
        lines,
    )


def _small(node: Node, whole: _Part, options: TrainOptions) -> _Part:
    """Read the small preset: a part of the rows and columns, and options that replace those of the file."""
    keys = _known(node, "small", "key of small", _SMALL_KEYS)
    columns = _subset(keys, "columns", whole.columns, options, None)
    rows = _subset(keys, "rows", whole.rows, options, whole.columns)
    return _Part(
        read_settings(keys["train"].mapping("train"), options) if "train" in keys else {},
        columns,
        rows,
        _single_cells(keys, rows, columns, options),
        _seeds(keys["seeds"]) if "seeds" in keys else whole.seeds,
    )


def _subset(
    keys: Mapping[str, Node],
    what: str,
    known: Mapping[str, _Level],
    options: TrainOptions,
    columns: Collection[str] | None,
) -> dict[str, _Level]:
    """Return some of the rows or columns; all without an entry, a list of names or a mapping with options."""
    if what not in keys:
        return {name: _Level({}) for name in known}
    node = keys[what]
    if isinstance(node.value, list):
        names = _names(node, what[:-1], known)
        levels = {name: _Level({}) for name in names}
    else:
        levels = _levels(node, what, options, columns)
        for key, each in node.mapping(what).items():
            if key not in known:
                raise unknown_key(key, each, what[:-1], known)
    if not levels:
        raise node.error(f"the small preset has no cells: name a {what[:-1]}")
    return levels


def _names(node: Node, what: str, known: Collection[str]) -> list[str]:
    """Return a list of different names. Raises ValueError for an unknown or repeated one."""
    names: list[str] = []
    for each in node.items(f"{what}s"):
        name = each.line_of_text(what)
        if name not in known:
            raise unknown_key(name, each, what, known)
        if name in names:
            raise each.error(f"{what} {name!r} stands twice: keep one")
        names.append(name)
    return names


def _levels(
    node: Node, what: str, options: TrainOptions, columns: Collection[str] | None = None
) -> dict[str, _Level]:
    """Read rows, which may name their ``columns``, or columns."""
    levels = {}
    for key, each in node.mapping(what).items():
        if not _NAME.fullmatch(key):
            raise each.error(
                f"a name of {what} must be letters, digits and . _ + - (not first), at most 60, got "
                f"{key[:80]!r}"
            )
        if key in _PUBLISHED_KEYS:
            raise each.error(f"{key!r} is a key of published numbers: choose another name")
        nodes = dict(each.mapping(f"{what[:-1]} {key}")) if each.value is not None else {}
        label = nodes.pop("label", None)
        only = nodes.pop("columns", None) if columns is not None else None
        levels[key] = _Level(
            read_settings(nodes, options),
            None if label is None else label.line_of_text("label"),
            None if only is None or columns is None else tuple(_names(only, "column", columns)),
        )
    return levels


def _single_cells(
    keys: Mapping[str, Node], rows: Collection[str], columns: Collection[str], options: TrainOptions
) -> dict[Place, Settings]:
    """Read the options of single cells: by row, then by column."""
    if "cells" not in keys:
        return {}
    node, cells = keys["cells"], {}
    for row, of_row in node.mapping("cells").items():
        if row not in rows:
            raise unknown_key(row, of_row, "row", rows)
        for column, each in of_row.mapping(f"cells of {row}").items():
            if column not in columns:
                raise unknown_key(column, each, "column", columns)
            cells[Place(row, column)] = read_settings(each.mapping(f"{row}/{column}"), options)
    return cells


def _seeds(node: Node) -> tuple[int, ...]:
    seeds = [each.whole_number("a seed") for each in node.items("seeds")]
    if not seeds or len(set(seeds)) < len(seeds) or max(seeds) > _MOST_SEED:
        raise node.error("seeds must be different whole numbers from 0 to 2**32 - 1, at least one")
    return tuple(seeds)


def _labels(whole: _Part, part: _Part, which: str) -> dict[str, str]:
    """Return the labels of a part's rows or columns, in the order of the whole file."""
    levels: Mapping[str, _Level] = getattr(whole, which)
    shown: Mapping[str, _Level] = getattr(part, which)
    return {name: shown[name].label or level.label or name for name, level in levels.items() if name in shown}


def _ordered(file: Path, whole: _Part, part: _Part, node: Node) -> tuple[Cell, ...]:
    """Return the cells in the order of their runs. Raises ValueError if there are none."""
    cells = tuple(in_order(list(_cells(file, whole, part))))
    if not cells:
        what = "grid" if part is whole else "small preset"
        raise node.error(f"the {what} has no cells: name a row and a column")
    return cells


def _cells(file: Path, whole: _Part, part: _Part) -> Iterator[Cell]:
    """Yield the cells seed by seed, row by row."""
    for seed in part.seeds:
        for row, level in whole.rows.items():
            if row not in part.rows:
                continue
            limits = [each.columns for each in (level, part.rows[row]) if each.columns is not None]
            for column in whole.columns:
                if column in part.columns and all(column in limit for limit in limits):
                    yield _cell(file, whole, part, Place(row, column), seed)


def _cell(file: Path, whole: _Part, part: _Part, place: Place, seed: int) -> Cell:
    parts = (whole,) if part is whole else (whole, part)
    levels = [
        settings
        for each in parts
        for settings in (
            each.train,
            each.columns[place.column].settings,
            each.rows[place.row].settings,
            each.cells.get(place, {}),
        )
    ]
    settings = combined(levels)
    where = f"{file}:{whole.lines[place.row]}: row {place.row}, column {place.column}"
    if not settings.keys() & {"task", "train-file"}:
        raise ValueError(f"{file}:{whole.lines[place.column]}: column {place.column} has no task: name one")
    if "model" not in settings:
        raise ValueError(f"{where}: model is missing: name one, best under train")
    values, sources = {}, {}
    for name, setting in settings.items():
        if isinstance(setting.value, CellReference):
            target = Place(setting.value.row, setting.value.column or place.column)
            _require_place(target, whole, setting.node, name)
            sources[name] = target
        elif setting.value is not None:
            values[name] = setting.value
    return Cell(place, seed, values, sources, where)


def _require_place(place: Place, whole: _Part, node: Node, option: str) -> None:
    """Raise ValueError unless the file has this row and column."""
    for what, name, names in (("row", place.row, whole.rows), ("column", place.column, whole.columns)):
        if name not in names:
            raise unknown_key(name, node, f"{what} of {option}", names)


def _source(top: Mapping[str, Node]) -> Reference | None:
    if "source" not in top:
        return None
    keys = _known(top["source"], "source", "key of source", _SOURCE_KEYS)
    if "paper" not in keys:
        raise top["source"].error("source has no paper: name it, such as Chen et al. 2020")
    return Reference(**{key: node.line_of_text(key) for key, node in keys.items()})


def _metrics(top: Mapping[str, Node], whole: _Part) -> dict[str, str]:
    """Return the metric by column: from one name for all columns, or names by column."""
    if "metric" not in top:
        return {}
    node = top["metric"]
    if isinstance(node.value, str):
        return dict.fromkeys(whole.columns, node.line_of_text("metric"))
    return _by_column(node, "metric", whole)


def _unavailable(top: Mapping[str, Node], whole: _Part) -> dict[str, str]:
    return _by_column(top["unavailable"], "unavailable", whole) if "unavailable" in top else {}


def _by_column(node: Node, what: str, whole: _Part) -> dict[str, str]:
    keys = _known(node, what, f"column of {what}", whole.columns)
    return {key: " ".join(each.text(f"{what} of {key}").split()) for key, each in keys.items()}


def _unit(top: Mapping[str, Node]) -> str:
    nodes: Mapping[str, Node] = top["published"].mapping("published") if "published" in top else {}
    if "unit" not in nodes:
        return UNITS[0]
    unit = nodes["unit"].line_of_text("unit")
    if unit not in UNITS:
        raise nodes["unit"].error(f"unit must be {' or '.join(UNITS)}, got {unit!r}")
    return unit


def _relative_to(top: Mapping[str, Node], whole: _Part) -> str:
    """Return the row whose metric is subtracted in the published numbers, "" for none."""
    nodes: Mapping[str, Node] = top["published"].mapping("published") if "published" in top else {}
    if "relative-to" not in nodes:
        return ""
    row = nodes["relative-to"].line_of_text("relative-to")
    if row not in whole.rows:
        raise unknown_key(row, nodes["relative-to"], "row of relative-to", whole.rows)
    return row


def _published(top: Mapping[str, Node], whole: _Part) -> dict[Place, Published]:
    """Return the paper's numbers: by row and column a number, [mean, deviation], or null for none."""
    numbers: dict[Place, Published] = {}
    for row, of_row in (top["published"].mapping("published") if "published" in top else {}).items():
        if row in _PUBLISHED_KEYS:
            continue
        if row not in whole.rows:
            raise unknown_key(row, of_row, "row of published numbers", whole.rows)
        for column, node in of_row.mapping(f"published numbers of {row}").items():
            if column not in whole.columns:
                raise unknown_key(column, node, "column of published numbers", whole.columns)
            if node.value is not None:
                numbers[Place(row, column)] = Published(*_mean_and_deviation(node))
    return numbers


def _published_for(cells: Sequence[Cell], columns: Mapping[str, str], whole: Grid) -> dict[Place, Published]:
    """Return the paper's numbers of the small preset's cells; a cell of another task has none."""
    tasks = {each.place: each.options.get("task") for each in whole.cells}
    numbers = {}
    for place, task in {each.place: each.options.get("task") for each in cells}.items():
        if (number := whole.published.get(place)) is not None and task == tasks.get(place):
            label = whole.columns[place.column]
            numbers[place] = replace(number, column="" if columns[place.column] == label else label)
    return numbers


def _mean_and_deviation(node: Node) -> tuple[float, float | None]:
    if not isinstance(node.value, list):
        return node.number("a published number"), None
    if len(node.value) != 2:
        raise node.error("a published number with its deviation must be [mean, deviation]")
    mean, std = (each.number("a published number") for each in node.value)
    if std < 0:
        raise node.error(f"a deviation must be at least 0, got {std:g}")
    return mean, std
