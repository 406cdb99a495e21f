"""Baselines of a ticket: the same counts at random positions, or the ticket's positions with other weights.

They show whether a ticket's quality comes from its positions, the pre-trained weights or both (Chen et al.
2020, section 3 and table 2).
"""

from __future__ import annotations

from collections import defaultdict
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import resolve, structure
from sparsebert.pruning.granularity import parse_granularity
from sparsebert.pruning.prunable_structure import structure_of
from sparsebert.pruning.unit_groups import unit_groups
from sparsebert.tickets.ticket import Ticket


class Within(StrEnum):
    """The scope of a permutation: the entries of each matrix, or whole layers."""

    MATRIX = "matrix"
    LAYERS = "layers"


def random_like(ticket: Ticket, seed: int = 0, model: nn.Module | None = None) -> Ticket:
    """Return a random ticket with as many units in each matrix as ``ticket`` keeps: layerwise random pruning.

    The counts are exact: units at an edge change places only with units of equal size, n:m patterns stay n:m,
    and panels exchange their numbers of units only with panels of as many rows.

    Args:
        ticket: The ticket; its metadata names the units (elements, blocks, rows, ...).
        seed: Seed of the permutations.
        model: The ticket's model, needed for neurons and heads, which span several matrices.

    Raises:
        ValueError: The ticket prunes biases or whole modules, or parts of its own units.
    """
    if ticket.bias_masks or ticket.removed:
        raise ValueError("a ticket that prunes biases or whole modules has no layerwise random baseline")
    name = ticket.metadata.get("granularity", "element")
    size = ticket.metadata.get("block_size")
    round_to = ticket.metadata.get("round_to")
    pattern = parse_granularity(name, tuple(size) if size else None, round_to).pattern
    generator = torch.Generator().manual_seed(seed)
    masks: dict[str, Tensor] = {}
    if pattern:
        masks = {key: _patterns(mask, pattern, generator, key) for key, mask in ticket.masks.items()}
    else:
        shapes = {key: mask.shape for key, mask in ticket.masks.items()}
        encoder = None if model is None else structure_of(model, tuple(shapes), name)
        for group in unit_groups(name, tuple(size) if size else None, shapes, encoder, round_to):
            kept = group.whole(ticket.masks)
            shuffle = _shuffled if group.quantum == 1 else _shuffled_panels
            masks |= group.expand(shuffle(kept, group.sizes, generator))
    step = {"operation": "random-like", "method": "random", "seed": seed, "sparsity": ticket.sparsity}
    units: dict[str, Any] = {
        field: ticket.metadata[field]
        for field in ("granularity", "block_size", "round_to", "model", "encoder_sparsity")
        if field in ticket.metadata
    }
    return Ticket(
        {key: masks[key] for key in ticket.masks},
        metadata={**units, "method": "random", "seed": seed, "history": [step]},
    )


def reinitialise_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Initialise every weight again, embeddings too, as the model's class does; return the model.

    This is the random re-initialisation of Chen et al. 2020. Raises ValueError for a model without a
    ``config``.
    """
    config = getattr(model, "config", None)
    if config is None:
        raise ValueError(f"{type(model).__name__} has no config to build a new model from")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model)(config)
    model.load_state_dict(fresh.state_dict())
    return model


def shuffle_weights_(model: nn.Module, seed: int = 0, within: Within = Within.MATRIX) -> nn.Module:
    """Permute the encoder's pre-trained weights, which preserves only their distribution; return the model.

    ``MATRIX`` permutes the entries of each matrix; ``LAYERS`` permutes the layers' sets of six matrices, as
    the released code of Chen et al. 2020 does. Biases, LayerNorms and embeddings do not change.
    """
    encoder = structure(model)
    weights = {key: _weight(model, key) for key in encoder.linears}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if within is Within.MATRIX:
            for weight in weights.values():
                order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
                weight.copy_(weight.flatten()[order].view_as(weight))
            return model
        of_type: dict[str, list[Tensor]] = defaultdict(list)
        for key, weight in weights.items():
            of_type[encoder.types[key]].append(weight)
        layers = len(next(iter(of_type.values())))
        order = torch.randperm(layers, generator=generator)
        for matrices in of_type.values():
            sources = [matrices[int(i)].clone() for i in order]
            for target, source in zip(matrices, sources, strict=True):
                target.copy_(source)
    return model


def _shuffled(kept: Tensor, sizes: Tensor | int, generator: torch.Generator) -> Tensor:
    """Permute a mask over units among the units of equal size."""
    of_size = torch.as_tensor(sizes).expand(kept.shape).flatten()
    result = torch.zeros_like(kept).flatten()
    for size in of_size.unique():
        places = (of_size == size).nonzero().flatten()
        values = kept.flatten()[places]
        result[places] = values[torch.randperm(len(places), generator=generator)]
    return result.view(kept.shape)


def _shuffled_panels(kept: Tensor, sizes: Tensor | int, generator: torch.Generator) -> Tensor:
    """Permute the panels (rows) of equal size, then the units of equal size in each panel."""
    of_size = torch.as_tensor(sizes).expand(kept.shape)
    panels = torch.arange(len(kept))
    for size in of_size[:, 0].unique():
        places = (of_size[:, 0] == size).nonzero().flatten()
        panels[places] = places[torch.randperm(len(places), generator=generator)]
    rows = zip(kept[panels], of_size, strict=True)
    return torch.stack([_shuffled(row, row_sizes, generator) for row, row_sizes in rows])


def _patterns(mask: Tensor, pattern: tuple[int, int], generator: torch.Generator, key: str) -> Tensor:
    n, m = pattern
    groups = mask.view(-1, m)
    if not (groups.sum(1) == n).all():
        raise ValueError(f"{key} does not keep {n} of every {m} weights, as granularity '{n}:{m}' says")
    order = torch.rand(groups.shape, generator=generator).argsort(1)
    return groups.gather(1, order).view_as(mask)


def _weight(model: nn.Module, key: str) -> Tensor:
    weight = resolve(model, key)._parameters.get("weight")
    if weight is None:
        raise ValueError(f"{key} of {type(model).__name__} has no plain weight parameter to shuffle")
    return weight
