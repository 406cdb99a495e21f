"""What the commands have in common: groups of options, early checks of what is asked, talking to a terminal.

A group is a dataclass whose fields are options, under its ``panel`` as their heading in --help.
:func:`flattened` makes a command that takes groups into one that takes their options, so that every command
offers an option of the same name with the same default.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args, get_type_hints

import typer

from sparsebert.cli.path_checks import require_files
from sparsebert.training.settings import TrainingSettings

if TYPE_CHECKING:
    from rich.console import Console

    from sparsebert.report.table import Table
    from sparsebert.tasks import TaskData
    from sparsebert.training.distillation import Distillation

TASK_NAMES = "sst2, cola, mrpc, stsb, qqp, mnli, qnli, rte, wnli, squad, wikitext-2"
GRANULARITY_HELP = (
    "element, 4x1 (any ROWSxCOLUMNS block), row, column, neuron, head, mlp, head+neuron, head+mlp, "
    "2:4 (any N:M)"
)
OWN_TASK = "own"

JsonFile = Annotated[
    Path | None, typer.Option("--json", help="append the results to this file, as JSON lines")
]
Seeds = Annotated[str, typer.Option("--seeds", "--seed", help="one run each: 1,2,3")]
TaskName = Annotated[
    str | None, typer.Option("--task", help=f"{TASK_NAMES}; or any name for files of your own")
]
PretrainedModel = Annotated[str, typer.Option("--model", help="a pre-trained BERT: hub id or local folder")]
TicketFile = Annotated[
    Path | None,
    typer.Option(
        "--ticket",
        help="ticket file, mask.pt of BERT-Tickets, .npy of SMP or bert-experiments, JSON of Super Tickets, "
        "or a run's folder",
    ),
]

# The settings of training that are options, in this order; their defaults are those of the settings.
TRAINING_PANEL = "Training"
TRAINING_HELP = {
    "steps": "optimizer steps a round, instead of --epochs",
    "epochs": "passes over the data a round",
    "batch_size": "examples of a batch, on each device",
    "group_by_length": "batches of examples of about the same length",
    "gradient_accumulation": "batches of an optimizer step",
    "gradient_checkpointing": "compute activations twice instead of storing them",
    "learning_rate": "at the beginning of a round",
    "schedule": "of the learning rate: linear, cosine, constant",
    "warmup_steps": "of the learning rate",
    "weight_decay": "of AdamW",
    "precision": "fp32, bf16 or fp16 (mixed)",
    "device": "auto or cpu",
    "save_steps": "steps between checkpoints",
}


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where a task's examples come from: a folder, the hub, or tables of the user's own."""

    panel: ClassVar = "Data"

    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "--data-dir",
            help="folder with the tasks' files as distributed (SST-2/train.tsv, ...); without it, the hub",
        ),
    ] = None
    train_file: Annotated[
        Path | None, typer.Option(help="a task of your own: table to train on (.csv, .tsv, .jsonl)")
    ] = None
    validation_file: Annotated[Path | None, typer.Option(help="a task of your own: table to judge by")] = None
    text_columns: Annotated[
        str, typer.Option(help="of your own tables: the column of text, or two: premise,hypothesis")
    ] = "text"
    label_column: Annotated[str, typer.Option(help="of your own tables: the column of labels")] = "label"
    regression: Annotated[
        bool, typer.Option("--regression", help="of your own tables: labels are scores")
    ] = False
    max_length: Annotated[
        int | None, typer.Option(help="where examples are cut, in tokens; the task's own limit without it")
    ] = None

    @property
    def own(self) -> bool:
        """Whether files of the user's own are named."""
        return self.train_file is not None or self.validation_file is not None

    def task_name(self, given: str | None) -> str:
        """The task of a command that has one. Raises ValueError where none is named, or two are."""
        from sparsebert.tasks import TASKS

        if given is None and not self.own:
            raise ValueError(
                f"a task is missing: --task with one of {TASK_NAMES}, "
                "or --train-file and --validation-file for one of your own"
            )
        if given in TASKS and self.own:
            raise ValueError(f"--task {given} has files of its own: give the task of yours another name")
        return given or OWN_TASK

    def source(self, task: str, labels: tuple[str, ...] | None = None) -> Path | TaskData | None:
        """The ``data`` of :func:`sparsebert.workflows.train.train` for this task.

        ``labels``: those of a model that is trained on the user's task already; without them the training
        file says what they are. Raises ValueError for an unknown task, and ValueError and OSError as
        :func:`sparsebert.tasks.load_files` does.
        """
        from sparsebert.tasks import TASKS, find_task, load_files

        if task in TASKS or not self.own:
            find_task(task)
            return self.data
        if self.validation_file is None:
            raise ValueError("--validation-file is missing: a task of your own needs something to judge by")
        if self.train_file is None and labels is None:
            raise ValueError("--train-file is missing: a task of your own needs something to train on")
        require_files({"--train-file": self.train_file, "--validation-file": self.validation_file})
        return load_files(
            self.train_file,
            self.validation_file,
            columns=[column.strip() for column in self.text_columns.split(",")],
            label=self.label_column,
            labels=labels,
            regression=self.regression,
            name=task,
        )


@dataclass(frozen=True, kw_only=True)
class UnitOptions:
    """What is pruned together, and what competes for its place."""

    panel: ClassVar = "What is pruned"

    granularity: Annotated[
        str | None,
        typer.Option(
            help=f"{GRANULARITY_HELP}; by default element, or heads with neurons or MLPs as the method does"
        ),
    ] = None
    scope: Annotated[
        str | None,
        typer.Option(
            help="what competes: global, matrix, type, or heads-by-layer (heads in their layer, neurons "
            "everywhere: EarlyBERT's); by default global, or as the method does"
        ),
    ] = None
    pooler: Annotated[bool, typer.Option("--pooler", help="prune the pooler too, as Chen et al. do")] = False

    def arguments(self, granularity: str = "element", scope: str = "global") -> dict[str, Any]:
        """Those of :func:`sparsebert.prune`, and of a lottery run's Units; these where none are given."""
        return {
            "granularity": self.granularity or granularity,
            "scope": self.scope or scope,
            "include_pooler": self.pooler,
        }


@dataclass(frozen=True, kw_only=True)
class DistillationOptions:
    """A teacher, and how much it counts; None is the default of :class:`Distillation`."""

    panel: ClassVar = "Teacher"

    teacher: Annotated[
        str | None,
        typer.Option(
            help="a model trained on the task to learn from: hub id, folder of a model or run, or of runs by "
            "seed (each seed then has its own); on several tasks sst2=PATH,mrpc=PATH"
        ),
    ] = None
    distill_weight: Annotated[
        float | None,
        typer.Option(help="share of the teacher in the loss; 0.5, and 0.9 in nn_pruning and CAP"),
    ] = None
    distill_temperature: Annotated[float | None, typer.Option(help="of the teacher's answers; 2")] = None

    def settings(self) -> Distillation | None:
        """Raises ValueError where a teacher is missing, and as Distillation does."""
        from sparsebert.training.distillation import Distillation

        asked = {"weight": self.distill_weight, "temperature": self.distill_temperature}
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        if self.teacher is None:
            if given:
                raise ValueError(f"--distill-{next(iter(given))} needs a --teacher")
            return None
        return Distillation(**given)

    def by_task(self, task: str, others: Sequence[str]) -> dict[str, str]:
        """Task -> model; what names no task is the first one's. Raises ValueError for two of one task."""
        if self.teacher is None or not others:
            return {} if self.teacher is None else {task: self.teacher}
        found: dict[str, str] = {}
        for part in self.teacher.split(","):
            name, named, path = part.strip().partition("=")
            name, path = (name, path) if named else (task, name)
            if name in found:
                raise ValueError(f"--teacher {self.teacher!r} names two teachers for {name}")
            found[name] = path
        return found


def flattened(command: Callable[..., None]) -> Callable[..., None]:
    """A command as typer takes it: a parameter whose type is a dataclass becomes one option a field.

    Of :class:`TrainingSettings`, which knows nothing of commands, the fields in ``TRAINING_HELP``.
    """
    parameters: dict[str, inspect.Parameter] = {}
    groups: dict[str, tuple[type, list[str]]] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        found, group = [parameter], parameter.annotation
        if isinstance(group, type) and is_dataclass(group):
            found = _options_of(group)
            groups[parameter.name] = group, [option.name for option in found]
        # No option has a place in a line of arguments, so a required one may follow one that is not.
        parameters |= {each.name: each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in found}

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for group, (cls, names) in groups.items():
            values[group] = cls(**{name: values.pop(name) for name in names})
        command(**values)

    run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: each.annotation for name, each in parameters.items()}
    return run


def _options_of(cls: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(cls, include_extras=True)
    options = []
    for field in fields(cls):
        hint = hints[field.name]
        if cls is TrainingSettings:
            if field.name not in TRAINING_HELP:
                continue
            flags = [f"--{field.name.replace('_', '-')}"] if hint is bool else []
            hint = Annotated[hint, typer.Option(*flags, help=TRAINING_HELP[field.name])]
        kind, option = get_args(hint)
        option = copy.copy(option)  # the same one serves outside of groups
        option.rich_help_panel = getattr(cls, "panel", TRAINING_PANEL if cls is TrainingSettings else None)
        hint = Annotated[kind, option]
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        options.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
        )
    return options


def seed_list(text: str) -> list[int]:
    """The seeds of "1,2,3", each once. Raises ValueError for anything but whole numbers."""
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ValueError(f"--seeds {text!r}: whole numbers are expected, such as 0 or 1,2,3") from None


def console() -> Console:
    from rich.console import Console

    found = Console()
    # A pipe has no width of its own, and 80 columns are few.
    return found if found.is_terminal else Console(width=120)


def print_tables(tables: Iterable[Table]) -> None:
    screen = console()
    for table in tables:
        screen.print(table.rich(screen.width))
        screen.print()


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


def say(text: str) -> None:
    """On a terminal what is going on; elsewhere only what ends it."""
    if sys.stderr.isatty() or "nothing to do" in text:
        typer.echo(text, err=not text.endswith("nothing to do"))
