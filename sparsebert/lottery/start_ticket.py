"""The start ticket of a run: the ticket from which a method starts instead of the dense model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import weight_of
from sparsebert.linear_layers import prunable
from sparsebert.lottery.experiment import RunConfig
from sparsebert.lottery.method import Source
from sparsebert.pruning import prune
from sparsebert.pruning.granularity import parse_granularity
from sparsebert.pruning.prunable_structure import prunable_structure
from sparsebert.pruning.pruning_units import PruningUnits
from sparsebert.pruning.unit_groups import UnitGroup, competition_groups, unit_groups
from sparsebert.tickets.provenance import describe_model, weight_hash
from sparsebert.tickets.ticket import SAME_SPARSITY, Ticket

# Metadata of a ticket that stay true when its masks become the start of a run.
_KEPT_METADATA = ("method", "granularity", "block_size", "round_to", "scope", "seed")


def unit_groups_of(model: Any, units: PruningUnits) -> tuple[UnitGroup, ...]:
    """Return the units of a model that a run prunes."""
    structure, keys = prunable_structure(model, units.granularity, include_pooler=units.include_pooler)
    shapes = {key: weight_of(model, key).shape for key in keys}
    return unit_groups(units.granularity, units.block_size, shapes, structure, units.round_to)


def types_of(model: Any, units: PruningUnits) -> Mapping[str, str]:
    """Return the type of each matrix that a run prunes, by key."""
    structure, _ = prunable_structure(model, units.granularity, include_pooler=units.include_pooler)
    return structure.types


def start_ticket(ticket: Ticket, model: Any, units: PruningUnits) -> Ticket:
    """Return a start ticket over all matrices that a run prunes; matrices that it does not mask are whole.

    The last step of its history, "start", describes the user's ticket.

    Args:
        ticket: The user's ticket.
        model: The model, in any state: its weights are not read.
        units: Units of the run.

    Raises:
        ValueError: The ticket belongs to another model, prunes nothing, prunes matrices that the run keeps,
            or cuts through the units of the run.
    """
    groups = unit_groups_of(model, units)
    prunable_keys = prunable(model, units.include_pooler)
    keys = [key for key in prunable_keys if any(key in group.parts for group in groups)]
    for key, mask in ticket.masks.items():
        if key not in keys and not mask.all():
            raise ValueError(
                f"the start ticket prunes {key}, which is not among the matrices that the run prunes: choose "
                "another granularity, or include the pooler"
            )
    whole = Ticket(
        {
            key: ticket.masks.get(key, torch.ones(weight_of(model, key).shape, dtype=torch.bool))
            for key in keys
        },
        bias_masks=ticket.bias_masks,
        removed=ticket.removed,
        metadata={name: ticket.metadata[name] for name in _KEPT_METADATA if name in ticket.metadata},
    )
    whole.check(model)
    if not whole.sparsity:
        raise ValueError("the start ticket prunes nothing: omit it")
    for group in groups:
        _require_whole_units(whole, group)
    step = {
        "operation": "start",
        "method": ticket.metadata.get("method", "unknown method"),
        "sparsity": whole.sparsity,
        "masks_sha256": ticket.digest,
    }
    whole.metadata["history"] = [*ticket.metadata.get("history", []), step]
    return whole


def identify_(start: Ticket, ticket: Ticket, model: nn.Module) -> None:
    """Write into the metadata of a start ticket which weights the run starts from.

    "own_weights" of the step "start" is True if the method of the ticket changed the weights that stay and
    the model has these weights, False if it has others, and None if the method changed none.

    Args:
        start: The start ticket of a run.
        ticket: The user's ticket, of which it was made.
        model: The model with the initial weights of the run.
    """
    hashed, origin = weight_hash(model), ticket.metadata.get("model", {})
    start.metadata["model"] = {**describe_model(model), "weights": hashed}
    changed = "dense_weights" in origin
    start.metadata["history"][-1]["own_weights"] = origin["weights"] == hashed if changed else None


def summary(start: Ticket) -> dict[str, Any]:
    """Return the description of a start ticket for the records of a run."""
    return {name: value for name, value in start.metadata["history"][-1].items() if name != "operation"}


def weights_line(start: Ticket) -> str | None:
    """Return a line on the weights of a run, if the method of its start ticket has changed weights."""
    described = summary(start)
    if described["own_weights"] is None:
        return None
    if described["own_weights"]:
        return f"the run starts from the weights that {described['method']} has changed: the model has them"
    return (
        f"{described['method']} changed the weights that the start ticket keeps, but the model has others: "
        "the run takes the mask alone, and starts from and rewinds to the model's weights; to start from the "
        "changed ones, name their folder as the model"
    )


def require_start(start: Ticket, model: Any, config: RunConfig) -> None:
    """Raise ValueError unless the rounds of a run can go on from its start ticket.

    Args:
        start: As ``start_ticket`` returns it.
        model: The model.
        config: Configuration of the run with this start ticket.
    """
    target, units = config.target, config.units
    if not config.method.decides_sparsity and start.sparsity > target + SAME_SPARSITY:
        raise ValueError(
            f"the start ticket prunes {start.sparsity:.1%} of the weights, more than the run is to prune, "
            f"{float(target):.1%}: use a ticket that prunes less, or a higher sparsity"
        )
    pruned = [round_.sparsity for round_ in config.rounds if round_.source is Source.TRAINED]
    if pruned:
        types = types_of(model, units)
        for competing in competition_groups(unit_groups_of(model, units), units.scope, types):
            _require_room(start.masks, competing, min(pruned), units.scope)
    if parse_granularity(units.granularity, units.block_size, units.round_to).pattern:
        prune(model, "random", sparsity=target, ticket=start, **asdict(units))


def require_biases_kept(start: Ticket, method: str, *, removes_mlps: bool = False) -> None:
    """Raise ValueError if a start ticket prunes biases that a method would bring back.

    Args:
        start: The start ticket.
        method: Name of the method.
        removes_mlps: Whether the method prunes the biases of MLPs that it removes.
    """
    if start.bias_masks or (start.removed and not removes_mlps):
        raise ValueError(
            f"the start ticket prunes biases too, which method {method} keeps: use a ticket of weights alone"
        )


def _require_whole_units(start: Ticket, group: UnitGroup) -> None:
    """Raise ValueError if the ticket keeps parts of units, or panels that are not filled."""
    kept = group.whole({key: start.masks[key] for key in group.parts})
    if group.quantum == 1:
        return
    counts = kept.sum(1)
    if ((counts % group.quantum != 0) & (counts != kept.shape[1])).any():
        raise ValueError(
            f"the start ticket's panels of {group.name} do not keep multiples of {group.quantum} units: use "
            "a ticket of the same panels"
        )


def _require_room(masks: Mapping[str, Tensor], competing: list[UnitGroup], level: Any, scope: str) -> None:
    """Raise ValueError if competing units keep fewer weights than the first round after the start keeps."""
    total = sum(group.weights for group in competing)
    kept = sum(int(masks[key].sum()) for group in competing for key in group.parts)
    if kept < (1 - level) * total:
        raise ValueError(
            f"the start ticket keeps {kept / total:.1%} of {competing[0].name}, but a round of "
            f"{float(level):.1%} in scope {scope!r} keeps {1 - float(level):.1%}: use scope 'global', or a "
            "ticket that prunes the same share everywhere (prune --allocate uniform)"
        )
