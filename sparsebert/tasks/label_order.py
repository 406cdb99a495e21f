"""The order of a classifier's labels: asserted from its configuration, never guessed.

Checkpoints of MNLI exist with entailment first and with contradiction first; scored with the wrong order a
good model answers 7 % right.
"""

from __future__ import annotations

import re
from typing import Any

from sparsebert.tasks.registry import Task, find_task

_GENERIC = re.compile(r"label_\d+")


def label_config(task: str | Task) -> dict[str, Any]:
    """Keyword arguments for a configuration that says what the task's labels are and in which order.

    Empty for span and masked-language-model heads.
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
    """Refuse a trained classifier whose configuration names other labels than the task's, or another order.

    ``config``: with ``id2label``, as transformers' configurations have it. Names are compared without
    regard to case, and to ``-``, ``_`` and blank. Raises ValueError with both orders; also where the
    configuration names none (``LABEL_0``, ...), since nothing then says what the outputs mean.
    A head that is still to be trained has no order to assert: give it that of :func:`label_config`.
    """
    task = find_task(task)
    if task.kind not in ("classification", "regression"):
        return
    id2label = {int(index): str(label) for index, label in config.id2label.items()}
    if sorted(id2label) != list(range(task.num_labels)):
        raise ValueError(f"{task.name} needs {task.num_labels} outputs; the model has {len(id2label)}")
    if task.kind == "regression":
        return
    theirs = [_normalised(id2label[index]) for index in range(task.num_labels)]
    if theirs == [_normalised(label) for label in task.labels]:
        return
    expected = ", ".join(task.labels)
    named = ", ".join(id2label[index] for index in range(task.num_labels))
    if all(_GENERIC.fullmatch(label) for label in theirs):
        raise ValueError(
            f"the model's config.id2label names no labels ({named}), so their order is unknown: "
            f"write what its outputs mean into its config.json; {task.name} expects {expected}"
        )
    what = "label order" if sorted(theirs) == sorted(map(_normalised, task.labels)) else "labels"
    raise ValueError(f"the model's {what} (config.id2label): {named}; {task.name} expects {expected}")


def _normalised(label: str) -> str:
    return re.sub(r"[-\s]+", "_", label.strip().lower())
