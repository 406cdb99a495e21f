"""One-shot pruning of all matrices of a model together, written into the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from sparsebert.bert import weight_of
from sparsebert.linear_layers import Filter
from sparsebert.one_shot.calibration import calibration_batches
from sparsebert.one_shot.layer_problem import PrunedMatrix
from sparsebert.one_shot.progress import Listener
from sparsebert.one_shot.progress_file import ProgressFile
from sparsebert.one_shot.units_to_prune import UnitsToPrune
from sparsebert.pruning.density import Number, density_of
from sparsebert.pruning.unit_groups import UnitGroup, competition_groups
from sparsebert.tickets.provenance import weight_hash
from sparsebert.tickets.ticket import Ticket

MODEL_METHODS: dict[str, type[Any]] = {}


@dataclass(frozen=True)
class Competition:
    """Units of one or several matrices that are ranked together.

    Attributes:
        groups: The units, see :func:`sparsebert.pruning.unit_groups.competition_groups`.
        density: Share of their weights to keep.
    """

    groups: Sequence[UnitGroup]
    density: Fraction


class ModelMethod(Protocol):
    """A method that prunes all matrices of a model together: a frozen dataclass with its options.

    Attributes:
        name: Name in ``MODEL_METHODS``.
        scope: Units that compete, as for :func:`sparsebert.prune`.
    """

    name: ClassVar[str]
    scope: str

    def prune_model(
        self,
        model: nn.Module,
        competitions: Sequence[Competition],
        batches: Sequence[Mapping[str, Any]],
        saved: ProgressFile | None = None,
        progress: Listener | None = None,
    ) -> dict[str, PrunedMatrix]:
        """Return key -> pruned matrix of each matrix with units that compete; the model is only read.

        Args:
            model: The model.
            competitions: The units to choose from.
            batches: Keyword arguments for the model, with labels, on its device.
            saved: What a killed run had finished; the result is the same.
            progress: Called for each part of the work.
        """


def prune_model_(
    model: nn.Module,
    method: ModelMethod,
    *,
    data: Any,
    sparsity: Number | Mapping[str, Number] | None,
    granularity: str = "element",
    block_size: tuple[int, int] | None = None,
    round_to: int | None = None,
    tokenizer: Any = None,
    include_pooler: bool = False,
    filter: Filter | None = None,
    checkpoint: Path | None = None,
    progress: Listener | None = None,
) -> Ticket:
    """Prune units of all matrices by one ranking, and write the weights that stay into the model.

    Arguments and result are those of :func:`sparsebert.prune_`; labels in ``data`` are passed to the method.

    Raises:
        ValueError: As :func:`sparsebert.prune_`, or ``data`` has no labels.
    """
    batches = calibration_batches(model, data, tokenizer, labels=True)
    units = UnitsToPrune.of(
        model,
        batches,
        sparsity,
        granularity,
        block_size,
        round_to,
        include_pooler=include_pooler,
        filter=filter,
    )
    competitions = [
        Competition(competing, density_of(competing, units.density))
        for competing in competition_groups(units.groups, method.scope, units.structure.types)
    ]
    step = units.describe(method, method.scope, batches)
    before = weight_hash(model)
    saved = ProgressFile(checkpoint, {**step, "weights": before})
    pruned = method.prune_model(model, competitions, batches, saved, progress)
    with torch.no_grad():
        for key, each in pruned.items():
            weight_of(model, key).copy_(each.weight)
    return units.ticket(model, {key: each.mask for key, each in pruned.items()}, step, before)
