"""Knowledge distillation: a model learns from a teacher's outputs and from the labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsebert.tasks.evaluator import TARGETS
from sparsebert.tasks.metrics import IGNORED

# Maps a batch (the model's keyword arguments) to a teacher's output, or to None if no teacher covers it.
Answers = Callable[..., Any]


@dataclass(frozen=True)
class Distillation:
    """Settings of distillation: the loss of a batch is (1 - weight) * L_labels + weight * L_teacher.

    The defaults come from Sanh et al. 2020 and Jiang et al. 2023; nn_pruning uses a weight of 0.9. Methods
    may have other defaults (:attr:`sparsebert.lottery.method.LotteryMethod.distillation`).

    Attributes:
        weight: Weight of the teacher's loss, in (0, 1].
        temperature: Temperature of the softmax, positive.
        teachers: Task -> id of its teacher, for the records.

    Raises:
        ValueError: The weight or the temperature is out of range.
    """

    weight: float = 0.5
    temperature: float = 2.0
    teachers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise ValueError(f"distill_weight must be in (0, 1], got {self.weight}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"distill_temperature must be positive, got {self.temperature}")


class Teacher:
    """A trained model that returns its outputs for batches, without dropout or gradients.

    The model moves to the device of the batch.

    Segments (``token_type_ids``) are not passed to a model without segments.

    Attributes:
        model: The trained model.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        unused = () if getattr(model.config, "type_vocab_size", 0) > 1 else ("token_type_ids",)
        self._dropped = (*TARGETS, *unused)

    def __call__(self, **batch: Any) -> Any:
        inputs = {name: value for name, value in batch.items() if name not in self._dropped}
        self.model.to(inputs["input_ids"].device)
        with torch.no_grad():
            return self.model(**inputs)


class Teachers:
    """The teachers of several tasks, None for a task without one. A batch selects by ``task``, an index."""

    def __init__(self, teachers: Sequence[Answers | None]) -> None:
        self._teachers = tuple(teachers)

    def __call__(self, task: int, **batch: Any) -> Any:
        teacher = self._teachers[task]
        return None if teacher is None else teacher(**batch)


@dataclass(frozen=True)
class Distiller:
    """Adds a teacher's loss to the loss of a batch."""

    teacher: Answers
    settings: Distillation

    def mixed(self, loss: Tensor, output: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return the mixed loss, or ``loss`` if the teacher does not teach the batch.

        Args:
            loss: Loss of the labels, a scalar.
            output: Output of the model in training.
            batch: Keyword arguments of the model.
        """
        answer = self.teacher(**batch)
        if answer is None:
            return loss
        weight = self.settings.weight
        taught = teacher_loss(output, answer, self.settings.temperature, batch.get("labels"))
        return (1 - weight) * loss + weight * taught


def teacher_loss(output: Any, answer: Any, temperature: float, labels: Tensor | None = None) -> Tensor:
    """Return the distance between a model's output and its teacher's, a scalar of float32 or float64.

    For classes, the distance is T^2 * KL(p_teacher || p_model) with p = softmax(logits / T), summed over
    classes and averaged over examples (Hinton et al. 2015, section 2). For spans, it is the mean of the same
    distances for start and end, over all tokens of the window. For tags, it is that of classes, averaged over
    the tokens that have a label. For scores (one logit), it is the mean squared difference.

    Args:
        output: Output of the model.
        answer: Output of the teacher for the same batch.
        temperature: Temperature T.
        labels: Labels of the batch; required for tags, int64 [examples, tokens].
    """
    if "start_logits" in output:
        names = ("start_logits", "end_logits")
        first, last = (_divergence(output[name], answer[name], temperature) for name in names)
        return (first + last) / 2
    logits, teacher_logits = output["logits"], answer["logits"]
    if logits.dim() == 3 and labels is not None:
        scored = labels != IGNORED
        logits, teacher_logits = logits[scored], teacher_logits[scored]
    if logits.shape[-1] == 1:
        # A softmax over one logit is always 1.
        return F.mse_loss(_wide(logits), _wide(teacher_logits))
    return _divergence(logits, teacher_logits, temperature)


def _divergence(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL divergence between two sets of logits, floating-point [examples, classes]."""
    log_probabilities = F.log_softmax(_wide(logits) / temperature, -1)
    target = F.log_softmax(_wide(teacher_logits) / temperature, -1)
    return temperature**2 * F.kl_div(log_probabilities, target, reduction="batchmean", log_target=True)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
