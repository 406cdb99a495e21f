"""The runs that a command line of `train` asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from sparsebert.cli.data_options import DataOptions
from sparsebert.cli.method_options import MethodOptions
from sparsebert.cli.option_groups import DistillationOptions, UnitOptions
from sparsebert.training.settings import TrainingSettings

if TYPE_CHECKING:
    from sparsebert.lottery.experiment import RunConfig
    from sparsebert.lottery.method import LotteryMethod
    from sparsebert.lottery.run_context import RunContext
    from sparsebert.lottery.run_folder import Record
    from sparsebert.pruning.pruning_units import PruningUnits
    from sparsebert.tasks import Data, Task
    from sparsebert.tickets.ticket import Ticket
    from sparsebert.workflows.example_cache import ExampleCache


@dataclass(frozen=True)
class FinishedRuns:
    """Records of the rounds of each run, the tickets' and the dense ones', and their task."""

    task: Task
    runs: list[list[Record]]
    dense_runs: list[list[Record]]


@dataclass(frozen=True, kw_only=True)
class TrainRuns:
    """The options of `train` that its runs have in common; fields are the command's parameters."""

    model: str
    data: DataOptions
    units: UnitOptions
    training: TrainingSettings
    options: MethodOptions
    distillation: DistillationOptions
    task: str | None
    method: str
    also: str | None
    sparsity: float | None
    ticket: Path | None
    start_ticket: Path | None

    @property
    def task_name(self) -> str:
        """Name of the task. Raises ValueError if it is missing or does not fit the data."""
        return self.data.task_name(self.task)

    @property
    def other_tasks(self) -> list[str]:
        """Names of the other tasks of a method that works on several."""
        return [each.strip() for each in self.also.split(",")] if self.also else []

    @cached_property
    def config(self) -> RunConfig:
        """The configuration that all seeds share. Raises ValueError for options that do not fit."""
        from sparsebert.lottery.find_runs import load_ticket
        from sparsebert.tasks.models import skeleton

        return self._config(
            *(
                load_ticket(path, skeleton(self.model)) if path else None
                for path in (self.ticket, self.start_ticket)
            )
        )

    def check(self) -> None:
        """Check all options as far as this is possible without data, weights and tickets.

        Raises:
            ValueError: In one line, for options that do not fit.
        """
        from sparsebert.tasks import TASKS, find_task

        self._require_applicable_folder()
        for name in (self.task_name, *self.other_tasks):
            if name in TASKS or not self.data.user_files:
                find_task(name)
        if self.ticket is None and self.start_ticket is None:
            self._config(None, None)
            return
        lottery, _ = self._method_and_units()
        self.distillation.settings(lottery.distillation)
        if self.ticket is not None and not lottery.needs_ticket:
            raise ValueError(f"method {lottery.name} finds its own ticket: omit the ticket")
        if self.start_ticket is not None and not lottery.takes_start_ticket:
            raise ValueError(f"method {lottery.name} does not start from a ticket: omit the start ticket")

    def sources(self, examples: ExampleCache) -> dict[str, Data]:
        """Return the origin of each task's examples, the main task's first.

        Raises:
            ValueError: In one line, for an unknown task, and for files that are missing or do not fit.
        """
        names = [self.task_name, *self.other_tasks]
        self._require_applicable_folder()
        return {name: examples.source(self.data, name) for name in names}

    def carry_out(
        self,
        folders: Mapping[int, Path],
        dense_folders: Mapping[int, Path],
        context: RunContext,
        examples: ExampleCache,
    ) -> FinishedRuns:
        """Carry out the runs, and dense runs of the same training to compare with.

        Args:
            folders: Folder of the run by seed.
            dense_folders: Folder of the dense run by seed; empty for none.
            context: Callbacks. Lines of several seeds name theirs; ``before`` is called for the first.
            examples: Holds the examples, which are loaded and encoded once for all runs.

        Raises:
            ValueError: As :func:`sparsebert.workflows.train.train`.
            OSError: As the same.
        """
        import sparsebert.workflows.train as workflow
        from sparsebert.lottery.find_runs import model_for_each
        from sparsebert.lottery.run_context import RunContext
        from sparsebert.workflows.assemble import task_of

        sources = self.sources(examples)
        name, source = next(iter(sources.items()))
        other_sources = {each: sources[each] for each in self.other_tasks}
        config = self.config
        teachers = {
            each: model_for_each(path, list(folders))
            for each, path in self.distillation.by_task(name, self.other_tasks).items()
        }
        main_task = self.data.mapped(task_of(name, source))
        loaded = examples.load([*folders.values(), *dense_folders.values()], main_task, source)
        others = {
            each: examples.load(folders.values(), task_of(each, other), other)
            for each, other in other_sources.items()
        }
        train_run = partial(
            workflow.train,
            main_task,
            self.model,
            data=loaded,
            text_format=self.data.text_format,
            encode=examples.encode,
        )
        plain = replace(context, before=RunContext().before)
        runs = []
        for number, (seed, folder) in enumerate(folders.items()):
            of_seed = plain if number else context
            run = train_run(
                workflow.seeded(config, seed),
                folder,
                also=others,
                teacher={each: by_seed[seed] for each, by_seed in teachers.items()},
                context=of_seed.of_run(f"seed {seed}") if len(folders) > 1 else of_seed,
            )
            runs.append(run)
        dense_runs = [
            train_run(
                workflow.dense(workflow.seeded(config, seed)),
                folder,
                context=plain.of_run(f"dense, seed {seed}"),
            )
            for seed, folder in dense_folders.items()
        ]
        return FinishedRuns(main_task, runs, dense_runs)

    def lengths(self, examples: ExampleCache, count: int) -> list[int]:
        """Return the tokens of the first validation examples.

        Args:
            examples: Holds the task's examples.
            count: Number of examples.

        Raises:
            ValueError: The examples or the tokenizer cannot be loaded.
        """
        from sparsebert.tasks.load_tokenizer import load_tokenizer
        from sparsebert.workflows.assemble import examples_of, task_of

        source = examples.source(self.data, self.task_name)
        task = task_of(self.task_name, source)
        shown = examples_of(task, source, train=False).validation[task.splits[0]][:count]
        encoded = examples.encode(shown, task, load_tokenizer(self.model), self.data.text_format)
        return list(encoded.lengths.tolist())

    def folder_name(self, seeds: str) -> str:
        """Return the default name of the folder of these runs, for use without --out."""
        from sparsebert.tasks.models import short_name

        config, model = self.config, short_name(self.model).replace("/", "-")
        sparsity = f"-{float(config.target) * 100:g}" if config.target else ""
        start = config.start_ticket
        origin = f"-from-{start.sparsity * 100:.3g}" if start is not None else ""
        name = f"{self.task_name}-{model}-{config.method.name}{sparsity}{origin}"
        return f"{name}-seed-{seeds.replace(',', '-')}"

    def _require_applicable_folder(self) -> None:
        self.data.require_applicable_folder([self.task_name, *self.other_tasks])

    def _method_and_units(self) -> tuple[LotteryMethod, PruningUnits]:
        import sparsebert.lottery.methods  # noqa: F401  (registers them)
        from sparsebert.lottery.method import lottery_method
        from sparsebert.pruning.pruning_units import PruningUnits

        lottery = lottery_method(self.method, **vars(self.options))
        return lottery, PruningUnits(**self.units.arguments(lottery.granularity, lottery.scope))

    def _config(self, ticket: Ticket | None, start_ticket: Ticket | None) -> RunConfig:
        from sparsebert.lottery.experiment import RunConfig

        lottery, units = self._method_and_units()
        return RunConfig(
            lottery,
            0.0 if self.method == "dense" and self.sparsity is None else self.sparsity,
            units,
            self.training,
            ticket,
            distillation=self.distillation.settings(lottery.distillation),
            start_ticket=start_ticket,
        )
