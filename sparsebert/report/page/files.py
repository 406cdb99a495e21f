"""Files beside a page: pictures as SVG and PNG, tables as CSV."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from sparsebert.atomic import write_text
from sparsebert.report.picture import Picture, file_stem
from sparsebert.report.plots import save_figure
from sparsebert.report.table import Table

# The files of pictures, tables and sections, by the ``id()`` of these.
Files = Mapping[int, Sequence[Path]]


class Link(NamedTuple):
    """A link from a page to a file."""

    label: str
    href: str


def links(files: Iterable[Path], page: Path) -> list[Link]:
    """Return links that are valid as long as page and files stand in the same places to each other."""
    files, home = list(files), page.parent.absolute()
    endings = [file.suffix[1:].upper() for file in files]
    labels = endings if len(set(endings)) == len(files) else [file.name for file in files]
    paths = (Path(os.path.relpath(file.absolute(), home)).as_posix() for file in files)
    return [Link(label, quote(path)) for label, path in zip(labels, paths, strict=True)]


def save_pictures(pictures: Sequence[Picture], folder: Path) -> dict[int, list[Path]]:
    """Write pictures as SVG and PNG.

    Args:
        pictures: The pictures.
        folder: Made if it does not exist.

    Returns:
        The files of each picture by its ``id()``.

    Raises:
        ValueError: matplotlib is not installed.
        OSError: As :func:`sparsebert.atomic.replacing`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[int, list[Path]] = {}
    for picture, stem in zip(pictures, _stems(each.title for each in pictures), strict=True):
        figure = picture.draw()
        for ending in ("png", "svg"):
            file = folder / f"{stem}.{ending}"
            save_figure(figure, file)
            files.setdefault(id(picture), []).append(file)
            # The second file has the layout of the first, which took most of the time.
            figure.set_layout_engine("none")
    return files


def save_tables(tables: Sequence[Table], pictures: Sequence[Picture], folder: Path) -> dict[int, list[Path]]:
    """Write tables, and the numbers of pictures that have some, as CSV.

    Args:
        tables: The tables.
        pictures: The pictures.
        folder: Made if it does not exist.

    Returns:
        The file of each table and picture by its ``id()``.

    Raises:
        OSError: As :func:`sparsebert.atomic.replacing`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = [(id(table), table.title, table) for table in tables]
    named += [(id(each), f"picture {each.title}", each.numbers) for each in pictures if each.numbers]
    files = {}
    for (key, _, table), stem in zip(named, _stems(title for _, title, _ in named), strict=True):
        file = folder / f"{stem}.csv"
        write_text(file, table.csv())
        files[key] = [file]
    return files


def _stems(titles: Iterable[str]) -> list[str]:
    """Return names of files, none of them twice: titles that differ in signs alone are numbered."""
    stems: dict[str, None] = {}
    for title in titles:
        stem = file_stem(title)
        names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        stems[next(name for name in names if name not in stems)] = None
    return list(stems)
