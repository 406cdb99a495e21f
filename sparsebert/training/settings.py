"""Settings of the training of a round."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from sparsebert_kernels.dtype_names import short_name
from sparsebert_kernels.errors import unknown

PRECISIONS = ("float32", "bfloat16", "float16")
# Torch counts steps and examples in 32 bits in some places.
MAX_STEPS = 2**31 - 1
SCHEDULES = ("linear", "cosine", "constant")
_EPSILON = 1e-8
OPTIMIZERS = ("adamw", "adamax", "sgd")


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of each round; the defaults are those of Chen et al. 2020 for GLUE.

    Attributes:
        steps: Optimizer steps of a round; None for ``epochs`` passes over the data.
        epochs: Passes over the data, if ``steps`` is None.
        batch_size: Examples of a batch on one device; a step takes ``gradient_accumulation`` batches.
        group_by_length: Whether batches hold examples of similar length, which saves most of the padding.
        learning_rate: Peak learning rate.
        schedule: Schedule of the learning rate after the warm-up: "linear", "cosine" or "constant".
        warmup_steps: Steps in which the learning rate warms up; 0 for no warm-up, also with a method that has
            one; None for that of the method, or ``warmup_ratio``.
        warmup_ratio: The same as a share of the steps that the schedule spans, rounded up; None for
            ``warmup_steps``.
        optimizer: "adamw", "adamax" (as Super Tickets trains) or "sgd" (without momentum).
        weight_decay: Weight decay: decoupled with AdamW, added to the gradient otherwise.
        adam_epsilon: Epsilon of AdamW and Adamax, above 0: a weight without gradients would become NaN.
        max_grad_norm: Norm at which gradients are clipped; 0 for no clipping.
        gradient_accumulation: Batches of an optimizer step.
        gradient_checkpointing: Whether activations are recomputed in the backward pass.
        precision: "fp32", or mixed precision in "bf16" or "fp16"; weights and masks are fp32 in any case.
        device: "cpu", or "auto" for a GPU if there is one.
        save_steps: Steps between two checkpoints: the maximum that a killed run loses.
        seed: Seed of data order, dropout and fresh heads.

    Raises:
        ValueError: A setting is invalid; the message names it.
    """

    steps: int | None = None
    epochs: float = 3.0
    batch_size: int = 32
    group_by_length: bool = False
    learning_rate: float = 2e-5
    schedule: str = "linear"
    warmup_steps: int | None = None
    warmup_ratio: float | None = None
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    adam_epsilon: float = _EPSILON
    max_grad_norm: float = 1.0
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    precision: str = "fp32"
    device: str = "auto"
    save_steps: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "gradient_accumulation", "save_steps"):
            if (value := getattr(self, name)) is None:
                continue
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
            if value > MAX_STEPS:
                raise ValueError(f"{name} must be at most {MAX_STEPS}, got {value}")
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs must be positive, got {self.epochs}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 < self.adam_epsilon < math.inf:
            raise ValueError(f"adam_epsilon must be positive, got {self.adam_epsilon}")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm"):
            if (value := getattr(self, name)) is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if self.warmup_ratio is not None:
            if not 0 <= self.warmup_ratio < 1:
                raise ValueError(
                    f"warmup_ratio must be at least 0 and below 1, got {self.warmup_ratio}; write 10 % as 0.1"
                )
            if self.warmup_steps:
                raise ValueError(
                    f"warmup_steps {self.warmup_steps} conflicts with warmup_ratio {self.warmup_ratio}: both "
                    "set the length of the warm-up; omit one of them"
                )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to 2**32 - 1, got {self.seed}")
        object.__setattr__(self, "precision", short_name(self.precision, PRECISIONS, "precision"))
        for kind, value, allowed in (
            ("schedule", self.schedule, SCHEDULES),
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("device", self.device, ("auto", "cpu")),
        ):
            if value not in allowed:
                raise unknown(kind, value, allowed)
        if self.optimizer == "sgd" and self.adam_epsilon != _EPSILON:
            raise ValueError(f"adam_epsilon {self.adam_epsilon:g} does not apply to sgd: omit it")

    @property
    def on_gpu(self) -> bool:
        """Whether training takes place on a GPU."""
        # Imported late: the command line lists the settings without torch.
        import torch

        return self.device != "cpu" and torch.cuda.is_available()

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain JSON values, with 0 for no warm-up, as runs store them."""
        return {**asdict(self), "warmup_steps": self.warmup_steps or 0}

    def steps_of(self, examples: int, processes: int = 1) -> int:
        """Return the optimizer steps of a round.

        Args:
            examples: Number of training examples.
            processes: Number of processes that share a batch.

        Raises:
            ValueError: ``examples`` is 0, or the warm-up is at least as long as the round.
        """
        if examples < 1:
            raise ValueError("training needs at least one example, got 0")
        per_epoch = self.steps_per_epoch(examples, processes)
        steps = self.steps if self.steps is not None else math.ceil(self.epochs * per_epoch)
        if steps > MAX_STEPS:
            raise ValueError(f"epochs must make at most {MAX_STEPS} steps of a round, got {steps:.3g}")
        if (warmup := self.warmup_of(steps)) >= steps:
            given = "" if self.warmup_ratio is None else f" from a warmup_ratio of {self.warmup_ratio:g}"
            raise ValueError(f"warmup_steps must be below the {steps} steps of a round, got {warmup}{given}")
        return steps

    def steps_per_epoch(self, examples: int, processes: int = 1) -> int:
        """Return the optimizer steps of a pass over the data; arguments as of :meth:`steps_of`."""
        batches = math.ceil(examples / (self.batch_size * processes))
        return math.ceil(batches / self.gradient_accumulation)

    def warmup_of(self, steps: int) -> int:
        """Return the steps of learning-rate warm-up in a schedule of ``steps`` optimizer steps."""
        if self.warmup_ratio is None:
            return self.warmup_steps or 0
        # In decimal: a tenth of 30 steps is 3, and not one more because of the binary 0.1.
        return math.ceil(Fraction(repr(self.warmup_ratio)) * steps)
