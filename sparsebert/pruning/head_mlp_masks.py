"""Whole heads and whole MLPs to keep: from and to tickets, and the subnetworks a good one is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import resolve, structure
from sparsebert.pruning.unit_groups import unit_groups
from sparsebert.tickets.provenance import describe_model
from sparsebert.tickets.ticket import Ticket


@dataclass(frozen=True, eq=False)
class UnitMasks:
    """``heads``: bool [layers, heads]; ``mlps``: bool [layers]; True = keep.

    Raises ValueError for other shapes or dtypes.
    """

    heads: Tensor
    mlps: Tensor

    def __post_init__(self) -> None:
        shapes = tuple(self.heads.shape), tuple(self.mlps.shape)
        if len(shapes[0]) != 2 or shapes[1] != shapes[0][:1]:
            raise ValueError(f"masks are [layers, heads] and [layers], not {shapes[0]} and {shapes[1]}")
        if self.heads.dtype != torch.bool or self.mlps.dtype != torch.bool:
            raise ValueError(f"masks must be torch.bool, not {self.heads.dtype} and {self.mlps.dtype}")

    @classmethod
    def whole(cls, model: nn.Module) -> UnitMasks:
        """All heads and MLPs of a BERT-like model."""
        found = structure(model)
        layers = len(found.heads)
        return cls(
            torch.ones(layers, found.num_heads, dtype=torch.bool), torch.ones(layers, dtype=torch.bool)
        )

    @classmethod
    def of(cls, ticket: Ticket, model: nn.Module) -> UnitMasks:
        """The heads and MLPs that a ticket keeps; those that it says nothing of are kept.

        Raises ValueError, naming the matrix, if it keeps parts of one, and if it is of another model.
        """
        ticket.check(model)
        found = structure(model)
        masks = {key: ticket.masks.get(key, torch.ones(_shape(model, key))) for key in found.linears}
        heads, mlps = (
            [
                group.whole({key: masks[key] for key in group.parts}).flatten()
                for group in unit_groups(kind, None, {key: mask.shape for key, mask in masks.items()}, found)
            ]
            for kind in ("head", "mlp")
        )
        return cls(torch.stack(heads), torch.cat(mlps))

    def ticket(self, model: nn.Module, metadata: Mapping[str, Any]) -> Ticket:
        """The ticket that keeps these heads, and removes the other MLPs whole, biases and all.

        ``metadata``: joins what the ticket says of itself. Raises ValueError if the model has other numbers
        of them, or if nothing is kept.
        """
        found = structure(model)
        wanted = len(found.heads), found.num_heads
        if tuple(self.heads.shape) != wanted:
            raise ValueError(
                f"masks of {tuple(self.heads.shape)} heads for a {type(model).__name__} of {wanted}"
            )
        if not self.heads.any() and not self.mlps.any():
            raise ValueError("the masks keep no head and no MLP")
        shapes = {key: _shape(model, key) for key in found.linears}
        masks: dict[str, Tensor] = {}
        for kind, kept in (("head", self.heads), ("mlp", self.mlps[:, None])):
            for group, units in zip(unit_groups(kind, None, shapes, found), kept, strict=True):
                masks |= group.expand(units.view(group.grid))
        removed = [
            key
            for keys, keep in zip(found.neurons, self.mlps.tolist(), strict=True)
            if not keep
            for key in keys
        ]
        told = {"granularity": "head+mlp", "model": describe_model(model), **metadata}
        return Ticket({key: masks[key] for key in found.linears}, removed=removed, metadata=told)

    def bad(self, seed: int = 0) -> UnitMasks:
        """As many heads and MLPs, of those that this one prunes; topped up from those it keeps where they are
        too few: the bad subnetworks of Prasanna et al. 2020."""
        generator = torch.Generator().manual_seed(seed)
        return UnitMasks(_others(self.heads, generator), _others(self.mlps, generator))

    def random(self, seed: int = 0, bernoulli: bool = False) -> UnitMasks:
        """As many heads and MLPs at random. ``bernoulli``: each with the probability of that share instead,
        so that their number varies, as in the code of Prasanna et al. 2020."""
        generator = torch.Generator().manual_seed(seed)
        draw = _bernoulli if bernoulli else _shuffled
        return UnitMasks(draw(self.heads, generator), draw(self.mlps, generator))


def _others(good: Tensor, generator: torch.Generator) -> Tensor:
    # A random order, in which all that are pruned come before all that are kept.
    order = (torch.rand(good.shape, generator=generator) + good).flatten().argsort()
    bad = torch.zeros(good.numel(), dtype=torch.bool)
    bad[order[: int(good.sum())]] = True
    return bad.view_as(good)


def _shuffled(good: Tensor, generator: torch.Generator) -> Tensor:
    return good.flatten()[torch.randperm(good.numel(), generator=generator)].view_as(good)


def _bernoulli(good: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(good.shape, generator=generator) < good.float().mean()


def _shape(model: nn.Module, key: str) -> torch.Size:
    return torch.as_tensor(resolve(model, key).weight).shape
