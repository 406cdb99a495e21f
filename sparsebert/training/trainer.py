"""Hugging Face's Trainer with a ticket: callbacks and a small mixin, no fork.

The Trainer keeps its mixed precision, gradient accumulation and checkpointing, and its checkpoints.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from sparsebert.mask_learning.learner import Learner
from sparsebert.mask_learning.rule import Scored
from sparsebert.tickets.ticket import Ticket
from sparsebert.training import distributed
from sparsebert.training.checkpoint import Checkpoint
from sparsebert.training.distillation import Distiller
from sparsebert.training.example_ids import Numbered, collate_numbered, take_numbers
from sparsebert.training.length_grouping import LengthGrouped
from sparsebert.training.mask_enforcer import MaskKeeper
from sparsebert.training.settings import TrainingSettings
from sparsebert.training.snapshot import Snapshot


class TicketMixin:
    """For a class derived from Trainer, before it: trains the weights of ``ticket`` only, or learns one.

    ``learner``: its scores are trained at their own rate, and its penalty is part of the loss. The norm of
    all gradients, of weights and scores, is clipped together.
    ``distiller``: has a teacher's say in the loss of the labels, to which penalties are then added.
    ``penalties``: called after each forward pass in training, for what is added to its loss; None is nothing.
    ``tell_examples``: called before each batch with the numbers (int64) of its examples in the training data,
    which are dicts then.
    ``schedule_steps``: the learning-rate schedule spans that many steps, however many are trained.
    ``group_by_length``: batches hold examples of about the same length.
    Examples with a method ``sampler`` (of batch size and seed) say by it in which order they are to be read.
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
        # The losses of BERT's heads are means over a batch, whatever number of items they are told. Believing
        # otherwise, the Trainer sums gradients over accumulated batches and processes instead of averaging.
        self.model_accepts_loss_kwargs = False
        self._learner = learner
        self._distiller = distiller
        self._penalties = tuple(penalties)
        self._tell_examples = tell_examples
        if tell_examples is not None:
            self.train_dataset = Numbered(self.train_dataset)
            self.data_collator = collate_numbered(self.data_collator)
        if ticket is not None:
            self.add_callback(MaskCallback(ticket))  # type: ignore[attr-defined]
        if learner is not None:
            self.add_callback(LearnCallback(learner))  # type: ignore[attr-defined]

    def create_optimizer(self, model: Any = None) -> Any:
        optimizer = super().create_optimizer(model)  # type: ignore[misc]
        rule = self._learner.rule if self._learner else None
        if self._learner is not None and isinstance(rule, Scored):
            scores = self._learner.parameters()
            known = {id(each) for each in scores}
            for group in optimizer.param_groups:
                group["params"] = [each for each in group["params"] if id(each) not in known]
            rate = rule.scores_learning_rate
            optimizer.add_param_group({"params": scores, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def _prepare_inputs(self, inputs: Any) -> Any:
        ready = super()._prepare_inputs(inputs)  # type: ignore[misc]
        if self._tell_examples is not None:
            self._tell_examples(take_numbers(ready))
        return ready

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **options: Any) -> Any:
        # Before the forward pass: what comes first has its turn last in the backward pass, and gradients as
        # large as all scores then find the activations gone.
        of_scores = self._learner.penalty() if self._learner is not None else None
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **options)  # type: ignore[misc]
        if self._distiller is not None:
            loss = self._distiller.mixed(loss, outputs, inputs)
        for term in (of_scores, *(penalty() for penalty in self._penalties)):
            if term is not None:
                loss = loss + term
        return (loss, outputs) if return_outputs else loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        steps = self._schedule_steps or num_training_steps
        return super().create_scheduler(steps, optimizer)  # type: ignore[misc]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        examples = self.train_dataset if train_dataset is None else train_dataset
        settings = self.args  # type: ignore[attr-defined]
        if own_order := getattr(examples, "sampler", None):
            return own_order(settings.train_batch_size, settings.data_seed)
        if not self._group_by_length:
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]
        step = settings.train_batch_size * settings.gradient_accumulation_steps
        return LengthGrouped(examples, step, settings.data_seed)


class TicketTrainer(TicketMixin, Trainer):
    """The Trainer with a ticket; it prints nothing."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.remove_callback(PrinterCallback)


class MaskCallback(TrainerCallback):
    """Keeps a ticket's dead weights at zero from before the first step, a loaded checkpoint's too."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self._keeper: MaskKeeper | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._keeper = MaskKeeper(now["model"], self.ticket)
        self._keeper.zero_(now["optimizer"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        assert self._keeper is not None
        self._keeper.zero_()

    def on_train_end(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        assert self._keeper is not None
        self._keeper.close()


class LearnCallback(TrainerCallback):
    """Sets the masks of each optimizer step, before its first batch: accumulated batches see the same."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def on_step_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._learner.derive_(state.global_step)


class StartCallback(TrainerCallback):
    """Makes sure that training begins with exactly these weights, before any mask is applied.

    Raises RuntimeError otherwise.
    """

    def __init__(self, weights: Snapshot) -> None:
        self._weights = weights

    def on_train_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._weights.require_equal(now["model"])


class CheckpointCallback(TrainerCallback):
    """Marks each checkpoint once it is complete, and asks for more of them.

    Losses are logged with every checkpoint: the Trainer forgets what it has not logged when it resumes.
    ``seconds``: training time of the round in earlier sessions.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._before = seconds
        self._start = time.perf_counter()
        self._wanted: set[int] = set()
        self._kept: dict[int, Path] = {}

    @property
    def seconds(self) -> float:
        """Training time of the round so far."""
        return self._before + time.perf_counter() - self._start

    def ask_at(self, step: int) -> None:
        """Ask for a checkpoint after this step too."""
        self._wanted.add(step)

    def keep(self, step: int, folder: Path) -> None:
        """Copy the checkpoint of this step into a folder of its own, where it is never rotated away."""
        self.ask_at(step)
        self._kept[step] = folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **now: Any) -> Any:
        if state.global_step in self._wanted:
            control.should_save = True
        if control.should_save:
            control.should_log = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        distributed.wait()  # each process writes a random state of its own into the checkpoint
        if distributed.is_main():
            step = state.global_step
            saved = Checkpoint(Path(args.output_dir) / f"checkpoint-{step}", step, self.seconds)
            if step in self._kept:
                # Before it counts as complete: whoever resumes from it relies on the copy.
                saved.copy_to(self._kept[step] / saved.path.name, seconds=0.0)
            saved.mark()
        distributed.wait()


class ProgressCallback(TrainerCallback):
    """A bar with sparsity, loss and time left; nothing where stderr is no terminal."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        disable = None if distributed.is_main() else True
        total, done = state.max_steps, state.global_step
        self._bar = tqdm(
            total=total, initial=done, desc=self._title, unit="step", disable=disable, leave=False
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **now: Any) -> None:
        if "loss" in logs:
            self._bar.set_postfix(loss=f"{float(logs['loss']):.4f}", refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._bar.close()


def training_arguments(settings: TrainingSettings, folder: Path, steps: int) -> Any:
    """TrainingArguments for training up to that step, with checkpoints in ``folder``."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        warmup_steps=settings.warmup_steps,
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
        save_total_limit=2,  # one of them may be incomplete
        logging_steps=min(settings.save_steps, 50),
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )


def enable_gradient_checkpointing(model: Any) -> None:
    """Let a PreTrainedModel compute its activations anew in the backward pass instead of keeping them."""
    # The second name is that of transformers before 5.23.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No reports of transformers' own: the run log and the progress bar say what is going on."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
