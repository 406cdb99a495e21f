"""Knowledge distillation: a model learns from a trained one's answers, beside its labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_TARGETS = ("labels", "start_positions", "end_positions")

# What answers a batch: the model's keyword arguments -> its output; None where it has nothing to say.
Answers = Callable[..., Any]


@dataclass(frozen=True)
class Distillation:
    """How much a teacher counts: the loss of a batch is (1 - weight) * L_labels + weight * L_teacher.

    Half and half at a temperature of 2, as Sanh et al. 2020 and Jiang et al. 2023 train; nn_pruning and CAP
    (Xu et al. 2022) take a weight of 0.9. ``teachers``: task -> what tells its teacher from others, for the
    records. Raises ValueError for a weight outside (0, 1] and a temperature that is not positive.
    """

    weight: float = 0.5
    temperature: float = 2.0
    teachers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise ValueError(f"distill_weight must be in (0, 1], not {self.weight}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"distill_temperature must be positive, not {self.temperature}")


class Teacher:
    """A trained model that answers batches: dropout off, without gradients, on the batch's device.

    Segments (``token_type_ids``) are kept from a model that knows none. ``model``: the model itself.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        unread = () if getattr(model.config, "type_vocab_size", 0) > 1 else ("token_type_ids",)
        self._not_for_it = (*_TARGETS, *unread)

    def __call__(self, **batch: Any) -> Any:
        inputs = {name: value for name, value in batch.items() if name not in self._not_for_it}
        self.model.to(inputs["input_ids"].device)
        with torch.no_grad():
            return self.model(**inputs)


class Teachers:
    """Teachers of several tasks in their order, None for a task that has none; a batch says whose it is."""

    def __init__(self, teachers: Sequence[Answers | None]) -> None:
        self._teachers = tuple(teachers)

    def __call__(self, task: int, **batch: Any) -> Any:
        teacher = self._teachers[task]
        return None if teacher is None else teacher(**batch)


@dataclass(frozen=True)
class Distiller:
    """Adds what a teacher says to the loss of a batch."""

    teacher: Answers
    settings: Distillation

    def mixed(self, loss: Tensor, output: Any, batch: Mapping[str, Any]) -> Tensor:
        """``loss``: of the labels, a scalar; it stays as it is where the teacher has nothing to say.
        ``output``: of the model in training. ``batch``: what it was called with."""
        answer = self.teacher(**batch)
        if answer is None:
            return loss
        weight = self.settings.weight
        return (1 - weight) * loss + weight * teacher_loss(output, answer, self.settings.temperature)


def teacher_loss(output: Any, answer: Any, temperature: float) -> Tensor:
    """How far a model's output is from its teacher's answer, a scalar of float32 or more.

    Classes: T^2 * KL(p_teacher || p_model) of the softmax of logits / T, summed over classes and averaged
    over examples (Hinton et al. 2015, section 2). A span: the mean of that for its start and its end, over
    all tokens of the window. A score, which is one logit: the mean squared difference of the two.
    """
    if "start_logits" in output:
        names = ("start_logits", "end_logits")
        first, last = (_divergence(output[name], answer[name], temperature) for name in names)
        return (first + last) / 2
    logits, theirs = output["logits"], answer["logits"]
    if logits.shape[-1] == 1:
        # A softmax over one logit is 1 whatever the logit is.
        return F.mse_loss(_wide(logits), _wide(theirs))
    return _divergence(logits, theirs, temperature)


def _divergence(logits: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    """``logits``, ``theirs``: floating-point [examples, classes]."""
    ours = F.log_softmax(_wide(logits) / temperature, -1)
    target = F.log_softmax(_wide(theirs) / temperature, -1)
    return temperature**2 * F.kl_div(ours, target, reduction="batchmean", log_target=True)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
