"""Tickets and trained models from where they lie: files, run folders, and folders of runs by seed."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from sparsebert.interop.bert_tickets import read_ticket
from sparsebert.lottery.run_folder import RunFolder
from sparsebert.tickets.ticket import SAME_SPARSITY, Ticket


def load_ticket(
    path: str | os.PathLike[str],
    model: nn.Module,
    sparsity: float | None = None,
    *,
    task: str | None = None,
) -> Ticket:
    """Read a ticket for a model from a file of any known kind, or from a run's folder.

    Of a folder the last ticket is meant, or that of the round with this ``sparsity``; ``task`` is that of
    :func:`sparsebert.interop.bert_tickets.read_ticket`. Raises ValueError for
    a run that has no such ticket or is not finished, a folder without a run, and as
    :func:`sparsebert.interop.bert_tickets.read_ticket` does.
    """
    file, folder = Path(path), RunFolder(path)
    if not file.exists():
        raise FileNotFoundError(f"ticket {file}: there is no such file, nor a run's folder")
    if folder.run_json.exists():
        file = _last_ticket(folder) if sparsity is None else _ticket_at(folder, sparsity)
    elif file.is_dir():
        raise ValueError(f"{file} is a folder: a ticket is one file, or the folder of a run")
    ticket = read_ticket(file, model, task=task)
    if sparsity is not None and abs(ticket.sparsity - sparsity) > SAME_SPARSITY:
        raise ValueError(f"{file}: the ticket's sparsity is {ticket.sparsity:.4f}, not {sparsity:g}")
    return ticket


def load_tickets(
    path: str | os.PathLike[str], model: nn.Module, seeds: Sequence[int], sparsity: float | None = None
) -> dict[int, Ticket]:
    """The ticket for each seed: each run's own where ``path`` holds runs by seed, else one for all of them.

    Raises ValueError as :func:`load_ticket`, and for a seed that ``path`` has no run of.
    """
    runs = _by_seed(Path(path))
    if not runs:
        return dict.fromkeys(seeds, load_ticket(path, model, sparsity))
    return {seed: load_ticket(_run_of(seed, runs, Path(path)), model, sparsity) for seed in seeds}


def trained_models(path: str, seeds: Sequence[int] | None = None) -> dict[int | None, str]:
    """Seed -> model, of a run's folder or of one with runs by seed; None -> ``path`` if it is neither.

    ``seeds``: which of the runs by seed; all of them without. Raises ValueError for a run that is not
    finished, a seed that ``path`` has no run of, and seeds where it holds no runs by seed.
    """
    runs = _by_seed(Path(path))
    if not runs:
        if seeds is not None:
            raise ValueError(f"--seeds with {path}, which holds no runs by seed (seed-1, ...)")
        folder = RunFolder(path)
        return {_seed_of(folder): str(folder.model)} if folder.run_json.exists() else {None: path}
    chosen = [_run_of(seed, runs, Path(path)) for seed in (sorted(runs) if seeds is None else seeds)]
    return {_seed_of(RunFolder(each)): str(RunFolder(each).model) for each in chosen}


def model_for_each(path: str, seeds: Sequence[int]) -> dict[int, str]:
    """The trained model for each seed: each run's own where ``path`` holds runs by seed, else one for all.

    Raises ValueError as :func:`trained_models`.
    """
    if _by_seed(Path(path)):
        return {int(seed): model for seed, model in trained_models(path, seeds).items() if seed is not None}
    (model,) = trained_models(path).values()
    return dict.fromkeys(seeds, model)


def _by_seed(path: Path) -> dict[int, Path]:
    found = {each: re.fullmatch(r"seed-(\d+)", each.name) for each in path.glob("seed-*") if each.is_dir()}
    return {int(match[1]): each for each, match in found.items() if match}


def _run_of(seed: int, runs: dict[int, Path], path: Path) -> Path:
    if seed not in runs:
        raise ValueError(
            f"{path} holds no run of seed {seed}; its seeds: {', '.join(map(str, sorted(runs)))}"
        )
    return runs[seed]


def _seed_of(folder: RunFolder) -> int:
    done = folder.finished()
    if done is None:
        raise ValueError(f"{folder.path} is a run that is not finished: it has no model yet")
    return int(done["seed"])


def _last_ticket(folder: RunFolder) -> Path:
    if folder.finished() is None:
        raise ValueError(f"{folder.path} is a run that is not finished: it has no last ticket yet")
    return folder.final_ticket


def _ticket_at(folder: RunFolder, sparsity: float) -> Path:
    found = {row["sparsity"]: row["round"] for row in folder.rounds_done()}
    nearest = min(found, key=lambda each: abs(each - sparsity), default=math.inf)
    if abs(nearest - sparsity) > SAME_SPARSITY:
        shares = ", ".join(f"{share:.4g}" for share in found) or "none yet"
        raise ValueError(f"{folder.path} has no round of sparsity {sparsity:g}; its rounds: {shares}")
    return folder.ticket(found[nearest])
