"""Groups of options: dataclasses whose fields are options, each group under its own heading in ``--help``.

:func:`flattened` turns a command that takes groups into a command that takes their options. The commands that
share a group therefore have the same options with the same defaults.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args, get_type_hints

import typer

from sparsebert.cli.shared_options import GRANULARITY_HELP
from sparsebert.training.settings import TrainingSettings

if TYPE_CHECKING:
    from sparsebert.training.distillation import Distillation

# The training settings that are options, with their help; order and defaults come from TrainingSettings.
TRAINING_PANEL = "Training"
TRAINING_HELP = {
    "steps": "optimizer steps per round, instead of --epochs",
    "epochs": "passes over the training data per round",
    "batch_size": "examples per batch on each device",
    "group_by_length": "batch examples of similar length together",
    "gradient_accumulation": "batches per optimizer step",
    "gradient_checkpointing": "recompute activations instead of storing them",
    "learning_rate": "peak learning rate of a round",
    "schedule": "learning-rate schedule: linear, cosine or constant",
    "warmup_steps": "steps of learning-rate warm-up [default: 0; cap-structured: see --warmup-ratio]",
    "warmup_ratio": "the same as a share of the steps that the schedule spans, such as 0.1 [default of "
    "cap-structured: 0.1]",
    "optimizer": "adamw, adamax or sgd (without momentum)",
    "weight_decay": "weight decay, decoupled with AdamW",
    "adam_epsilon": "epsilon of AdamW and Adamax",
    "max_grad_norm": "norm at which gradients are clipped; 0 for no clipping",
    "precision": "fp32, or mixed precision in bf16 or fp16",
    "device": "auto or cpu",
    "save_steps": "steps between checkpoints",
}

# Pairs of options of which a command line names one, and the length that they set.
_LENGTHS = (("--steps", "--epochs", "a round"), ("--warmup-steps", "--warmup-ratio", "the warm-up"))


@dataclass(frozen=True, kw_only=True)
class UnitOptions:
    """Units that are pruned together, and the scope in which they compete."""

    panel: ClassVar = "Pruning units"

    granularity: Annotated[
        str | None,
        typer.Option(help=f"{GRANULARITY_HELP}; if omitted, element or the method's default"),
    ] = None
    scope: Annotated[
        str | None,
        typer.Option(
            help="scope in which units compete: global, matrix, type, or heads-by-layer (heads within their "
            "layer, neurons globally, as in EarlyBERT); if omitted, global or the method's default"
        ),
    ] = None
    pooler: Annotated[bool, typer.Option("--pooler", help="also prune the pooler, as Chen et al. do")] = False
    round_to: Annotated[
        int | None,
        typer.Option(
            help="with panels: each panel keeps a multiple of this number of columns [default: 32 for groups "
            "of 1 or 2 columns, 64 for wider ones]"
        ),
    ] = None

    def arguments(self, granularity: str = "element", scope: str = "global") -> dict[str, Any]:
        """Return arguments of :func:`sparsebert.prune`, which are also fields of ``PruningUnits``.

        Args:
            granularity: Granularity if the user names none.
            scope: Scope if the user names none.
        """
        return {
            "granularity": granularity if self.granularity is None else self.granularity,
            "scope": scope if self.scope is None else self.scope,
            "include_pooler": self.pooler,
            "round_to": self.round_to,
        }


@dataclass(frozen=True, kw_only=True)
class DistillationOptions:
    """A teacher and its weight in the loss; None stands for the default of the method."""

    panel: ClassVar = "Teacher"

    teacher: Annotated[
        str | None,
        typer.Option(
            help="trained model to distil from: hub id, or folder of a model, of a run, or of runs by seed "
            "(one teacher per seed); with several tasks: sst2=PATH,mrpc=PATH"
        ),
    ] = None
    distill_weight: Annotated[
        float | None,
        typer.Option(
            help="weight of the teacher in the loss; nn_pruning: 0.9 [default: 0.5; cap, cap-soft, "
            "cap-structured: 0.9]"
        ),
    ] = None
    distill_temperature: Annotated[
        float | None,
        typer.Option(help="temperature of the teacher's logits [default: 2; cap-structured: 1]"),
    ] = None

    def settings(self, defaults: Distillation) -> Distillation | None:
        """Return the settings of distillation, or None without a teacher.

        Args:
            defaults: The method's settings, for options that the user omits.

        Raises:
            ValueError: If there are settings but no teacher, and as ``Distillation``.
        """
        values = {"weight": self.distill_weight, "temperature": self.distill_temperature}
        options: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
        if self.teacher is None:
            if options:
                raise ValueError(f"--distill-{next(iter(options))} requires --teacher: add it")
            return None
        return replace(defaults, **options)

    def by_task(self, task: str, others: Sequence[str]) -> dict[str, str]:
        """Return teachers by task. A path without a task belongs to ``task``.

        Raises:
            ValueError: If two teachers have the same task.
        """
        if self.teacher is None or not others:
            return {} if self.teacher is None else {task: self.teacher}
        teachers: dict[str, str] = {}
        for part in self.teacher.split(","):
            name, equals, path = part.strip().partition("=")
            name, path = (name, path) if equals else (task, name)
            if name in teachers:
                raise ValueError(f"--teacher {self.teacher!r} names two teachers for {name}")
            teachers[name] = path
        return teachers


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """How a sparse model computes on a CPU."""

    panel: ClassVar = "Execution"

    tolerance: Annotated[
        str | None,
        typer.Option(
            metavar="<precision>",
            help="lowest precision in which layers may compute on a CPU: fp32, bf16 or int8 [default: fp32]",
        ),
    ] = None
    fuse: Annotated[
        bool | None,
        typer.Option(
            "--fuse/--no-fuse",
            help="run the encoder in one native call: --fuse demands it, --no-fuse forbids it [default: "
            "where the answers stay the same and it is faster]",
        ),
    ] = None

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown precision."""
        if self.tolerance is not None:
            from sparsebert.cost.precision import require_tolerance

            require_tolerance(self.tolerance)

    @property
    def given(self) -> dict[str, object]:
        """The options and their values, None for those that the user omitted."""
        fuse = "--no-fuse" if self.fuse is False else "--fuse"
        return {"--tolerance": self.tolerance, fuse: None if self.fuse is None else fuse}

    def arguments(self) -> dict[str, Any]:
        """Return arguments of :func:`sparsebert.sparsify_`."""
        return {"tolerance": self.tolerance or "fp32", "fuse": self.fuse}


def require_one_length(arguments: Sequence[str]) -> None:
    """Raise ValueError for two options of one length, whose defaults cannot be told from values."""
    given = {argument.partition("=")[0] for argument in arguments}
    for first, second, length in _LENGTHS:
        if {first, second} <= given:
            raise ValueError(
                f"{first} conflicts with {second}: both set the length of {length}; omit one of them"
            )


def flattened(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command for typer in which each group parameter is replaced by one option per field.

    The fields of :class:`TrainingSettings` have no annotations for typer; those in ``TRAINING_HELP`` become
    options. The attribute ``grouped`` of the result turns values of options into arguments of ``command``.
    """
    parameters: dict[str, inspect.Parameter] = {}
    groups: dict[str, tuple[type, list[str]]] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        options, group = [parameter], parameter.annotation
        if isinstance(group, type) and is_dataclass(group):
            options = _options_of(group)
            groups[parameter.name] = group, [option.name for option in options]
        # Options are keyword-only, so a required one may follow an optional one.
        parameters |= {each.name: each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in options}

    def grouped(values: Mapping[str, Any]) -> dict[str, Any]:
        values = dict(values)
        for group, (cls, names) in groups.items():
            values[group] = cls(**{name: values.pop(name) for name in names})
        return values

    @functools.wraps(command)
    def run(**values: Any) -> None:
        command(**grouped(values))

    run.grouped = grouped  # type: ignore[attr-defined]
    run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: each.annotation for name, each in parameters.items()}
    return run


def _options_of(cls: Any) -> list[inspect.Parameter]:
    """Return the fields of a group as parameters, annotated with their options."""
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
        option = copy.copy(option)  # The same object is also used outside of groups.
        option.rich_help_panel = getattr(cls, "panel", TRAINING_PANEL if cls is TrainingSettings else None)
        hint = Annotated[kind, option]
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        options.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
        )
    return options
