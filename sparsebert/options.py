"""What the commands have in common: options, early checks of what is asked, and talking to a terminal."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

GRANULARITY_HELP = "element, 4x1 (any ROWSxCOLUMNS block), row, column, 2:4 (any N:M)"

Granularity = Annotated[str, typer.Option("--granularity", help=GRANULARITY_HELP)]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="append the records to this file, as JSON lines")
]


def granularity_options(text: str) -> dict[str, Any]:
    """Arguments of `prune` for "4x1" (blocks), "2:4" or a name."""
    block = re.fullmatch(r"(\d+)x(\d+)", text)
    if block:
        return {"granularity": "block", "block_size": (int(block[1]), int(block[2]))}
    return {"granularity": text}


def require_folders(*files: Path | None) -> None:
    """Find out before minutes of work, not after, that the result could not be written."""
    for file in files:
        if file is not None and not file.parent.is_dir():
            raise ValueError(f"cannot write {file}: the folder {file.parent} does not exist")


def console() -> Console:
    from rich.console import Console

    found = Console()
    # A pipe has no width of its own, and 80 columns are few.
    return found if found.is_terminal else Console(width=120)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Says on a terminal what is going on; silent elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status("") as status:
        yield lambda text: status.update(text)
