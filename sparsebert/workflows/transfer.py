"""Tickets found on some tasks trained on others, against the dense model: Chen et al. 2020, section 4.

Every cell of the matrix is a set of runs, one a seed, each in a folder of its own:
``SOURCE/TASK/seed-N``. What is finished there is not done again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from sparsebert.lottery.experiment import PruningUnits, RunConfig
from sparsebert.lottery.method import lottery_method
from sparsebert.lottery.run_folder import Record
from sparsebert.tasks import EncodedOnce
from sparsebert.tickets.ticket import SAME_SPARSITY, Ticket
from sparsebert.training.settings import TrainingSettings
from sparsebert.workflows.train import POOLER, Data, has_pooler, over_seeds, read_for, seeded, task_of, train

DENSE, RANDOM = "dense", "random"


@dataclass(frozen=True)
class Target:
    """A task to train on: its name, its ``data`` as :func:`sparsebert.workflows.train.train` takes it, and how."""

    task: str
    data: Data
    training: TrainingSettings


@dataclass(frozen=True)
class _Row:
    """A row of the matrix: its name, its folder, and its request for a target and a seed."""

    name: str
    folder: Path
    request: Callable[[Target, int], RunConfig]

    def runs(self, target: Target, seeds: Sequence[int]) -> Iterator[tuple[RunConfig, Path]]:
        for seed in seeds:
            yield seeded(self.request(target, seed), seed), self.folder / target.task / f"seed-{seed}"


def transfer(
    model: str,
    tickets: Mapping[str, Mapping[int, Ticket]],
    targets: Sequence[Target],
    out: str | os.PathLike[str],
    *,
    seeds: Sequence[int],
    dense_folder: str | os.PathLike[str] | None = None,
    random: bool = False,
    max_length: int | None = None,
    say: Callable[[str], None] = lambda text: None,
    before: Callable[[nn.Module, RunConfig], None] = lambda model, request: None,
) -> list[Record]:
    """Train every ticket on every target, from the pre-trained weights and a fresh head; a record a cell.

    ``tickets``: name of the source -> seed -> ticket. ``out``: folder of the runs. ``dense_folder``: that of
    the dense runs, ``TASK/seed-N`` below it; they are made where they lack, below ``out`` without it.
    ``random``: also random masks of the tickets' sparsity, granularity and matrices, drawn by the seed.
    ``say``, ``before``: as for :func:`sparsebert.workflows.train.train`.

    A record has ``source`` and the fields of :func:`sparsebert.workflows.train.over_seeds`; those of the dense model
    come first for each target and carry no verdict. Raises ValueError, before any training, for names that
    are no folder names or taken, an unknown task and bad data; and as :func:`sparsebert.workflows.train.train` does.
    """
    out = Path(out)
    rows = [_Row(DENSE, Path(dense_folder) if dense_folder else out / DENSE, _dense)]
    for name, by_seed in tickets.items():
        if name in (DENSE, RANDOM) or not re.fullmatch(r"[\w][\w.+-]*", name):
            raise ValueError(f"{name!r} cannot be the name of a ticket's source: choose another")
        rows.append(_Row(name, out / name, _given(by_seed)))
    if random:
        rows += _random_rows(tickets, out)
    data = {target.task: _examples(target, rows, seeds) for target in targets}
    records: list[Record] = []
    for target in targets:
        # What the runs of a task read is encoded for the first of them, and held for no other task.
        encode, examples = EncodedOnce(), data.pop(target.task)
        dense_runs: list[list[Record]] = []
        for row in rows:
            runs = []
            for request, folder in row.runs(target, seeds):
                say(f"{row.name} on {target.task}, seed {request.training.seed}")
                done = train(
                    target.task,
                    model,
                    request,
                    folder,
                    data=examples,
                    max_length=max_length,
                    say=say,
                    before=before,
                    encode=encode,
                )
                runs.append(done)
            if row.name == DENSE:
                dense_runs = runs
            (found,) = over_seeds(task_of(target.task, target.data), runs, dense_runs)
            records.append({"source": row.name, **found})
    return records


def sparsity_differences(tickets: Mapping[str, Mapping[int, Ticket]]) -> dict[str, float]:
    """Return source -> sparsity where the tickets' sparsities differ, else nothing."""
    found = {
        (name if len(set(map(id, by_seed.values()))) == 1 else f"{name} (seed {seed})"): ticket.sparsity
        for name, by_seed in tickets.items()
        for seed, ticket in by_seed.items()
    }
    return found if max(found.values()) - min(found.values()) > SAME_SPARSITY else {}


def _dense(target: Target, seed: int) -> RunConfig:
    return RunConfig(lottery_method(DENSE), 0.0, training=target.training)


def _given(by_seed: Mapping[int, Ticket]) -> Callable[[Target, int], RunConfig]:
    return lambda target, seed: RunConfig(
        lottery_method("ticket"), training=target.training, ticket=by_seed[seed]
    )


def _random_rows(tickets: Mapping[str, Mapping[int, Ticket]], out: Path) -> list[_Row]:
    """One row for each combination of sparsity and units that the tickets have."""
    kinds: dict[tuple[float, PruningUnits], float] = {}
    for by_seed in tickets.values():
        for ticket in by_seed.values():
            kinds.setdefault((round(ticket.sparsity, 3), _units(ticket)), ticket.sparsity)
    names = [RANDOM] if len(kinds) == 1 else [f"{RANDOM}-{number}" for number in range(1, len(kinds) + 1)]
    return [
        _Row(name, out / name, _random(sparsity, units))
        for name, ((_, units), sparsity) in zip(names, kinds.items(), strict=True)
    ]


def _units(ticket: Ticket) -> PruningUnits:
    """What the ticket says it was pruned in; single weights where it says nothing."""
    granularity, size = ticket.metadata.get("granularity", "element"), ticket.metadata.get("block_size")
    block = (int(size[0]), int(size[1])) if size else None
    return PruningUnits(granularity, block, include_pooler=POOLER in ticket.masks)


def _random(sparsity: float, units: PruningUnits) -> Callable[[Target, int], RunConfig]:
    def request(target: Target, seed: int) -> RunConfig:
        pooler = units.include_pooler and has_pooler(task_of(target.task, target.data))
        own = replace(units, include_pooler=pooler)
        return RunConfig(lottery_method(RANDOM), sparsity, own, target.training)

    return request


def _examples(target: Target, rows: Sequence[_Row], seeds: Sequence[int]) -> Data:
    """The target's examples, read once and before any training; left alone where nothing is to be done."""
    folders = [folder for row in rows for _, folder in row.runs(target, seeds)]
    return read_for(folders, task_of(target.task, target.data), target.data)
