"""CAP on movement pruning (cap) and on soft movement pruning (cap-soft)."""

from __future__ import annotations

from dataclasses import dataclass, field

from sparsebert.lottery.contrastive_method import ContrastiveMethod
from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.method import register, require_at_least_one
from sparsebert.lottery.methods.movement import Movement
from sparsebert.lottery.methods.soft_movement import SoftMovement
from sparsebert.lottery.option_help import FINAL_WARMUP, INITIAL_WARMUP
from sparsebert.training import distributed


@dataclass(frozen=True)
class _Snapshots(ContrastiveMethod):
    """Contrastive terms with snapshots during training.

    Attributes:
        snapshot_every: Steps between two snapshots; None for the steps of one epoch.
    """

    snapshot_every: int | None = field(
        default=None, metadata={"help": "steps between snapshots of the model; one epoch if omitted"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one(self, "snapshot_every")

    def _snapshot_interval(self, experiment: Experiment, config: RunConfig) -> int | None:
        examples, processes = len(experiment.train), distributed.count()
        return self.snapshot_every or config.training.steps_per_epoch(examples, processes)


@register("cap")
@dataclass(frozen=True)
class Cap(_Snapshots, Movement):
    """CAP (Xu et al. 2022) on movement pruning, with the warm-ups of its scripts.

    See :class:`sparsebert.lottery.contrastive_method.ContrastiveMethod`.
    """

    initial_warmup: float = field(default=2.0, metadata=INITIAL_WARMUP)
    final_warmup: float = field(default=3.0, metadata=FINAL_WARMUP)


@register("cap-soft")
@dataclass(frozen=True)
class CapSoft(_Snapshots, SoftMovement):
    """CAP (Xu et al. 2022) on soft movement pruning, with the warm-ups of its scripts.

    See :class:`sparsebert.lottery.contrastive_method.ContrastiveMethod`.
    """

    initial_warmup: float = field(default=2.0, metadata=INITIAL_WARMUP)
    final_warmup: float = field(default=3.0, metadata=FINAL_WARMUP)
