"""The order of a classifier's labels: always checked against its configuration, never guessed.

Some MNLI checkpoints have entailment first, others contradiction. With the wrong order, the accuracy of a
good model is 7 %.
"""

from __future__ import annotations

import re
from typing import Any

from sparsebert.tasks.registry import Task, find_task

_GENERIC = re.compile(r"label_\d+")


def label_config(task: str | Task) -> dict[str, Any]:
    """Return keyword arguments that set the task's labels and their order in a configuration.

    Heads for spans and masked language modelling need no such arguments.
    """
    task = find_task(task)
    if task.kind == "classification":
        return {
            "num_labels": task.num_labels,
            "id2label": dict(enumerate(task.labels)),
            "label2id": {label: index for index, label in enumerate(task.labels)},
            "problem_type": "single_label_classification",
        }
    if task.kind == "regression":
        return {"num_labels": 1, "problem_type": "regression"}
    return {}


def require_label_order(task: str | Task, config: Any) -> None:
    """Check that a trained classifier has the task's labels in the task's order.

    The comparison of names ignores case and the difference between ``-``, ``_`` and blanks. An untrained head
    needs no check: :func:`label_config` sets its order.

    Args:
        task: The task, or its name.
        config: A configuration of transformers, with ``id2label``.

    Raises:
        ValueError: For other labels or another order, with both orders in the message; and for a
            configuration with placeholders (``LABEL_0``, ...), which hide the meaning of the outputs.
    """
    task = find_task(task)
    if task.kind not in ("classification", "regression"):
        return
    id2label = {int(index): str(label) for index, label in config.id2label.items()}
    if sorted(id2label) != list(range(task.num_labels)):
        raise ValueError(f"{task.name} needs a model with {task.num_labels} outputs, got {len(id2label)}")
    if task.kind == "regression":
        return
    theirs = [_normalised(id2label[index]) for index in range(task.num_labels)]
    if theirs == [_normalised(label) for label in task.labels]:
        return
    expected = ", ".join(task.labels)
    named = ", ".join(id2label[index] for index in range(task.num_labels))
    if all(_GENERIC.fullmatch(label) for label in theirs):
        raise ValueError(
            f"the model's config.id2label has placeholders ({named}), so the order of its labels is unknown; "
            f"set the labels of its outputs in its config.json; {task.name} expects {expected}"
        )
    what = "label order" if sorted(theirs) == sorted(map(_normalised, task.labels)) else "labels"
    raise ValueError(f"the model's {what} (config.id2label): {named}; {task.name} expects {expected}")


def _normalised(label: str) -> str:
    return re.sub(r"[-\s]+", "_", label.strip().lower())
