"""Tickets and trained models by path: files, folders of runs, and folders of runs by seed."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from sparsebert.interop import read_ticket
from sparsebert.lottery.run_folder import RunFolder
from sparsebert.tickets import TICKET_FILE
from sparsebert.tickets.ticket import SAME_SPARSITY, Ticket


def load_ticket(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    sparsity: float | None = None,
    *,
    task: str | None = None,
) -> Ticket:
    """Load a ticket for a model from a file of any supported format, or from the folder of a run.

    Args:
        path: File or folder of a run.
        model: The model that the ticket is for, against which it is checked; required for files without
            shapes.
        sparsity: Sparsity of the ticket. In a run's folder it selects the round; None for the run's ticket.
        task: Task of a file with several, see :func:`sparsebert.interop.read_ticket`.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: The run is not finished or has no such ticket, the folder holds no run, or the file does
            not fit (see :func:`sparsebert.interop.read_ticket`).
    """
    file, folder = Path(path), RunFolder(path)
    if not file.exists():
        raise FileNotFoundError(f"ticket {file} does not exist: name a ticket file or the folder of a run")
    if folder.run_json.exists():
        file = _last_ticket(folder) if sparsity is None else _ticket_at(folder, sparsity)
    elif (file / TICKET_FILE).is_file():
        file = file / TICKET_FILE
    elif file.is_dir():
        raise ValueError(
            f"folder {file} holds neither a run nor a ticket: name a ticket file or the folder of a run"
        )
    ticket = read_ticket(file, model, task=task)
    if sparsity is not None and abs(ticket.sparsity - sparsity) > SAME_SPARSITY:
        raise ValueError(f"{file}: the sparsity of the ticket is {ticket.sparsity:.4f}, not {sparsity:g}")
    return ticket


def load_tickets(
    path: str | os.PathLike[str], model: nn.Module, seeds: Sequence[int], sparsity: float | None = None
) -> dict[int, Ticket]:
    """Load a ticket for each seed: from the seed's run if ``path`` holds runs by seed, else one for all.

    Raises:
        ValueError: As :func:`load_ticket`, or ``path`` has no run of a seed.
    """
    runs = _by_seed(Path(path))
    if not runs:
        return dict.fromkeys(seeds, load_ticket(path, model, sparsity))
    return {seed: load_ticket(_run_of(seed, runs, Path(path)), model, sparsity) for seed in seeds}


def trained_models(path: str, seeds: Sequence[int] | None = None) -> dict[int | None, str]:
    """Find the trained models in the folder of a run or in a folder of runs by seed.

    Args:
        path: Folder of a run or of runs by seed, or the name of a model.
        seeds: Seeds of the runs to select; None for all.

    Returns:
        Seed -> model; if ``path`` holds no run, None -> ``path``.

    Raises:
        ValueError: A run is not finished, ``path`` has no run of a seed, or it holds no runs by seed.
    """
    runs = _by_seed(Path(path))
    if not runs:
        if seeds is not None:
            raise ValueError(f"--seeds needs a folder of runs by seed (seed-1, ...); {path} holds none")
        folder = RunFolder(path)
        return {_seed_of(folder): str(folder.model)} if folder.run_json.exists() else {None: path}
    selected = [_run_of(seed, runs, Path(path)) for seed in (sorted(runs) if seeds is None else seeds)]
    return {_seed_of(RunFolder(run)): str(RunFolder(run).model) for run in selected}


def model_for_each(path: str, seeds: Sequence[int]) -> dict[int, str]:
    """Find a trained model for each seed: the seed's run if ``path`` holds runs by seed, else one for all.

    Raises:
        ValueError: As :func:`trained_models`.
    """
    if _by_seed(Path(path)):
        return {int(seed): model for seed, model in trained_models(path, seeds).items() if seed is not None}
    (model,) = trained_models(path).values()
    return dict.fromkeys(seeds, model)


def _by_seed(path: Path) -> dict[int, Path]:
    matches = {run: re.fullmatch(r"seed-(\d+)", run.name) for run in path.glob("seed-*") if run.is_dir()}
    return {int(match[1]): run for run, match in matches.items() if match}


def _run_of(seed: int, runs: dict[int, Path], path: Path) -> Path:
    if seed not in runs:
        raise ValueError(
            f"{path} holds no run of seed {seed}; its seeds: {', '.join(map(str, sorted(runs)))}"
        )
    return runs[seed]


def _seed_of(folder: RunFolder) -> int:
    record = folder.finished()
    if record is None:
        raise ValueError(f"the run in {folder.path} is not finished and has no model yet: finish it first")
    return int(record["seed"])


def _last_ticket(folder: RunFolder) -> Path:
    if folder.finished() is None:
        raise ValueError(
            f"the run in {folder.path} is not finished and has no final ticket yet: finish it, or name the "
            "sparsity of a round"
        )
    return folder.final_ticket


def _ticket_at(folder: RunFolder, sparsity: float) -> Path:
    rounds = {row["sparsity"]: row["round"] for row in folder.rounds_done()}
    nearest = min(rounds, key=lambda each: abs(each - sparsity), default=math.inf)
    if abs(nearest - sparsity) > SAME_SPARSITY:
        sparsities = ", ".join(f"{each:.4g}" for each in rounds) or "none yet"
        raise ValueError(f"{folder.path} has no round of sparsity {sparsity:g}; its rounds: {sparsities}")
    return folder.ticket(rounds[nearest])
