"""Several tasks as one experiment: a shared encoder, a head for each task, and alternating batches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from sparsebert.accounting.fingerprints import combined
from sparsebert.lottery.experiment import Experiment
from sparsebert.training.distillation import Teachers
from sparsebert.training.multi_task_model import MultiTaskModel
from sparsebert.training.task_sampling import TaskMixture, collate_one_task


def multi_task_experiment(experiments: Mapping[str, Experiment], proportions: str = "equal") -> Experiment:
    """Combine the experiments of several tasks on the same pre-trained model.

    The models of the experiments must not be used afterwards, because their encoders are replaced by the
    shared one. Metrics of the first task keep their names; other metrics get their task as a prefix. The
    trained model is saved as one folder per task.

    Args:
        experiments: Task -> experiment.
        proportions: Shares of the batches, see :func:`sparsebert.training.task_sampling.proportions_of`.

    Raises:
        ValueError: The models are of different families, a task has no examples, or the proportions are
            invalid.
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
        chance=experiments[first].chance,
        fingerprints={
            name: combined({task: each.fingerprints.get(name, "") for task, each in experiments.items()})
            for name in experiments[first].fingerprints
        },
    )
