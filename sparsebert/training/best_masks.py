"""Selection of the best masks of a training run instead of the last ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback

from sparsebert.atomic import replacing
from sparsebert.mask_learning.learner import Learner
from sparsebert.training import distributed


@dataclass(frozen=True)
class Best:
    """The best step, counted from 1, and its metric."""

    step: int
    metric: float


class BestMasks(TrainerCallback):
    """Evaluates the learner's masks every few optimizer steps and after the last one, and keeps the best.

    The evaluated masks are those that the run would end with: the final masks of the step's scores, at the
    final density. Saves all trained parameters of the best step. On a tie, the first step wins.

    Args:
        learner: The learner of the masks.
        judge: Returns a metric of the model; higher is better. Called in full precision, like the evaluation
            of a round.
        every: Steps between two evaluations.
        eligible: Returns whether the masks of a step are sparse enough.
        file: File of the best parameters, from which a resumed process continues.
    """

    def __init__(
        self,
        learner: Learner,
        judge: Callable[[], float],
        every: int,
        eligible: Callable[[int], bool],
        file: Path,
    ) -> None:
        self._learner, self._judge, self._every = learner, judge, every
        self._eligible, self._file = eligible, file

    @property
    def best(self) -> Best | None:
        """The best step so far; None before the first eligible step."""
        if not self._file.exists():
            return None
        with safe_open(self._file, "pt") as file:
            metadata = file.metadata()
        return Best(int(metadata["step"]), float(metadata["metric"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        step = state.global_step
        if (step % self._every and step != state.max_steps) or not self._eligible(step):
            return
        # The next step derives its own masks before its first batch.
        self._learner.derive_final_()
        # A DataLoader draws a random number even if it does not shuffle, which must not affect the training.
        # It draws on the CPU: the states of other devices need not be saved.
        with torch.random.fork_rng(devices=[]), _in_full_precision(self._learner.model):
            metric = distributed.from_main(self._judge)
        self._learner.model.train()
        if distributed.is_main() and ((best := self.best) is None or metric > best.metric):
            trained = {name: each.detach().cpu() for name, each in self._trained().items()}
            with replacing(self._file) as unfinished:
                save_file(trained, unfinished, {"step": str(step), "metric": repr(metric)})
        distributed.wait()

    def restore_(self) -> Best | None:
        """Write the best parameters into the model and return their step, or None if no step was eligible."""
        best = self.best
        if best is not None:
            with safe_open(self._file, "pt") as file, torch.no_grad():
                for name, each in self._trained().items():
                    each.copy_(file.get_tensor(name))
        return best

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: each for name, each in self._learner.model.named_parameters() if each.requires_grad}


@contextlib.contextmanager
def _in_full_precision(model: torch.nn.Module) -> Iterator[None]:
    """Remove accelerate's ``forward`` for mixed precision from a model, and restore it afterwards."""
    mixed = vars(model).pop("forward", None)
    try:
        yield
    finally:
        if mixed is not None:
            model.forward = mixed
