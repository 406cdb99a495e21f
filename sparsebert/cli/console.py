"""Output of the commands: tables and results on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sparsebert.atomic import size_on_disk

if TYPE_CHECKING:
    from rich.console import Console

    from sparsebert.report.table import Table
    from sparsebert.tickets.ticket import Ticket

# Width of tables in a pipe without COLUMNS, wider than rich's default of 80 columns.
_PIPE_WIDTH = 120
# Narrower tables are unreadable.
_LEAST_WIDTH = 40


def console() -> Console:
    """Return the console for printing tables."""
    from rich.console import Console

    terminal = Console()
    # rich itself reads COLUMNS, and ignores a value that is not a number.
    sized = terminal.is_terminal or os.environ.get("COLUMNS", "").isdecimal()
    return Console(width=max(terminal.width, _LEAST_WIDTH) if sized else _PIPE_WIDTH)


def print_tables(tables: Iterable[Table]) -> None:
    """Print tables, each followed by a blank line."""
    screen = console()
    for table in tables:
        screen.print(table.rich(screen.width))
        screen.print()


def print_ticket_file(path: Path, ticket: Ticket) -> None:
    """Print one line about a ticket, after it was written to a file or folder."""
    encoder_sparsity = ticket.metadata.get("encoder_sparsity")
    of_encoder = "" if encoder_sparsity is None else f", {encoder_sparsity:.2%} of all encoder matrices"
    typer.echo(
        f"wrote {path}: {len(ticket.masks)} matrices, {ticket.sparsity:.2%} sparse "
        f"(density {ticket.density:.2%}){of_encoder}, {size_on_disk(path) / 1e6:.1f} MB"
    )


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the current step of a command, on stderr.

    A terminal shows every step; a log gets a line with the step every few minutes.
    """
    from rich.console import Console

    from sparsebert.training.heartbeat import heartbeat
    from sparsebert.training.run_status import duration_text

    terminal = Console(stderr=True)
    if terminal.is_terminal:
        with terminal.status("") as status:
            yield lambda text: status.update(text)
        return
    current, began = "", time.monotonic()

    def step(text: str) -> None:
        nonlocal current, began
        current, began = text, time.monotonic()

    def line() -> str:
        return current and f"{current}, for {duration_text(time.monotonic() - began)}"

    with heartbeat(say, line):
        yield step


def say(text: str) -> None:
    """Print a line about the progress of a run on stderr; on stdout, that it is already finished."""
    finished = text.endswith("nothing to do")
    typer.echo(text, err=not finished)
