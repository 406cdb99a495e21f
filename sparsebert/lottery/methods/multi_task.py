"""Tickets for several tasks at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from sparsebert.lottery.method import register
from sparsebert.lottery.methods.imp import IterativeMagnitude
from sparsebert.training.task_sampling import proportions_of


@register("multi-task")
@dataclass(frozen=True)
class MultiTask(IterativeMagnitude):
    """Iterative magnitude pruning of an encoder that several tasks train together, each with its own head:
    one mask for all tasks.

    Chen et al. 2020 combined masked language modelling with a downstream task; the tickets were not more
    universal than tickets of masked language modelling alone. Their code lacks a script for it, so the
    division of a round is our choice: batches of the tasks alternate
    (:class:`sparsebert.training.task_sampling.TaskSampler`).

    Attributes:
        proportions: Shares of the batches: "equal", "size" (of the training data), or one number per task,
            such as "2,1".
    """

    multi_task: ClassVar[bool] = True

    proportions: str = field(
        default="equal",
        metadata={
            "help": "shares of the batches: equal, size (of the training data), or one number per task: 2,1"
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        proportions_of(self.proportions)
