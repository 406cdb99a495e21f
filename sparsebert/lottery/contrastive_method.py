"""Methods that add the contrastive terms of CAP to the loss."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.method import LotteryMethod
from sparsebert.lottery.round_hooks import RoundHooks
from sparsebert.mask_learning.rule import require_not_negative, require_positive
from sparsebert.training import distributed
from sparsebert.training.contrastive import (
    FINE_TUNED,
    PRETRAINED,
    SNAPSHOTS,
    ContrastiveHooks,
    ContrastiveSettings,
    snapshot_name,
)
from sparsebert.training.distillation import Distillation, Teacher
from sparsebert.training.representation_bank import RepresentationBank, head_linear
from sparsebert_kernels.errors import unknown

_BANKS = (PRETRAINED, FINE_TUNED, SNAPSHOTS)
INSTANCE_WEIGHT = {"help": "weight of the instance-based contrastive loss"}
LABEL_WEIGHT = {"help": "weight of the label-based contrastive loss"}


@dataclass(frozen=True)
class ContrastiveMethod(LotteryMethod):
    """Contrastive pruning, CAP (Xu et al. 2022, "From Dense to Sparse: Contrastive Pruning for Better
    Pre-trained Language Model Compression").

    For each of the ``banks``, the instance term and the label term of
    :func:`sparsebert.mask_learning.contrastive_loss.contrastive_terms` are added to the loss, times
    ``instance_weight`` and ``label_weight``. Examples with equal labels are positive pairs. Spans have only
    the instance term; tasks with scores as labels are refused. A run with a teacher also distils from it, by
    default with the published weights: 0.1 for the labels and 0.9 for the teacher. In unstructured pruning,
    the published code takes snapshots with dropout; here dropout is off. While the run needs them, the
    representations are stored in files: 4 bytes times features times examples for each encoder.

    Attributes:
        instance_weight: Weight of the instance term.
        label_weight: Weight of the label term.
        contrast_temperature: Divides the similarities.
        negatives: Representations sampled from each bank, in addition to the batch.
        banks: Names of the banks, separated by commas: "pretrained" holds representations by the initial
            model, "fine-tuned" by the teacher, and "snapshots" by all snapshots of the model in training.
    """

    distillation: ClassVar[Distillation] = Distillation(0.9)

    instance_weight: float = field(default=0.1, metadata=INSTANCE_WEIGHT)
    label_weight: float = field(default=10.0, metadata=LABEL_WEIGHT)
    contrast_temperature: float = field(
        default=0.1, metadata={"help": "temperature of the contrastive losses"}
    )
    negatives: int = field(
        default=4096, metadata={"help": "representations drawn from each bank for every batch"}
    )
    banks: str = field(
        default=",".join(_BANKS),
        metadata={
            "help": "representation banks to contrast with: some of pretrained,fine-tuned,snapshots; "
            "all if omitted"
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "instance_weight", "label_weight", "negatives")
        require_positive(self, "contrast_temperature")
        for bank in self.bank_names:
            if bank not in _BANKS:
                raise unknown("bank", bank, _BANKS)

    @property
    def bank_names(self) -> tuple[str, ...]:
        """The names in ``banks``, in their order."""
        return tuple(dict.fromkeys(name.strip() for name in self.banks.split(",")))

    def require(self, experiment: Experiment, config: RunConfig) -> None:
        """Raise ValueError unless labels are classes and the teacher, if needed, exists and fits."""
        labels = experiment.collate([experiment.train[0]]).get("labels")
        if labels is not None and (labels.dim() != 1 or labels.is_floating_point()):
            kind = "scores" if labels.is_floating_point() else "words"
            raise ValueError(f"method {self.name} contrasts examples by class labels, got {kind}")
        features = head_linear(experiment.model).in_features
        if FINE_TUNED not in self.bank_names:
            return
        if not isinstance(experiment.teacher, Teacher):
            raise ValueError(
                f"method {self.name} contrasts with a fine-tuned model too: name one as the teacher, or "
                f"leave {FINE_TUNED!r} out of its banks"
            )
        teacher_features = head_linear(experiment.teacher.model).in_features
        if teacher_features != features:
            raise ValueError(
                f"method {self.name} compares representations of one size: the teacher's have "
                f"{teacher_features} features, the model's {features}"
            )

    def file_bytes(self, experiment: Experiment, config: RunConfig) -> int:
        """Return the bytes of all representations and labels."""
        encoders = sum(bank in self.bank_names for bank in (PRETRAINED, FINE_TUNED))
        if SNAPSHOTS in self.bank_names:
            every = self._snapshot_interval(experiment, config)
            steps = config.training.steps_of(len(experiment.train), distributed.count())
            rounds = len(config.rounds)
            encoders += rounds - 1 if every is None else steps // every
        features = head_linear(experiment.model).in_features
        return len(experiment.train) * (encoders * features * 4 + 8)

    @contextlib.contextmanager
    def round_hooks(
        self, number: int, experiment: Experiment, config: RunConfig, folder: Path
    ) -> Iterator[RoundHooks | None]:
        """Write missing representations and add the terms to the loss; delete the files in the last round."""
        settings, model = config.training, experiment.model
        if settings.on_gpu:
            model.cuda()
        home = folder.with_name("round-00") / "banks"
        device = next(model.parameters()).device
        bank = RepresentationBank(home, experiment.train, experiment.collate, settings.batch_size, device)
        if distributed.is_main():
            self._encode(number, experiment, bank)
        distributed.wait()
        terms = ContrastiveSettings(
            self.instance_weight, self.label_weight, self.contrast_temperature, self.negatives
        )
        every = self._snapshot_interval(experiment, config)
        with ContrastiveHooks(model, bank, self.bank_names, terms, every, settings.seed) as hooks:
            yield hooks
        distributed.wait()
        if distributed.is_main() and number == len(config.rounds) - 1:
            shutil.rmtree(home)

    def _encode(self, number: int, experiment: Experiment, bank: RepresentationBank) -> None:
        """Encode the examples with the initial model in the first round, with a snapshot in later rounds.

        The first call also encodes them with the teacher.
        """
        model, written = experiment.model, bank.names()
        name = snapshot_name(number) if number else PRETRAINED
        if (SNAPSHOTS if number else PRETRAINED) in self.bank_names and name not in written:
            bank.write(name, model, model)
        if FINE_TUNED in self.bank_names and FINE_TUNED not in written:
            assert isinstance(experiment.teacher, Teacher)
            bank.write(FINE_TUNED, experiment.teacher.model, experiment.teacher)

    def _snapshot_interval(self, experiment: Experiment, config: RunConfig) -> int | None:
        """Return the training steps between two snapshots; None if each round starts with one."""
        return None
