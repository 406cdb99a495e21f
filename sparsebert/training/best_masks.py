"""The best of the masks that training comes by, instead of the last."""

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
    """The step (counted from 1) that did best, and its metric."""

    step: int
    metric: float


class BestChoice(TrainerCallback):
    """Judges the learner's masks every few optimizer steps and after the last one, and keeps what is trained
    of the best, of equal ones the first.

    ``judge``: a metric of the model, higher is better; it is taken in full precision, like that of a round.
    ``eligible``: whether a step's masks are sparse enough to count. ``file``: where the best is kept, for a
    process that goes on after this one.
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
        """What is kept so far."""
        if not self._file.exists():
            return None
        with safe_open(self._file, "pt") as file:
            told = file.metadata()
        return Best(int(told["step"]), float(told["metric"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        step = state.global_step
        if (step % self._every and step != state.max_steps) or not self._eligible(step):
            return
        self._learner.derive_(step)
        # A loader draws a random number even if it shuffles nothing: training goes on as if nobody looked.
        # It draws it on the CPU: the other devices' states need not be kept, nor the devices be woken for it.
        with torch.random.fork_rng(devices=[]), _in_full_precision(self._learner.model):
            metric = distributed.from_main(self._judge)
        self._learner.model.train()
        if distributed.is_main() and ((best := self.best) is None or metric > best.metric):
            trained = {name: each.detach().cpu() for name, each in self._trained().items()}
            with replacing(self._file) as unfinished:
                save_file(trained, unfinished, {"step": str(step), "metric": repr(metric)})
        distributed.wait()

    def restore_(self) -> Best | None:
        """Put the best into the model again, and say which it was; None where no step was eligible."""
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
    """Without the forward that accelerate puts on a model for mixed precision."""
    mixed = vars(model).pop("forward", None)
    try:
        yield
    finally:
        if mixed is not None:
            model.forward = mixed
