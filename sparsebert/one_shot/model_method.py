"""Methods that prune a whole model at once, because units of different matrices compete by one loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Protocol

from torch import nn

from sparsebert.one_shot.layer_problem import PrunedMatrix
from sparsebert.pruning.unit_groups import UnitGroup

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
        compensates: Whether the weights that stay change.
    """

    name: ClassVar[str]
    compensates: ClassVar[bool]

    def prune_model(
        self, model: nn.Module, competitions: Sequence[Competition], batches: Any
    ) -> dict[str, PrunedMatrix]:
        """Return key -> pruned matrix of each matrix with units that compete; the model is only read.

        Args:
            model: The model.
            competitions: The units to choose from.
            batches: Keyword arguments for the model, with labels.
        """
        ...
