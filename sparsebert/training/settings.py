"""Settings of a round of training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsebert_kernels.errors import unknown

PRECISIONS = ("fp32", "bf16", "fp16")
SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class TrainingSettings:
    """How each round is trained; the defaults are those of Chen et al. 2020 for GLUE.

    ``steps``: optimizer steps of a round; None for ``epochs`` passes over the data.
    ``batch_size``: examples of a step on one device, times ``gradient_accumulation``.
    ``group_by_length``: batches of examples of about the same length, which saves most of the padding.
    ``schedule``: of the learning rate, from ``learning_rate`` (after ``warmup_steps``) downwards.
    ``precision``: "fp32", or mixed precision in "bf16" or "fp16"; weights and masks are fp32 in any case.
    ``device``: "cpu", or "auto" for a GPU where there is one.
    ``save_steps``: a killed run loses at most so many steps.

    Raises ValueError naming the first setting that makes no sense.
    """

    steps: int | None = None
    epochs: float = 3.0
    batch_size: int = 32
    group_by_length: bool = False
    learning_rate: float = 2e-5
    schedule: str = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    precision: str = "fp32"
    device: str = "auto"
    save_steps: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "gradient_accumulation", "save_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs must be positive, not {self.epochs}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, not {self.learning_rate}")
        for name in ("warmup_steps", "weight_decay", "adam_epsilon", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to 2**32 - 1, not {self.seed}")
        for kind, value, known in (
            ("precision", self.precision, PRECISIONS),
            ("schedule", self.schedule, SCHEDULES),
            ("device", self.device, ("auto", "cpu")),
        ):
            if value not in known:
                raise unknown(kind, value, known)

    @property
    def on_gpu(self) -> bool:
        """Whether it trains on a GPU."""
        # Late: the command line lists the settings without torch.
        import torch

        return self.device != "cpu" and torch.cuda.is_available()

    def steps_of(self, examples: int, processes: int = 1) -> int:
        """Optimizer steps of a round over so many examples.

        Raises ValueError for no examples, and for a warm-up longer than the round.
        """
        if examples < 1:
            raise ValueError("there are no examples to train on")
        batches = math.ceil(examples / (self.batch_size * processes))
        per_epoch = math.ceil(batches / self.gradient_accumulation)
        steps = self.steps if self.steps is not None else math.ceil(self.epochs * per_epoch)
        if self.warmup_steps >= steps:
            raise ValueError(f"a warm-up of {self.warmup_steps} steps does not fit a round of {steps}")
        return steps
