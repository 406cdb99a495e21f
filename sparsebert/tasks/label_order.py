"""The order of a classifier's labels: always checked against its configuration, never guessed.

Some MNLI checkpoints have entailment first, others contradiction. With the wrong order, the accuracy of a
good model is 7 %.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sparsebert.tasks.registry import Task, find_task

_GENERIC = re.compile(r"label_\d+")


def label_config(task: str | Task) -> dict[str, Any]:
    """Return keyword arguments that set the task's labels and their order in a configuration.

    Heads for spans and masked language modelling need no such arguments.
    """
    task = find_task(task)
    if task.has_classes:
        names = {
            "num_labels": task.num_labels,
            "id2label": dict(enumerate(task.labels)),
            "label2id": {label: index for index, label in enumerate(task.labels)},
        }
        of_texts = {"problem_type": "single_label_classification"}
        return names | (of_texts if task.kind == "classification" else {})
    if task.kind == "regression":
        return {"num_labels": 1, "problem_type": "regression"}
    return {}


def label_positions(task: str | Task, config: Any) -> tuple[int, ...] | None:
    """Return the output of a trained classifier for each label of the task, or None if they are in order.

    The comparison of names ignores case and the difference between ``-``, ``_`` and blanks. An untrained head
    needs no check: :func:`label_config` sets its order. Another order needs the task's ``model_labels``.

    Args:
        task: The task, or its name.
        config: A configuration of transformers, with ``id2label``.

    Raises:
        ValueError: For other labels or another order, with both orders in the message; and for a
            configuration with placeholders (``LABEL_0``, ...), which hide the meaning of the outputs.
    """
    task = find_task(task)
    if not task.has_classes and task.kind != "regression":
        return None
    id2label = {int(index): str(label) for index, label in config.id2label.items()}
    if sorted(id2label) != list(range(task.num_labels)):
        raise ValueError(f"{task.name} needs a model with {task.num_labels} outputs, got {len(id2label)}")
    if task.kind == "regression":
        return None
    outputs = [id2label[index] for index in range(task.num_labels)]
    if task.model_labels:
        positions = tuple(_output(label, outputs) for label in task.model_labels)
        if len(set(positions)) < len(positions):
            raise ValueError(
                f"the label map gives two labels one output of the model: {', '.join(task.model_labels)}; "
                f"its outputs are {', '.join(outputs)}"
            )
        return None if positions == tuple(range(len(positions))) else positions
    theirs = [_normalised(label) for label in outputs]
    if theirs == [_normalised(label) for label in task.labels]:
        return None
    expected, named = ", ".join(task.labels), ", ".join(outputs)
    if all(_GENERIC.fullmatch(label) for label in theirs):
        raise ValueError(
            f"the model's config.id2label has placeholders ({named}), so the order of its labels is unknown; "
            f"set the labels of its outputs in its config.json, or pass --label-map {task.labels[0]}="
            f"{outputs[0]},... with the output of each label; {task.name} expects {expected}"
        )
    what, hint = "labels", f"--label-map {task.labels[0]}={outputs[0]},... says which are which"
    if sorted(theirs) == sorted(map(_normalised, task.labels)):
        same = ",".join(f"{label}={label}" for label in task.labels)
        what, hint = "label order", f"--label-map {same} matches them by name"
    raise ValueError(f"the model's {what} (config.id2label): {named}; {task.name} expects {expected}; {hint}")


def require_label_order(task: str | Task, config: Any) -> None:
    """Raise ValueError unless a trained classifier has the task's labels in the task's order.

    See :func:`label_positions`.
    """
    if label_positions(task, config) is not None:
        raise ValueError("the outputs of this model cannot be reordered: omit the label map")


def reorder_outputs_(model: Any, task: Task, positions: Sequence[int]) -> None:
    """Reorder the outputs of a classifier, in place, and name them after the task's labels.

    Args:
        model: A PreTrainedModel for classification, of texts or of tokens.
        task: The task.
        positions: The output of each label (:func:`label_positions`).

    Raises:
        ValueError: If the model does not end with a dense linear layer.
    """
    encoder = set(model.base_model.modules())
    layers = [
        each
        for each in model.modules()
        if isinstance(each, nn.Linear) and each not in encoder and each.out_features == len(positions)
    ]
    if not layers:
        raise ValueError(f"the outputs of {type(model).__name__} cannot be reordered: omit the label map")
    with torch.no_grad():
        for parameter in layers[-1].parameters():
            parameter.copy_(parameter[list(positions)])
    for name, value in label_config(task).items():
        setattr(model.config, name, value)


def with_label_map(task: Task, label_map: Mapping[str, str]) -> Task:
    """Return a classification with the names of its labels in a checkpoint.

    Args:
        task: The task.
        label_map: Label of the task -> label or number of an output of the checkpoint; labels that are
            missing have the same name in both.

    Raises:
        ValueError: For a task without classes, or a label that the task does not have.
    """
    if not label_map:
        return task
    if not task.has_classes:
        raise ValueError(f"a label map needs a task with classes; {task.name} has none")
    for label in label_map:
        if label not in task.labels:
            raise ValueError(f"label map: {label!r} is not a label of {task.name}: {', '.join(task.labels)}")
    return replace(task, model_labels=tuple(label_map.get(label, label) for label in task.labels))


def data_labels(outputs: Sequence[str], label_map: Mapping[str, str]) -> tuple[str, ...]:
    """Return the label of the data for each output of a checkpoint, by a map as of :func:`with_label_map`.

    Raises:
        ValueError: For an output that does not exist or is named twice.
    """
    labels = list(outputs)
    named: dict[int, str] = {}
    for label, output in label_map.items():
        index = _output(output, outputs)
        if index in named:
            raise ValueError(f"label map: {named[index]!r} and {label!r} are both {output!r}")
        labels[index] = named[index] = label
    return tuple(labels)


def _output(label: str, outputs: Sequence[str]) -> int:
    """Return the index of an output by its label or its number."""
    names = [_normalised(each) for each in outputs]
    if _normalised(label) in names:
        return names.index(_normalised(label))
    if label.isdecimal() and int(label) < len(outputs):
        return int(label)
    raise ValueError(f"label map: {label!r} is not an output of the model: {', '.join(outputs)}")


def _normalised(label: str) -> str:
    return re.sub(r"[-\s]+", "_", label.strip().lower())
