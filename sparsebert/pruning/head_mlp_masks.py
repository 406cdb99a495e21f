"""Masks over whole heads and MLPs: conversion from and to tickets, and subnetworks for comparison."""

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
    """The heads and MLPs to keep.

    Attributes:
        heads: bool [layers, heads], True = keep.
        mlps: bool [layers], True = keep.

    Raises:
        ValueError: A mask has another shape or dtype.
    """

    heads: Tensor
    mlps: Tensor

    def __post_init__(self) -> None:
        shapes = tuple(self.heads.shape), tuple(self.mlps.shape)
        if len(shapes[0]) != 2 or shapes[1] != shapes[0][:1]:
            raise ValueError(f"masks must be [layers, heads] and [layers], got {shapes[0]} and {shapes[1]}")
        if self.heads.dtype != torch.bool or self.mlps.dtype != torch.bool:
            raise ValueError(f"masks must be torch.bool, got {self.heads.dtype} and {self.mlps.dtype}")

    @classmethod
    def whole(cls, model: nn.Module) -> UnitMasks:
        """Return the masks that keep all heads and MLPs of a BERT-like model."""
        encoder = structure(model)
        layers = len(encoder.heads)
        return cls(
            torch.ones(layers, encoder.num_heads, dtype=torch.bool), torch.ones(layers, dtype=torch.bool)
        )

    @classmethod
    def of(cls, ticket: Ticket, model: nn.Module) -> UnitMasks:
        """Return the heads and MLPs that a ticket keeps; units without a mask are kept.

        Raises ValueError if the ticket keeps part of a unit, naming its matrix, or belongs to another model.
        """
        ticket.check(model)
        encoder = structure(model)
        masks = {key: ticket.masks.get(key, torch.ones(_shape(model, key))) for key in encoder.linears}
        shapes = {key: mask.shape for key, mask in masks.items()}
        heads, mlps = (
            [
                group.whole({key: masks[key] for key in group.parts}).flatten()
                for group in unit_groups(kind, None, shapes, encoder)
            ]
            for kind in ("head", "mlp")
        )
        return cls(torch.stack(heads), torch.cat(mlps))

    def ticket(self, model: nn.Module, metadata: Mapping[str, Any]) -> Ticket:
        """Return the ticket that keeps these heads and MLPs, and removes the other MLPs with their biases.

        Args:
            model: The model of the ticket.
            metadata: Added to the ticket's metadata.

        Raises:
            ValueError: The model has other numbers of layers or heads, or nothing is kept.
        """
        encoder = structure(model)
        expected = len(encoder.heads), encoder.num_heads
        if tuple(self.heads.shape) != expected:
            raise ValueError(
                f"{type(model).__name__} has [layers, heads] {expected}, "
                f"the masks have {tuple(self.heads.shape)}"
            )
        if not self.heads.any() and not self.mlps.any():
            raise ValueError("the masks keep no head and no MLP: keep at least one")
        shapes = {key: _shape(model, key) for key in encoder.linears}
        masks: dict[str, Tensor] = {}
        for kind, kept in (("head", self.heads), ("mlp", self.mlps[:, None])):
            for group, units in zip(unit_groups(kind, None, shapes, encoder), kept, strict=True):
                masks |= group.expand(units.view(group.grid))
        removed_modules = [
            key
            for keys, keep in zip(encoder.neurons, self.mlps.tolist(), strict=True)
            if not keep
            for key in keys
        ]
        provenance = {"granularity": "head+mlp", "model": describe_model(model), **metadata}
        return Ticket(
            {key: masks[key] for key in encoder.linears}, removed=removed_modules, metadata=provenance
        )

    def bad(self, seed: int = 0) -> UnitMasks:
        """Return masks that keep as many units, chosen among the pruned ones first, then among the kept ones.

        These are the bad subnetworks of Prasanna et al. 2020.
        """
        generator = torch.Generator().manual_seed(seed)
        return UnitMasks(_others(self.heads, generator), _others(self.mlps, generator))

    def random(self, seed: int = 0, bernoulli: bool = False) -> UnitMasks:
        """Return masks that keep the same number of heads and MLPs at random.

        With ``bernoulli``, each unit is kept with a probability equal to the kept share, so that the number
        varies, as in the code of Prasanna et al. 2020.
        """
        generator = torch.Generator().manual_seed(seed)
        draw = _bernoulli if bernoulli else _shuffled
        return UnitMasks(draw(self.heads, generator), draw(self.mlps, generator))


def _others(good: Tensor, generator: torch.Generator) -> Tensor:
    # A random order in which all pruned units come before all kept ones.
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
