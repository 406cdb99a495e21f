"""One-shot pruning of all matrices of a model together, written into the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from sparsebert.bert import weight_of
from sparsebert.linear_layers import Filter
from sparsebert.one_shot.calibration import calibration_batches, describe_batches
from sparsebert.one_shot.layer_problem import PrunedMatrix
from sparsebert.pruning.density import Number, as_sparsity, density_of, parse_sparsity
from sparsebert.pruning.granularity import PANEL, parse_granularity, spelled_out
from sparsebert.pruning.prunable_structure import prunable_structure
from sparsebert.pruning.read_matrices import loaded_weight
from sparsebert.pruning.unit_groups import UnitGroup, competition_groups, unit_groups
from sparsebert.tickets.provenance import describe_model, weight_hash
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
        self, model: nn.Module, competitions: Sequence[Competition], batches: Sequence[Mapping[str, Any]]
    ) -> dict[str, PrunedMatrix]:
        """Return key -> pruned matrix of each matrix with units that compete; the model is only read.

        Args:
            model: The model.
            competitions: The units to choose from.
            batches: Keyword arguments for the model, with labels, on its device.
        """


def prune_model_(
    model: nn.Module,
    method: ModelMethod,
    *,
    data: Any,
    sparsity: Number | Mapping[str, Number] | None,
    granularity: str,
    block_size: tuple[int, int] | None = None,
    round_to: int | None = None,
    tokenizer: Any = None,
    include_pooler: bool = False,
    filter: Filter | None = None,
) -> Ticket:
    """Prune units of all matrices by one ranking, and write the weights that stay into the model.

    Arguments and result are those of :func:`sparsebert.prune_`; labels in ``data`` are passed to the method.

    Raises:
        ValueError: As :func:`sparsebert.prune_`, or ``data`` has no labels.
    """
    granularity, block_size = spelled_out(granularity, block_size)
    units = parse_granularity(granularity, block_size, round_to)
    if granularity == PANEL and block_size is not None:
        round_to = units.quantum * block_size[1]
    density = parse_sparsity(sparsity, units)
    batches = calibration_batches(model, data, tokenizer, labels=True)
    encoder, keys = prunable_structure(
        model, granularity, include_pooler=include_pooler, filter=filter, data=batches
    )
    shapes = {key: loaded_weight(model, key).shape for key in keys}
    groups = unit_groups(granularity, block_size, shapes, encoder, round_to)
    competitions = [
        Competition(competing, density_of(competing, density))
        for competing in competition_groups(groups, method.scope, encoder.types)
    ]
    step: dict[str, Any] = {
        "method": method.name,
        "options": dict(vars(method)),
        "sparsity": as_sparsity(density),
        "granularity": granularity,
        "scope": method.scope,
        "calibration": describe_batches(batches),
    }
    step |= {"block_size": list(block_size)} if block_size else {}
    step |= {"round_to": round_to} if round_to else {}
    before = weight_hash(model)
    pruned = method.prune_model(model, competitions, batches)
    with torch.no_grad():
        for key, each in pruned.items():
            weight_of(model, key).copy_(each.weight)
    origin = {**describe_model(model), "weights": weight_hash(model), "dense_weights": before}
    return Ticket(
        {key: pruned[key].mask for key in keys if key in pruned},
        metadata={**step, "model": origin, "history": [{"operation": "prune_", **step}]},
    )
