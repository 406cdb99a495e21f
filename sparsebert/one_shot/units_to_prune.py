"""The units of a model that a one-shot run prunes, and the ticket of those that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from sparsebert.bert import Structure
from sparsebert.linear_layers import Filter
from sparsebert.one_shot.calibration import describe_batches
from sparsebert.pruning.density import Density, Number, as_sparsity, parse_sparsity
from sparsebert.pruning.granularity import PANEL, kinds_in, parse_granularity, spelled_out
from sparsebert.pruning.prunable_structure import prunable_structure
from sparsebert.pruning.read_matrices import loaded_weight
from sparsebert.pruning.unit_groups import UnitGroup, unit_groups
from sparsebert.tickets.provenance import describe_model, weight_hash
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels.errors import unknown


@dataclass(frozen=True)
class UnitsToPrune:
    """The units of a model, and the share of them that stays.

    Attributes:
        granularity: Name of the granularity, without its block size.
        block_size: (out, in) of blocks and panels.
        round_to: Columns of which each panel keeps a multiple.
        pattern: (n, m) of n:m patterns.
        density: Share of the weights to keep, or one for each kind of unit.
        structure: The model's structure.
        keys: The prunable matrices.
        groups: The units.
    """

    granularity: str
    block_size: tuple[int, int] | None
    round_to: int | None
    pattern: tuple[int, int] | None
    density: Density
    structure: Structure
    keys: tuple[str, ...]
    groups: tuple[UnitGroup, ...]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        batches: Sequence[Mapping[str, Any]],
        sparsity: Number | Mapping[str, Number] | None,
        granularity: str,
        block_size: tuple[int, int] | None = None,
        round_to: int | None = None,
        *,
        include_pooler: bool = False,
        filter: Filter | None = None,
    ) -> UnitsToPrune:
        """Cut a model into units; see :func:`sparsebert.prune_` for the arguments.

        Raises:
            ValueError: The granularity, the sparsity or the filter does not fit the model.
        """
        granularity, block_size = spelled_out(granularity, block_size)
        units = parse_granularity(granularity, block_size, round_to)
        if granularity == PANEL and block_size is not None:
            round_to = units.quantum * block_size[1]
        density = parse_sparsity(sparsity, units)
        structure, keys = prunable_structure(
            model, granularity, include_pooler=include_pooler, filter=filter, data=batches
        )
        shapes = {key: loaded_weight(model, key).shape for key in keys}
        groups = unit_groups(granularity, block_size, shapes, structure, round_to)
        return cls(granularity, block_size, round_to, units.pattern, density, structure, keys, groups)

    def recut(self, granularities: Mapping[str, str]) -> UnitsToPrune:
        """Return the units with some matrices cut at another granularity.

        Args:
            granularities: Granularity by key, such as "4x1".

        Raises:
            ValueError: There is no such matrix, or no such granularity of single matrices.
        """
        shapes = {each.name: each.shapes[each.name] for each in self.groups if len(each.parts) == 1}
        if strangers := granularities.keys() - shapes.keys():
            raise unknown("matrix in granularities", min(strangers), shapes)
        cut: dict[str, UnitGroup] = {}
        for key, granularity in granularities.items():
            name, block_size = spelled_out(granularity)
            if kinds_in(name) or parse_granularity(name, block_size).pattern:
                raise ValueError(
                    f"granularity of {key} must be element, block, panel, row or column, got {granularity!r}"
                )
            (cut[key],) = unit_groups(name, block_size, {key: shapes[key]}, None)
        groups = tuple(cut.get(group.name, group) for group in self.groups)
        names = {granularities.get(group.name, self.granularity) for group in groups}
        return replace(self, granularity=",".join(sorted(names)), groups=groups)

    @property
    def one_density(self) -> Fraction:
        """The density. Raises ValueError if kinds of units have their own."""
        if not isinstance(self.density, Fraction):
            raise ValueError(f"sparsity must be one number for all units, got {as_sparsity(self.density)}")
        return self.density

    def describe(self, method: Any, scope: str, batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Describe the pruning for the ticket's metadata."""
        step = {
            "method": method.name,
            "options": dict(vars(method)),
            "sparsity": as_sparsity(self.density),
            "granularity": self.granularity,
            "scope": scope,
            "calibration": describe_batches(batches),
        }
        step |= {"block_size": list(self.block_size)} if self.block_size else {}
        return step | ({"round_to": self.round_to} if self.round_to else {})

    def ticket(
        self,
        model: nn.Module,
        masks: Mapping[str, Tensor],
        step: Mapping[str, Any],
        before: str,
        *,
        compensates: bool = True,
        **metadata: Any,
    ) -> Ticket:
        """Return the ticket of a pruned model.

        Args:
            model: The model.
            masks: Masks by key.
            step: What was done.
            before: Hash of the dense weights.
            compensates: Whether the weights that stay changed.
            metadata: More entries of the ticket's metadata.
        """
        origin = {**describe_model(model), "weights": before}
        if compensates:
            origin |= {"weights": weight_hash(model), "dense_weights": before}
        history = [{"operation": "prune_", **step}]
        return Ticket(
            {key: masks[key] for key in self.keys if key in masks},
            metadata={**step, **metadata, "model": origin, "history": history},
        )
