"""The transfer matrix of Chen et al. 2020, section 4: tickets from source tasks are trained on target tasks.

A cell of the matrix is a set of runs, one per seed, in folders ``SOURCE/TASK/seed-N``. Finished runs are not
repeated.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sparsebert.lottery.experiment import RunConfig
from sparsebert.lottery.method import lottery_method
from sparsebert.lottery.run_context import RunContext
from sparsebert.lottery.run_folder import Record
from sparsebert.pruning.pruning_units import PruningUnits
from sparsebert.tasks import Data, EncodedOnce, TextFormat
from sparsebert.tickets.ticket import SAME_SPARSITY, Ticket
from sparsebert.training.settings import TrainingSettings
from sparsebert.workflows.assemble import has_pooler, load_once, task_of
from sparsebert.workflows.train import POOLER, over_seeds, seeded, train

DENSE, RANDOM = "dense", "random"


@dataclass(frozen=True)
class Target:
    """A task to train on.

    Attributes:
        task: The task's name.
        data: Its examples, as for :func:`sparsebert.workflows.train.train`.
        training: Settings of the training.
    """

    task: str
    data: Data
    training: TrainingSettings


@dataclass(frozen=True)
class _Row:
    """A row of the matrix: its name, its folder, and the configuration for a target and a seed."""

    name: str
    folder: Path
    config: Callable[[Target, int], RunConfig]

    def runs(self, target: Target, seeds: Sequence[int]) -> Iterator[tuple[RunConfig, Path]]:
        for seed in seeds:
            yield seeded(self.config(target, seed), seed), self.folder / target.task / f"seed-{seed}"


def transfer(
    model: str,
    tickets: Mapping[str, Mapping[int, Ticket]],
    targets: Sequence[Target],
    out: str | os.PathLike[str],
    *,
    seeds: Sequence[int],
    dense_folder: str | os.PathLike[str] | None = None,
    random: bool = False,
    text_format: TextFormat = TextFormat(),
    context: RunContext = RunContext(),
) -> list[Record]:
    """Train every ticket on every target, from the pre-trained weights and a fresh head.

    Args:
        model: Hub id or local folder of the pre-trained BERT.
        tickets: Source's name -> seed -> ticket.
        targets: The tasks to train on.
        out: Folder of the runs.
        seeds: Seeds of the runs.
        dense_folder: Folder of the dense runs, with ``TASK/seed-N`` below it; missing runs are trained there.
            None stands for ``out/dense``.
        random: Also train random masks of the tickets' sparsity, granularity and matrices.
        text_format: Format in which the model reads examples.
        context: As for :func:`sparsebert.workflows.train.train`.

    Returns:
        One record per cell: ``source`` and the fields of :func:`sparsebert.workflows.train.over_seeds`. For
        each target, the dense model comes first and has no verdict.

    Raises:
        ValueError: For a name that is reserved or cannot be a folder, an unknown task, and bad data, before
            any training; during training as :func:`sparsebert.workflows.train.train`.
    """
    out = Path(out)
    rows = [_Row(DENSE, Path(dense_folder) if dense_folder else out / DENSE, _dense_config)]
    for name, by_seed in tickets.items():
        if name in (DENSE, RANDOM) or not re.fullmatch(r"[\w][\w.+-]*", name):
            raise ValueError(f"{name!r} cannot be the name of a ticket's source; choose another")
        rows.append(_Row(name, out / name, _ticket_config(by_seed)))
    if random:
        rows += _random_rows(tickets, out)
    data = {target.task: _examples(target, rows, seeds) for target in targets}
    records: list[Record] = []
    for target in targets:
        # The runs of a task share its encoded examples, which are released before the next task.
        encode, examples = EncodedOnce(), data.pop(target.task)
        dense_runs: list[list[Record]] = []
        for row in rows:
            runs = []
            for config, folder in row.runs(target, seeds):
                run = f"{row.name} on {target.task}, seed {config.training.seed}"
                runs.append(
                    train(
                        target.task,
                        model,
                        config,
                        folder,
                        data=examples,
                        text_format=text_format.for_task(task_of(target.task, target.data)),
                        context=context.of_run(run),
                        encode=encode,
                    )
                )
            if row.name == DENSE:
                dense_runs = runs
            (cell,) = over_seeds(task_of(target.task, target.data), runs, dense_runs)
            records.append({"source": row.name, **cell})
    return records


def sparsity_differences(tickets: Mapping[str, Mapping[int, Ticket]]) -> dict[str, float]:
    """Return the sparsity of each source if the tickets differ in sparsity; else an empty dict."""
    sparsities = {
        (name if len(set(map(id, by_seed.values()))) == 1 else f"{name} (seed {seed})"): ticket.sparsity
        for name, by_seed in tickets.items()
        for seed, ticket in by_seed.items()
    }
    return sparsities if max(sparsities.values()) - min(sparsities.values()) > SAME_SPARSITY else {}


def _dense_config(target: Target, seed: int) -> RunConfig:
    return RunConfig(lottery_method(DENSE), 0.0, training=target.training)


def _ticket_config(by_seed: Mapping[int, Ticket]) -> Callable[[Target, int], RunConfig]:
    return lambda target, seed: RunConfig(
        lottery_method("ticket"), training=target.training, ticket=by_seed[seed]
    )


def _random_rows(tickets: Mapping[str, Mapping[int, Ticket]], out: Path) -> list[_Row]:
    """Return one row for each combination of sparsity and units among the tickets."""
    kinds: dict[tuple[float, PruningUnits], float] = {}
    for by_seed in tickets.values():
        for ticket in by_seed.values():
            kinds.setdefault((round(ticket.sparsity, 3), _units(ticket)), ticket.sparsity)
    names = [RANDOM] if len(kinds) == 1 else [f"{RANDOM}-{number}" for number in range(1, len(kinds) + 1)]
    return [
        _Row(name, out / name, _random_config(sparsity, units))
        for name, ((_, units), sparsity) in zip(names, kinds.items(), strict=True)
    ]


def _units(ticket: Ticket) -> PruningUnits:
    """Return the units in a ticket's metadata; single weights if it records none."""
    granularity, size = ticket.metadata.get("granularity", "element"), ticket.metadata.get("block_size")
    block = (int(size[0]), int(size[1])) if size else None
    round_to = ticket.metadata.get("round_to")
    return PruningUnits(granularity, block, include_pooler=POOLER in ticket.masks, round_to=round_to)


def _random_config(sparsity: float, units: PruningUnits) -> Callable[[Target, int], RunConfig]:
    def config(target: Target, seed: int) -> RunConfig:
        pooler = units.include_pooler and has_pooler(task_of(target.task, target.data))
        return RunConfig(
            lottery_method(RANDOM), sparsity, replace(units, include_pooler=pooler), target.training
        )

    return config


def _examples(target: Target, rows: Sequence[_Row], seeds: Sequence[int]) -> Data:
    """Return the target's examples, loaded once, unless all of its runs are finished."""
    folders = [folder for row in rows for _, folder in row.runs(target, seeds)]
    return load_once(folders, task_of(target.task, target.data), target.data)
