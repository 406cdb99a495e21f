"""Tickets by path, with the task and seed of their runs: files, runs, and folders that contain runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from sparsebert.lottery.find_runs import load_ticket
from sparsebert.lottery.run_folder import RunFolder
from sparsebert.report.ticket_labels import TicketLabel
from sparsebert.tickets import TICKET_FILE
from sparsebert.tickets.ticket import Ticket


def named_sources(texts: Sequence[str]) -> dict[str, Path]:
    """Return the paths in ["imp=runs/imp", "t.safetensors"] by name, with a run for each run of a folder.

    A path without a name is named after its file or folder; where two would have the same name, after the
    whole path.

    Raises:
        ValueError: A path does not exist, or two have the same name.
    """
    named: list[tuple[str, Path]] = []
    given_names: set[str] = set()
    for text in texts:
        match = None if Path(text).exists() else re.fullmatch(r"([^=/]+)=(.+)", text)
        if match:
            if match[1] in given_names:
                raise ValueError(f"two tickets are named {match[1]}: use different names")
            given_names.add(match[1])
        path = Path(match[2] if match else text)
        if not path.exists():
            raise ValueError(f"ticket {path} does not exist: name a ticket file or the folder of a run")
        runs = runs_in(path)
        for run in runs or [path]:
            below = "" if run == path else f"/{run.relative_to(path).as_posix()}"
            named.append((f"{match[1] if match else _short(path)}{below}", run))
    names = [name for name, _ in named]
    sources: dict[str, Path] = {}
    for name, path in named:
        unique = name if names.count(name) == 1 else str(path)
        if unique in sources:
            raise ValueError(f"ticket {path} is named twice: omit one")
        sources[unique] = path
    return sources


def require_runs(paths: Iterable[Path]) -> None:
    """Raise ValueError for --sparsity, which selects the round of a run, if no path is a run."""
    if not any(RunFolder(path).run_json.exists() for path in paths):
        raise ValueError(
            "--sparsity selects a round of a run, and no ticket is the folder of a run: omit it, or name one"
        )


def runs_in(path: Path) -> list[Path]:
    """Return the runs below a folder at any depth, seed-2 before seed-10; [] for a run or a ticket."""
    if not path.is_dir() or RunFolder(path).run_json.exists() or (path / TICKET_FILE).is_file():
        return []
    name = RunFolder(path).run_json.name
    return sorted((file.parent for file in path.rglob(name)), key=lambda run: natural_order(str(run)))


def labelled_tickets(
    sources: Mapping[str, Path],
    model: nn.Module | None = None,
    sparsity: float | None = None,
    *,
    skip: Callable[[str], None] | None = None,
) -> Iterator[tuple[TicketLabel, Ticket]]:
    """Load tickets one after another, each with its label.

    Args:
        sources: Name -> ticket file, or folder of a run or of a model with its ticket.
        model: As of :func:`sparsebert.lottery.find_runs.load_ticket`.
        sparsity: Of runs with several rounds, the sparsity of the round; None for the run's ticket.
        skip: Called with one line for each run that has no such ticket, instead of an error.

    Raises:
        ValueError, FileNotFoundError: As ``load_ticket``.
    """
    for name, path in sources.items():
        try:
            run = _run_of(path)
            ticket = load_ticket(path, model, sparsity if RunFolder(path).run_json.exists() else None)
        except (ValueError, OSError) as error:
            if skip is None:
                raise
            skip(f"{name}: {error}")
            continue
        yield TicketLabel.of(name, ticket, run), ticket


def natural_order(text: str) -> list[tuple[int, str]]:
    """Return a sort key that puts seed-2 before seed-10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", text)]


def _run_of(path: Path) -> dict[str, Any]:
    """Return method, task and seed of the run that a ticket belongs to; {} without a run.

    A file of another name in a run's folder is not the run's ticket.
    """
    if path.is_file() and path.name != TICKET_FILE:
        return {}
    for folder in (path, path.parent, path.parent.parent):
        run = RunFolder(folder)
        if run.run_json.exists():
            rounds = run.rounds_done()
            return {name: rounds[0].get(name) for name in ("method", "task", "seed")} if rounds else {}
    return {}


def _short(path: Path) -> str:
    return path.resolve().name if path.is_dir() else path.stem
