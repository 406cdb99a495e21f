"""The programme that decides what a one-shot method keeps for a speed."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch

from sparsebert.linear_layers import Filter
from sparsebert.one_shot.layer_problem import Target
from sparsebert.one_shot.progress import Listener
from sparsebert.one_shot.progress_file import ProgressFile
from sparsebert.one_shot.time_budget import TimeTable
from sparsebert.one_shot.unit_costs import Workload
from sparsebert.planning.mask_costs import mask_costs
from sparsebert.pruning.granularity import PANEL, kinds_in, listed, parse_granularity, spelled_out
from sparsebert.pruning.prunable_structure import prunable_structure
from sparsebert.pruning.read_matrices import loaded_weight
from sparsebert.pruning.unit_groups import unit_groups
from sparsebert.workflows.speed_programmes import (
    Batches,
    MatrixProgramme,
    Programme,
    UniformProgramme,
    UnitProgramme,
)


@torch.no_grad()
def programme_for(
    model: Any,
    method: Any,
    batches: Batches,
    timed: Batches,
    *,
    tolerance: str = "fp32",
    device: str | None = None,
    granularity: str = "element",
    block_size: tuple[int, int] | None = None,
    allocate: str | None = None,
    filter: Filter | None = None,
    include_pooler: bool = False,
    round_to: int | None = None,
    saved: ProgressFile | None = None,
    progress: Listener | None = None,
) -> Programme:
    """Return what chooses densities, numbers of units or a sparsity for a one-shot method.

    Args:
        model: The dense model, of any task.
        method: The method.
        batches: Calibration batches.
        timed: Batches to time.
        tolerance, device: As for :class:`sparsebert.workflows.speed_target.SpeedGoal`.
        granularity: As for :func:`sparsebert.prune_`; or several, separated by commas, among which each
            matrix chooses.
        block_size, allocate, filter, include_pooler, round_to: As for :func:`sparsebert.prune_`.
        saved: What a killed run has measured.
        progress: Called with a report of each matrix that is measured.

    Raises:
        ValueError: A granularity is unknown, fixes the sparsity, or cannot stand beside others.
    """
    names = listed(granularity)
    spelled = {name: spelled_out(name, block_size if len(names) == 1 else None) for name in names}
    for name, (kind, size) in spelled.items():
        if parse_granularity(kind, size, round_to if kind == PANEL else None).pattern:
            raise ValueError(f"granularity {name!r} fixes the sparsity: omit the speed, or choose another")
    kinds = kinds_in(granularity)
    across = [name for name in names if kinds_in(name)]
    by_matrix = hasattr(method, "prune_layer") and not kinds
    saved = saved or ProgressFile()
    if len(names) > 1 and across:
        raise ValueError(
            f"granularity {across[0]!r} has units across matrices and cannot stand beside others in a list, "
            f"got {granularity!r}"
        )
    if len(names) > 1 and (not by_matrix or allocate == "uniform" or round_to is not None):
        conflict = "allocate='uniform'" if round_to is None else "round_to"
        conflict = conflict if by_matrix else f"method {method.name}"
        raise ValueError(f"{conflict} takes one granularity, got {granularity!r}")
    encoder, keys = prunable_structure(
        model, names[0], include_pooler=include_pooler, filter=filter, data=batches
    )
    shapes = {key: loaded_weight(model, key).shape for key in keys}
    tokens = sum(int(batch["attention_mask"].sum()) for batch in timed) // len(timed)
    costs = mask_costs(model.base_model, keys, tokens, tolerance, device)
    table = None
    if not kinds:
        targets = {
            name: {
                group.name: Target(group, Fraction(1, 2))
                for group in unit_groups(kind, size, shapes, None, round_to if kind == PANEL else None)
            }
            for name, (kind, size) in spelled.items()
        }
        table = TimeTable(targets, costs.of_mask, costs.activations)
    if table is not None and by_matrix and allocate != "uniform":
        return MatrixProgramme(model, batches, table, costs, saved, progress)
    if kinds and hasattr(method, "losses") and allocate != "uniform":
        groups = unit_groups(granularity, None, shapes, encoder)
        workload = Workload.of(timed)
        return UnitProgramme(model, batches, method, groups, workload, costs, saved, progress)
    kind, size = spelled[names[0]]
    units = {"granularity": kind, "block_size": size, "round_to": round_to if kind == PANEL else None}
    pruning: dict[str, Any] = {**units, "filter": filter, "include_pooler": include_pooler}
    return UniformProgramme(model.base_model, pruning, costs, table)
