"""Several tasks as one experiment: a shared encoder, a head for each, batches of them in turn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from sparsebert.lottery.experiment import Experiment
from sparsebert.training.distillation import Teachers
from sparsebert.training.multi_task_model import MultiTaskModel
from sparsebert.training.task_sampling import TaskMixture, collate_one_task


def joint(experiments: Mapping[str, Experiment], proportions: str = "equal") -> Experiment:
    """The experiments of several tasks, all on the same pre-trained model, as one; their models are used up.

    ``proportions``: how often each has its turn, see :func:`sparsebert.training.task_sampling.proportions_of`.
    Metrics of the first task have their own names, those of the others their task's before them; the trained
    model is written as a folder for each task. Raises ValueError for models of different families, a task
    without examples, and proportions that do not fit.
    """
    first, *_ = experiments

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, MultiTaskModel)
        found: dict[str, float] = {}
        for name, each in experiments.items():
            own = each.evaluate(model.task_model(name))
            found |= {metric if name == first else f"{name}_{metric}": value for metric, value in own.items()}
        return found

    def save_extras(folder: str) -> None:
        for name, each in experiments.items():
            if each.save_extras is not None:
                each.save_extras(str(Path(folder) / name))

    teachers = [each.teacher for each in experiments.values()]
    return Experiment(
        MultiTaskModel.of({name: each.model for name, each in experiments.items()}),
        TaskMixture({name: each.train for name, each in experiments.items()}, proportions),
        collate_one_task([each.collate for each in experiments.values()]),
        evaluate,
        save_extras,
        teacher=Teachers(teachers) if any(teachers) else None,
    )
