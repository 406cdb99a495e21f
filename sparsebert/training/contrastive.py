"""CAP's part in a round of training: its term of the loss, and snapshots of the model on the way."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from sparsebert.mask_learning.contrastive_loss import Examples, contrast
from sparsebert.training import distributed
from sparsebert.training.representation_bank import Banks, HeadInput

PRETRAINED, FINE_TUNED, SNAPSHOTS = "pretrained", "fine-tuned", "snapshots"
_SNAPSHOT = "snapshot-"


@dataclass(frozen=True)
class Contrast:
    """How much the terms count. ``negatives``: representations that are drawn at random for each bank.

    The snapshots share theirs: there are so many by all of them.
    """

    instance_weight: float
    label_weight: float
    temperature: float
    negatives: int


class Contrasting:
    """Goes along with a round; a context manager that puts a hook on the model, and takes it off again.

    ``banks``: those of the pre-trained and the fine-tuned model are there before. ``groups``: the kinds that
    count. ``every``: steps between snapshots in training; None for none. What is drawn follows from ``seed``
    and the step alone: a run that is resumed draws the same.
    """

    names: tuple[str, ...] = ()
    stopped: int | None = None

    def __init__(
        self,
        model: nn.Module,
        banks: Banks,
        groups: tuple[str, ...],
        settings: Contrast,
        every: int | None,
        seed: int,
    ) -> None:
        self.callback = _Steps(self)
        self._model, self._banks, self._groups, self._settings = model, banks, groups, settings
        self._every, self._seed, self._step = every, seed, 0
        self._numbers: Tensor | None = None
        self._open: dict[str, list[np.ndarray]] = {}
        self._labels: np.ndarray | None = None

    def __enter__(self) -> Contrasting:
        self._head = HeadInput(self._model)
        return self

    def __exit__(self, *error: object) -> None:
        self._head.close()

    def examples(self, numbers: Tensor) -> None:
        """Be told which examples the next batch holds, int64 [examples]."""
        self._numbers = numbers

    def penalty(self) -> Tensor | None:
        """The terms of the batch that went through the model last; None as long as no bank is there."""
        own, numbers = self._head.take(), self._numbers
        assert numbers is not None
        total = None
        for group, files in self._open.items():
            batch = self._rows(files, numbers.cpu(), own.device)
            count = min(self._settings.negatives // len(files), len(files[0]))
            drawn = random.Random(f"{self._seed} {self._step} {group}").sample(range(len(files[0])), count)
            others = self._rows(files, torch.tensor(drawn, dtype=torch.int64), own.device)
            by_instance, by_label = contrast(own, batch, others, self._settings.temperature)
            term = self._settings.instance_weight * by_instance
            if by_label is not None:
                term = term + self._settings.label_weight * by_label
            total = term if total is None else total + term
        return total

    def begin(self, step: int) -> None:
        """Go on after so many steps of the round."""
        kinds = {each: [each] for each in (PRETRAINED, FINE_TUNED)}
        # What a killed process encoded later than its last checkpoint is encoded again.
        kinds[SNAPSHOTS] = [
            name
            for name in self._banks.names()
            if name.startswith(_SNAPSHOT)
            and (self._every is None or int(name.removeprefix(_SNAPSHOT)) <= step)
        ]
        self._open = {each: self._banks.open(kinds[each]) for each in self._groups if kinds[each]}
        self._labels = self._banks.labels()
        self.at(step)

    def at(self, step: int) -> None:
        """Be told that this step, counted from 0, is taken next."""
        self._step = step

    def after(self, step: int, last: int) -> None:
        """Take a snapshot after so many steps if it is time, unless there are no more to come."""
        if self._every is None or SNAPSHOTS not in self._groups or step % self._every or step == last:
            return
        if distributed.is_main():
            self._banks.write(snapshot_name(step), self._model, self._model)
        distributed.wait()
        self.begin(step)

    def _rows(self, files: list[np.ndarray], numbers: Tensor, device: torch.device) -> Examples:
        found = torch.from_numpy(np.stack([file[numbers.numpy()] for file in files], 1))
        labels = None if self._labels is None else torch.from_numpy(self._labels[numbers.numpy()]).to(device)
        return Examples(numbers.to(device), labels, found.to(device))


def snapshot_name(number: int) -> str:
    """The bank of a snapshot: after so many steps, or at the beginning of that round."""
    return f"{_SNAPSHOT}{number:06}"


class _Steps(TrainerCallback):
    def __init__(self, contrasting: Contrasting) -> None:
        self._contrasting = contrasting

    def on_train_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._contrasting.begin(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._contrasting.at(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._contrasting.after(state.global_step, state.max_steps)
