"""Early-Bird: units ranked by coefficients that are trained with the model, drawn once that settles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsebert.bert import resolve
from sparsebert.pruning.gates import GateSite
from sparsebert.pruning.registry import Subject


@dataclass(frozen=True)
class Settled:
    """Whether a mask has stopped changing: the last ``window`` distances between consecutive masks are all
    below ``epsilon``. You et al. 2020, "Drawing Early-Bird Tickets", algorithm 1.

    Raises ValueError for an epsilon outside (0, 1] or a window below 1.
    """

    epsilon: float = 0.1
    window: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise ValueError(f"epsilon must be in (0, 1], not {self.epsilon}")
        if self.window < 1:
            raise ValueError(f"window must be at least 1, not {self.window}")

    def __call__(self, distances: Sequence[float]) -> bool:
        return len(distances) >= self.window and max(distances[-self.window :]) < self.epsilon


def mask_distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Units that one mask keeps and the other does not (Hamming distance), as a share of all."""
    differing = sum(int((mask != other[name]).sum()) for name, mask in one.items())
    return differing / sum(mask.numel() for mask in one.values())


def l1(coefficients: Sequence[Tensor], penalty: float) -> Tensor:
    """penalty * sum of abs(c) over all coefficients: the term that the loss gains."""
    return penalty * torch.stack([each.abs().sum() for each in coefficients]).sum()


def fold_(model: nn.Module, sites: Mapping[str, GateSite], coefficients: Mapping[str, Tensor]) -> None:
    """Multiply the matrices behind the gates by them, in place: the model then computes the same without."""
    with torch.no_grad():
        for name, site in sites.items():
            assert site.width is not None
            weight = torch.as_tensor(resolve(model, site.key).weight)
            weight.mul_(coefficients[name].repeat_interleave(site.width).to(weight.device, weight.dtype))


@dataclass(frozen=True)
class Coefficients:
    """A pruning method: score units by given coefficients, the value itself as in Chen et al. 2021,
    "EarlyBERT: Efficient BERT Training via Early-bird Lottery Tickets", or its size (``absolute``).

    ``of_units``: by the key of the first matrix of their units, [units].
    """

    name: ClassVar[str] = "early-bird"
    of_units: Mapping[str, Tensor] = field(repr=False)
    absolute: bool = False

    def scores(self, subject: Subject) -> dict[str, Tensor]:
        return {
            name: (each.abs() if self.absolute else each).float().view(subject.units[name])
            for name, each in self.of_units.items()
        }
