"""Tickets of several tasks at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsebert.lottery.method import register
from sparsebert.lottery.methods.imp import IterativeMagnitude
from sparsebert.training.task_sampling import proportions_of


@register("multi-task")
@dataclass(frozen=True)
class MultiTask(IterativeMagnitude):
    """Iterative magnitude pruning of an encoder that several tasks train together, each with a head of its
    own: one mask for all of them.

    Chen et al. 2020 tried it with masked language modelling and a downstream task, and found the tickets no
    more universal than those of masked language modelling alone; their code has no script for it, so how the
    tasks share a round is ours: batches in turn (:class:`sparsebert.training.task_sampling.TaskTurns`), by
    ``proportions``: "equal", "size" (of the training data), or a number for each task, "2,1".
    """

    joint: ClassVar[bool] = True

    proportions: str = "equal"

    def __post_init__(self) -> None:
        super().__post_init__()
        proportions_of(self.proportions)
