"""Several tasks as one experiment: a shared encoder, a head for each task, batches of the tasks in turn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from sparsebert.lottery.experiment import Experiment
from sparsebert.training.distillation import Teachers
from sparsebert.training.multi_task_model import MultiTaskModel
from sparsebert.training.task_sampling import TaskMixture, collate_one_task


def multi_task_experiment(experiments: Mapping[str, Experiment], proportions: str = "equal") -> Experiment:
    """Combine the experiments of several tasks on the same pre-trained model.

    The models of the experiments are taken apart. Metrics of the first task keep their names; the names of
    the others get the task as a prefix. The trained model is saved as a folder for each task.

    Args:
        experiments: Task -> experiment.
        proportions: Shares of the batches, see :func:`sparsebert.training.task_sampling.proportions_of`.

    Raises:
        ValueError: Models of different families, a task without examples, or proportions that do not fit.
    """
    first, *_ = experiments

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, MultiTaskModel)
        metrics: dict[str, float] = {}
        for task, experiment in experiments.items():
            prefix = "" if task == first else f"{task}_"
            values = experiment.evaluate(model.task_model(task))
            metrics |= {f"{prefix}{name}": value for name, value in values.items()}
        return metrics

    def save_extras(folder: str) -> None:
        for task, experiment in experiments.items():
            if experiment.save_extras is not None:
                experiment.save_extras(str(Path(folder) / task))

    teachers = [experiment.teacher for experiment in experiments.values()]
    return Experiment(
        MultiTaskModel.of({task: experiment.model for task, experiment in experiments.items()}),
        TaskMixture({task: experiment.train for task, experiment in experiments.items()}, proportions),
        collate_one_task([experiment.collate for experiment in experiments.values()]),
        evaluate,
        save_extras,
        teacher=Teachers(teachers) if any(teachers) else None,
    )
