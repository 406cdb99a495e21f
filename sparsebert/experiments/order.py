"""The order of an experiment's runs: each after the runs whose results it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sparsebert.experiments.grid import Cell, Place

# The methods whose runs end without a ticket that prunes anything.
_WITHOUT_TICKET = ("dense",)


def in_order(cells: Sequence[Cell]) -> Iterator[Cell]:
    """Yield the cells in their order, each after the cells whose results it needs.

    Raises:
        ValueError: In one line, with file and line: a result is that of a cell which the experiment lacks, or
            which has no ticket; or cells need each other in a circle.
    """
    by_key = {(cell.place, cell.seed): cell for cell in cells}
    done: set[tuple[Place, int]] = set()

    def visit(cell: Cell, needed_by: tuple[Cell, ...]) -> Iterator[Cell]:
        if (cell.place, cell.seed) in done:
            return
        if cell in needed_by:
            circle = " -> ".join(str(each.place) for each in (*needed_by[needed_by.index(cell) :], cell))
            raise ValueError(f"{cell.where}: the cells need each other in a circle: {circle}")
        for option, place in cell.sources.items():
            yield from visit(_needed(cell, option, place), (*needed_by, cell))
        done.add((cell.place, cell.seed))
        yield cell

    def _needed(cell: Cell, option: str, place: Place) -> Cell:
        source = by_key.get((place, cell.seed))
        if source is None:
            raise ValueError(f"{cell.where}: its {option} is that of {place}, a cell that does not run here")
        if option in ("ticket", "start-ticket") and source.options.get("method") in _WITHOUT_TICKET:
            raise ValueError(
                f"{cell.where}: its {option} is that of {place}, whose method "
                f"{source.options['method']} finds none"
            )
        return source

    for cell in cells:
        yield from visit(cell, ())
