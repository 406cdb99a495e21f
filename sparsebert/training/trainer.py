"""Hugging Face's Trainer with a ticket: a small mixin instead of a fork.

The Trainer's mixed precision, gradient accumulation, gradient checkpointing and checkpoints work unchanged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.utils import logging

from sparsebert.mask_learning.learner import Learner
from sparsebert.mask_learning.rule import Scored
from sparsebert.tickets.ticket import Ticket
from sparsebert.training.callbacks import LearnCallback, MaskCallback
from sparsebert.training.distillation import Distiller
from sparsebert.training.example_ids import WithExampleIds, collate_with_ids, take_example_ids
from sparsebert.training.length_grouping import LengthGroupedSampler
from sparsebert.training.settings import TrainingSettings


class TicketMixin:
    """Mixin for Trainer that trains with a ticket, or learns one. It precedes Trainer among the base classes.

    A training dataset with a method ``sampler(batch_size, seed)`` determines its order of examples.

    Args:
        *args: Arguments of the Trainer.
        ticket: Ticket whose pruned weights stay at zero.
        learner: Learner of a ticket. Its scores have a separate learning rate, and its penalty is added to
            the loss. Gradient clipping uses the joint norm of the gradients of weights and scores.
        distiller: Mixes a teacher's loss with the loss of the labels; penalties are added afterwards.
        penalties: Functions called after each training forward pass; each returns a loss term or None.
        tell_examples: Called before each batch with the ids of its examples in the training data, int64. The
            examples must be dicts.
        schedule_steps: Steps that the learning-rate schedule spans, whatever the number of training steps.
        group_by_length: Whether batches hold examples of similar length.
        **options: Keyword arguments of the Trainer.
    """

    train_dataset: Any
    data_collator: Any

    def __init__(
        self,
        *args: Any,
        ticket: Ticket | None = None,
        learner: Learner | None = None,
        distiller: Distiller | None = None,
        penalties: Sequence[Callable[[], Tensor | None]] = (),
        tell_examples: Callable[[Tensor], None] | None = None,
        schedule_steps: int | None = None,
        group_by_length: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._schedule_steps = schedule_steps
        self._group_by_length = group_by_length
        # BERT's heads return the mean loss of a batch and ignore ``num_items_in_batch``. If this were True,
        # the Trainer would sum gradients over accumulated batches and processes instead of averaging them.
        self.model_accepts_loss_kwargs = False
        self._learner = learner
        self._distiller = distiller
        self._penalties = tuple(penalties)
        self._tell_examples = tell_examples
        if tell_examples is not None:
            self.train_dataset = WithExampleIds(self.train_dataset)
            self.data_collator = collate_with_ids(self.data_collator)
        if ticket is not None:
            self.add_callback(MaskCallback(ticket))  # type: ignore[attr-defined]
        if learner is not None:
            self.add_callback(LearnCallback(learner))  # type: ignore[attr-defined]

    def create_optimizer(self, model: Any = None) -> Any:
        optimizer = super().create_optimizer(model)  # type: ignore[misc]
        rule = self._learner.rule if self._learner else None
        if self._learner is not None and isinstance(rule, Scored):
            scores = self._learner.parameters()
            score_ids = {id(each) for each in scores}
            for group in optimizer.param_groups:
                group["params"] = [each for each in group["params"] if id(each) not in score_ids]
            rate = rule.scores_learning_rate
            optimizer.add_param_group({"params": scores, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def _prepare_inputs(self, inputs: Any) -> Any:
        batch = super()._prepare_inputs(inputs)  # type: ignore[misc]
        if self._tell_examples is not None:
            self._tell_examples(take_example_ids(batch))
        return batch

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **options: Any) -> Any:
        # Computed before the forward pass, so that the backward pass reaches the penalty last: the gradients
        # of all scores are then allocated after the activations are freed.
        score_penalty = self._learner.penalty() if self._learner is not None else None
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **options)  # type: ignore[misc]
        if self._distiller is not None:
            loss = self._distiller.mixed(loss, outputs, inputs)
        for term in (score_penalty, *(penalty() for penalty in self._penalties)):
            if term is not None:
                loss = loss + term
        return (loss, outputs) if return_outputs else loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        steps = self._schedule_steps or num_training_steps
        return super().create_scheduler(steps, optimizer)  # type: ignore[misc]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        examples = self.train_dataset if train_dataset is None else train_dataset
        settings = self.args  # type: ignore[attr-defined]
        if make_sampler := getattr(examples, "sampler", None):
            return make_sampler(settings.train_batch_size, settings.data_seed)
        if not self._group_by_length:
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]
        step_examples = settings.train_batch_size * settings.gradient_accumulation_steps
        return LengthGroupedSampler(examples, step_examples, settings.data_seed)


class TicketTrainer(TicketMixin, Trainer):
    """The Trainer with a ticket and without console output."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.remove_callback(PrinterCallback)


def optimizer_of(settings: TrainingSettings) -> tuple[type[Optimizer], dict[str, Any]] | None:
    """Return class and options of an optimizer that the Trainer does not build itself, else None."""
    if settings.optimizer == "adamax":
        return torch.optim.Adamax, {"lr": settings.learning_rate, "eps": settings.adam_epsilon}
    if settings.optimizer == "sgd":
        return torch.optim.SGD, {"lr": settings.learning_rate}
    return None


def training_arguments(
    settings: TrainingSettings, folder: Path, steps: int, schedule_steps: int | None = None
) -> Any:
    """Return TrainingArguments that stop after ``steps`` and write checkpoints into ``folder``.

    Args:
        settings: Settings of the round.
        folder: Folder of the checkpoints.
        steps: Optimizer step at which the training stops.
        schedule_steps: Steps that the learning-rate schedule spans; ``steps`` if None.
    """
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        warmup_steps=settings.warmup_of(schedule_steps or steps),
        weight_decay=settings.weight_decay,
        adam_epsilon=settings.adam_epsilon,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        use_cpu=not settings.on_gpu,
        dataloader_pin_memory=settings.on_gpu,
        seed=settings.seed,
        data_seed=settings.seed,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=2,  # one may be incomplete
        logging_steps=min(settings.save_steps, 50),
        logging_nan_inf_filter=False,  # it would replace the losses of a diverged run
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )


@contextlib.contextmanager
def silence_transformers() -> Iterator[None]:
    """Silence the warnings and progress bars of transformers; run log and our progress bar replace them."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
