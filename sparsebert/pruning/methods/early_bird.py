"""Early-Bird: rank units by coefficients trained with the model; draw the ticket once the ranking settles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsebert.bert import resolve
from sparsebert.pruning.gates import GateSite
from sparsebert.pruning.registry import ScoringContext


@dataclass(frozen=True)
class Settled:
    """Decide whether a mask has stopped changing: You et al. 2020, "Drawing Early-Bird Tickets", algorithm 1.

    A mask has settled if the last ``window`` distances between consecutive masks are all below ``epsilon``.

    Raises:
        ValueError: ``epsilon`` is outside (0, 1] or ``window`` below 1.
    """

    epsilon: float = 0.1
    window: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise ValueError(f"epsilon must be in (0, 1], got {self.epsilon}")
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")

    def __call__(self, distances: Sequence[float]) -> bool:
        return len(distances) >= self.window and max(distances[-self.window :]) < self.epsilon


def mask_distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the share of units that only one of two masks keeps: the normalised Hamming distance."""
    differing = sum(int((mask != other[name]).sum()) for name, mask in one.items())
    return differing / sum(mask.numel() for mask in one.values())


def l1(coefficients: Sequence[Tensor], penalty: float) -> Tensor:
    """Return the penalty term of the loss: penalty * sum of abs(c) over all coefficients."""
    return penalty * torch.stack([each.abs().sum() for each in coefficients]).sum()


def fold_(model: nn.Module, sites: Mapping[str, GateSite], coefficients: Mapping[str, Tensor]) -> None:
    """Multiply the matrices behind the gates by the coefficients, in place, to replace the gates."""
    with torch.no_grad():
        for name, site in sites.items():
            assert site.width is not None
            weight = torch.as_tensor(resolve(model, site.key).weight)
            weight.mul_(coefficients[name].repeat_interleave(site.width).to(weight.device, weight.dtype))


@dataclass(frozen=True)
class Coefficients:
    """Score units by trained coefficients.

    Chen et al. 2021, "EarlyBERT: Efficient BERT Training via Early-bird Lottery Tickets".

    Attributes:
        of_units: Key of the first matrix of the units -> coefficients [units].
        absolute: Score the absolute value instead of the value.
    """

    name: ClassVar[str] = "early-bird"
    of_units: Mapping[str, Tensor] = field(repr=False)
    absolute: bool = False

    def scores(self, context: ScoringContext) -> dict[str, Tensor]:
        return {
            name: (each.abs() if self.absolute else each).float().view(context.units[name])
            for name, each in self.of_units.items()
        }
