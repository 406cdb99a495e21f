"""CAP in the training of a round: its loss terms, and representations by snapshots of the model."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from sparsebert.mask_learning.contrastive_loss import EncodedExamples, contrastive_terms
from sparsebert.training import distributed
from sparsebert.training.representation_bank import HeadInput, RepresentationBank

PRETRAINED, FINE_TUNED, SNAPSHOTS = "pretrained", "fine-tuned", "snapshots"
_SNAPSHOT = "snapshot-"


@dataclass(frozen=True)
class ContrastiveSettings:
    """Weights of the contrastive terms, and the size of their samples.

    Attributes:
        instance_weight: Weight of the instance term.
        label_weight: Weight of the label term.
        temperature: Divides the similarities.
        negatives: Representations sampled for each kind of bank; all snapshots together count as one kind.
    """

    instance_weight: float
    label_weight: float
    temperature: float
    negatives: int


class ContrastiveHooks:
    """Hooks of a round that add the contrastive terms.

    Use it as a context manager: it hooks into the model on entry and unhooks on exit. Samples depend only on
    the seed and the step, so a resumed run draws the same.

    Args:
        model: The model in training.
        bank: Representations. The pre-trained and the fine-tuned model, if used, must be encoded already.
        kinds: The kinds of encoders to contrast with.
        settings: Weights and sample sizes of the terms.
        every: Training steps between two snapshots; None to take none.
        seed: Seed of the samples.
    """

    names: tuple[str, ...] = ()
    stopped: int | None = None

    def __init__(
        self,
        model: nn.Module,
        bank: RepresentationBank,
        kinds: tuple[str, ...],
        settings: ContrastiveSettings,
        every: int | None,
        seed: int,
    ) -> None:
        self.callback = _StepCallback(self)
        self._model, self._bank, self._kinds, self._settings = model, bank, kinds, settings
        self._every, self._seed, self._step = every, seed, 0
        self._ids: Tensor | None = None
        self._files: dict[str, list[np.ndarray]] = {}
        self._labels: np.ndarray | None = None

    def __enter__(self) -> ContrastiveHooks:
        self._head = HeadInput(self._model)
        return self

    def __exit__(self, *error: object) -> None:
        self._head.close()

    def tell_examples(self, ids: Tensor) -> None:
        """Store the ids of the next batch's examples, int64 [examples]."""
        self._ids = ids

    def penalty(self) -> Tensor | None:
        """Return the terms for the batch of the last forward pass, or None if no bank exists yet."""
        representations, ids = self._head.take(), self._ids
        device = representations.device
        assert ids is not None
        total = None
        for kind, files in self._files.items():
            batch = self._encoded(files, ids.cpu(), device)
            count = min(self._settings.negatives // len(files), len(files[0]))
            sample = random.Random(f"{self._seed} {self._step} {kind}").sample(range(len(files[0])), count)
            negatives = self._encoded(files, torch.tensor(sample, dtype=torch.int64), device)
            by_instance, by_label = contrastive_terms(
                representations, batch, negatives, self._settings.temperature
            )
            term = self._settings.instance_weight * by_instance
            if by_label is not None:
                term = term + self._settings.label_weight * by_label
            total = term if total is None else total + term
        return total

    def begin(self, step: int) -> None:
        """Open the banks that exist after ``step`` steps of the round."""
        encoders = {kind: [kind] for kind in (PRETRAINED, FINE_TUNED)}
        # Later snapshots come from a killed process that took them after its last checkpoint: they are
        # ignored and taken again.
        encoders[SNAPSHOTS] = [
            name
            for name in self._bank.names()
            if name.startswith(_SNAPSHOT)
            and (self._every is None or int(name.removeprefix(_SNAPSHOT)) <= step)
        ]
        self._files = {kind: self._bank.open(encoders[kind]) for kind in self._kinds if encoders[kind]}
        self._labels = self._bank.labels()
        self.at(step)

    def at(self, step: int) -> None:
        """Set the number of the next step, counted from 0."""
        self._step = step

    def after(self, step: int, last: int) -> None:
        """Take a snapshot if one is due after ``step`` steps. The last step gets none."""
        if self._every is None or SNAPSHOTS not in self._kinds or step % self._every or step == last:
            return
        if distributed.is_main():
            self._bank.write(snapshot_name(step), self._model, self._model)
        distributed.wait()
        self.begin(step)

    def _encoded(self, files: list[np.ndarray], ids: Tensor, device: torch.device) -> EncodedExamples:
        rows = torch.from_numpy(np.stack([file[ids.numpy()] for file in files], 1))
        labels = None if self._labels is None else torch.from_numpy(self._labels[ids.numpy()]).to(device)
        return EncodedExamples(ids.to(device), labels, rows.to(device))


def snapshot_name(number: int) -> str:
    """Return the encoder name of a snapshot, numbered by training step or by round."""
    return f"{_SNAPSHOT}{number:06}"


class _StepCallback(TrainerCallback):
    """Tells the hooks the number of the current step."""

    def __init__(self, hooks: ContrastiveHooks) -> None:
        self._hooks = hooks

    def on_train_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._hooks.begin(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._hooks.at(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        self._hooks.after(state.global_step, state.max_steps)
