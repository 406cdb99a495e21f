"""One-shot pruning of the heads and neurons of a whole model at once, written into the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from sparsebert.bert import Structure, weight_of
from sparsebert.linear_layers import Filter
from sparsebert.one_shot.calibration import calibration_batches
from sparsebert.one_shot.progress import Listener
from sparsebert.one_shot.progress_file import ProgressFile
from sparsebert.one_shot.unit_columns import prune_sources_, reader_of
from sparsebert.one_shot.units_to_prune import UnitsToPrune
from sparsebert.pruning.density import Number
from sparsebert.pruning.granularity import kinds_in
from sparsebert.pruning.unit_groups import UnitGroup
from sparsebert.tickets.provenance import weight_hash
from sparsebert.tickets.ticket import Ticket

UNIT_METHODS: dict[str, type[Any]] = {}


@dataclass(frozen=True)
class PrunedUnits:
    """The heads and neurons to keep, and the factors of those that stay.

    Attributes:
        kept: bool [units], True = keep, by layer: the key of the first matrix of the units.
        factors: float64 [units], by layer, of the columns that read the units; 0 for pruned units.
        errors: Key of a matrix that reads units -> share of its outputs' energy that is lost, where known.
        notes: What was done, JSON values for the ticket's metadata.
    """

    kept: dict[str, Tensor]
    factors: dict[str, Tensor]
    errors: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


class UnitMethod(Protocol):
    """A method that chooses heads and neurons of all layers together: a frozen dataclass with its options.

    Attributes:
        name: Name in ``UNIT_METHODS``.
    """

    name: ClassVar[str]

    def prune_units(
        self,
        model: nn.Module,
        structure: Structure,
        groups: Sequence[UnitGroup],
        density: Fraction,
        batches: Sequence[Mapping[str, Any]],
        saved: ProgressFile | None = None,
        progress: Listener | None = None,
    ) -> PrunedUnits:
        """Choose units; the model is only read.

        Args:
            model: The model.
            structure: Its structure.
            groups: The units of each layer.
            density: Share of their cost to keep.
            batches: Keyword arguments for the model, with labels if there are any.
            saved: What a killed run had finished; the result is the same.
            progress: Called for each part of the work.
        """


def prune_units_(
    model: nn.Module,
    method: UnitMethod,
    *,
    data: Any,
    sparsity: Number | None,
    granularity: str,
    tokenizer: Any = None,
    filter: Filter | None = None,
    checkpoint: Path | None = None,
    progress: Listener | None = None,
) -> Ticket:
    """Prune heads and neurons, and write the factors of those that stay into the model.

    Arguments and result are those of :func:`sparsebert.prune_`; labels in ``data`` are passed to the method.

    Raises:
        ValueError: The granularity is not made of heads and neurons, or as :func:`sparsebert.prune_`.
    """
    kinds = kinds_in(granularity)
    if not kinds or not set(kinds) <= {"head", "neuron"}:
        raise ValueError(
            f"method {method.name} prunes granularity head, neuron or head+neuron, got {granularity!r}"
        )
    batches = calibration_batches(model, data, tokenizer, labels=True)
    units = UnitsToPrune.of(model, batches, sparsity, granularity, filter=filter)
    step = units.describe(method, "global", batches)
    before = weight_hash(model)
    saved = ProgressFile(checkpoint, {**step, "weights": before})
    pruned = method.prune_units(
        model, units.structure, units.groups, units.one_density, batches, saved, progress
    )
    masks = prune_sources_(model, units.groups, _scale_readers_(model, units.groups, pruned))
    return units.ticket(model, masks, step | pruned.notes, before, errors=pruned.errors)


@torch.no_grad()
def _scale_readers_(model: nn.Module, groups: Sequence[UnitGroup], pruned: PrunedUnits) -> dict[str, Tensor]:
    """Multiply the columns that read units by their factors; return the masks of these matrices."""
    masks = {}
    for group in groups:
        reader = reader_of(group).name
        masks[reader] = group.expand(pruned.kept[group.name].view(group.grid))[reader]
        weight = weight_of(model, reader)
        factors = pruned.factors[group.name]
        scale = factors.repeat_interleave(weight.shape[1] // len(factors))
        weight.copy_(weight.double().cpu().mul_(scale))
    return masks
