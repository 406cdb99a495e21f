"""CAP: pruning while contrastive terms hold the model near what it was, and near what it is to become."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.method import (
    Head,
    LotteryMethod,
    NeedsBatches,
    Rewind,
    Round,
    RoundHooks,
    Source,
    register,
)
from sparsebert.lottery.methods.mask_learning import Movement, SoftMovement
from sparsebert.mask_learning.rule import require_not_negative, require_positive
from sparsebert.pruning import HeadImportance, Share, levels
from sparsebert.training import distributed
from sparsebert.training.contrastive import (
    FINE_TUNED,
    PRETRAINED,
    SNAPSHOTS,
    Contrast,
    Contrasting,
    snapshot_name,
)
from sparsebert.training.distillation import Teacher
from sparsebert.training.representation_bank import Banks, head_linear
from sparsebert_kernels.errors import unknown

_BANKS = (PRETRAINED, FINE_TUNED, SNAPSHOTS)


@dataclass(frozen=True)
class Contrastive(LotteryMethod):
    """Contrastive pruning (Xu et al. 2022, "From Dense to Sparse: Contrastive Pruning for Better Pre-trained
    Language Model Compression"): the loss gets ``instance_weight`` and ``label_weight`` times the terms of
    :func:`sparsebert.mask_learning.contrastive_loss.contrast` for each of the ``banks``: "pretrained", what the model made
    of the training data at first; "fine-tuned", what the teacher makes of them; "snapshots", what the model
    made of them on the way, all snapshots together. Beside each batch ``negatives`` of a bank are drawn.

    Labels are alike if they are equal; spans have the term of instances alone, and scores are refused. The
    paper's knowledge distillation is the run's (``distill_weight=0.9``). Of unstructured pruning, the
    published snapshots are taken with dropout; here it is off. Representations lie in files as long as the
    run needs them: 4 bytes times features times examples for each encoder.
    """

    instance_weight: float = 0.1
    label_weight: float = 10.0
    contrast_temperature: float = 0.1
    negatives: int = 4096
    banks: str = ",".join(_BANKS)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "instance_weight", "label_weight", "negatives")
        require_positive(self, "contrast_temperature")
        for bank in self.groups:
            if bank not in _BANKS:
                raise unknown("bank", bank, _BANKS)

    @property
    def groups(self) -> tuple[str, ...]:
        """The banks that count, in their own order."""
        asked = [each.strip() for each in self.banks.split(",")]
        return tuple(dict.fromkeys(asked))

    def require(self, experiment: Experiment, request: RunConfig) -> None:
        """Raise ValueError for data whose labels cannot be compared, and without a teacher that is needed, or
        with one whose representations are of another size."""
        labels = experiment.collate([experiment.train[0]]).get("labels")
        if labels is not None and (labels.dim() != 1 or labels.is_floating_point()):
            found = "scores" if labels.is_floating_point() else "words"
            raise ValueError(f"method {self.name} contrasts examples by their labels, and these are {found}")
        features = head_linear(experiment.model).in_features
        if FINE_TUNED not in self.groups:
            return
        if not isinstance(experiment.teacher, Teacher):
            raise ValueError(
                f"method {self.name} contrasts with a fine-tuned model too: name one as the teacher, or "
                f"leave {FINE_TUNED!r} out of its banks"
            )
        theirs = head_linear(experiment.teacher.model).in_features
        if theirs != features:
            raise ValueError(
                f"method {self.name} compares representations: the teacher's have {theirs} features, the "
                f"model's {features}"
            )

    @contextlib.contextmanager
    def round_hooks(
        self, number: int, experiment: Experiment, request: RunConfig, folder: Path
    ) -> Iterator[RoundHooks | None]:
        """Encode what is not encoded yet, then add the terms; what was encoded goes with the last round."""
        settings, model = request.training, experiment.model
        if settings.on_gpu:
            model.cuda()
        home = folder.with_name("round-00") / "banks"
        device = next(model.parameters()).device
        banks = Banks(home, experiment.train, experiment.collate, settings.batch_size, device)
        if distributed.is_main():
            self._encode(number, experiment, banks)
        distributed.wait()
        contrast = Contrast(
            self.instance_weight, self.label_weight, self.contrast_temperature, self.negatives
        )
        every = self._snapshots_every(experiment, request)
        with Contrasting(model, banks, self.groups, contrast, every, settings.seed) as contrasting:
            yield contrasting
        distributed.wait()
        if distributed.is_main() and number == len(self.rounds(request.target)) - 1:
            shutil.rmtree(home)

    def _encode(self, number: int, experiment: Experiment, banks: Banks) -> None:
        """Of the pre-trained model in the first round, of a snapshot in each one after it."""
        model, known = experiment.model, banks.names()
        own = snapshot_name(number) if number else PRETRAINED
        if (SNAPSHOTS if number else PRETRAINED) in self.groups and own not in known:
            banks.write(own, model, model)
        if FINE_TUNED in self.groups and FINE_TUNED not in known:
            assert isinstance(experiment.teacher, Teacher)
            banks.write(FINE_TUNED, experiment.teacher.model, experiment.teacher)

    def _snapshots_every(self, experiment: Experiment, request: RunConfig) -> int | None:
        """Steps of training between two snapshots; None if each round begins with one."""
        return None


@dataclass(frozen=True)
class _Learned(Contrastive):
    """``snapshot_every``: steps between two snapshots; an epoch where none are given."""

    snapshot_every: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.snapshot_every is not None and self.snapshot_every < 1:
            raise ValueError(f"snapshot_every must be at least 1 step, not {self.snapshot_every}")

    def _snapshots_every(self, experiment: Experiment, request: RunConfig) -> int | None:
        epoch = replace(request.training, steps=None, epochs=1.0, warmup_steps=0)
        return self.snapshot_every or epoch.steps_of(len(experiment.train), distributed.count())


@register("cap")
@dataclass(frozen=True)
class Cap(_Learned, Movement):
    """CAP (Xu et al. 2022) on movement pruning, its scripts' warm-ups: see :class:`Contrastive`."""

    initial_warmup: float = 2.0
    final_warmup: float = 3.0


@register("cap-soft")
@dataclass(frozen=True)
class CapSoft(_Learned, SoftMovement):
    """CAP (Xu et al. 2022) on soft movement pruning, its scripts' warm-ups: see :class:`Contrastive`."""

    initial_warmup: float = 2.0
    final_warmup: float = 3.0


@register("cap-structured")
@dataclass(frozen=True)
class CapStructured(Contrastive, NeedsBatches):
    """CAP (Xu et al. 2022) on heads and neurons, see :class:`Contrastive`: in stages of ``step`` of the
    original ones the least important go, the same share of both, and the rest trains on with a new optimizer
    and schedule.

    Importance is that of :class:`sparsebert.pruning.HeadImportance` on ``batches`` batches of the training
    data, by the loss of their labels; the last head of a layer stays. The first stage prunes the pre-trained
    model. Its scripts weight the terms differently from task to task (0.3 and 3 for SST-2).
    """

    rewind: Rewind = Rewind.LEARNING_RATE
    head: Head = Head.KEEP
    step: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.rewind, self.head) != (Rewind.LEARNING_RATE, Head.KEEP):
            raise ValueError(f"method {self.name} trains on from stage to stage: there is nothing to rewind")

    @property
    def granularity(self) -> str:
        return "head+neuron"

    @property
    def scope(self) -> str:
        return "type"

    def require_units(self, granularity: str, scope: str) -> None:
        if granularity != "head+neuron":
            raise ValueError(
                f"method {self.name} chooses heads and neurons: granularity head+neuron, not {granularity!r}"
            )

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        scores = HeadImportance(keep_a_head=True)
        stages = levels(sparsity, self.step, Share.ORIGINAL)
        if not stages:
            raise ValueError(f"method {self.name} prunes in stages: the sparsity must be above 0")
        return tuple(
            Round(Source.TRAINED if number else Source.START, level, scores)
            for number, level in enumerate(stages)
        )
