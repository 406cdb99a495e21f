"""Greedy search for the fewest heads and MLPs that keep a metric: Prasanna et al. 2020, algorithm 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsebert.pruning.head_mlp_masks import UnitMasks
from sparsebert.pruning.sparsity_schedule import require_share


@dataclass(frozen=True, eq=False)
class Scored:
    """The score of a model with some heads and MLPs masked.

    Attributes:
        metric: Higher is better.
        heads: Importance, [layers, heads].
        mlps: Importance, [layers].
    """

    metric: float
    heads: Tensor
    mlps: Tensor


@dataclass(frozen=True)
class Search:
    """Mask the least important heads and MLPs, score again, and continue while the metric holds.

    A step of the first phase masks ``share`` of all heads and one MLP; a step of the second phase masks half
    as many heads; a step of the third phase masks one MLP. Each phase ends with the first step below
    ``threshold`` times the whole model's metric, and that step is undone.

    Attributes:
        threshold: Share of the whole model's metric to keep, in (0, 1).
        share: Share of all heads to mask in a step of the first phase, in (0, 1).
        rescore: Score the restored masks again after an undone step; the published code continues with the
            scores of the masks that it rejected.

    Raises:
        ValueError: ``threshold`` or ``share`` is outside (0, 1).
    """

    threshold: float = 0.9
    share: float = 0.1
    rescore: bool = True

    def __post_init__(self) -> None:
        require_share(self, "threshold", "share")

    def __call__(
        self,
        whole: UnitMasks,
        score: Callable[[UnitMasks], Scored],
        say: Callable[[UnitMasks, float], None] = lambda masks, metric: None,
    ) -> UnitMasks:
        """Return the last masks above the threshold.

        Args:
            whole: The masks to start from.
            score: Scores masks; called for ``whole`` and for each step.
            say: Called with the masks and metric of ``whole`` and of each step.

        Raises:
            ValueError: See :func:`least_metric`.
        """
        current = score(whole)
        say(whole, current.metric)
        floor, masks = least_metric(current.metric, self.threshold), whole
        count = max(1, int(whole.heads.numel() * self.share))
        for heads, mlps in ((count, 1), (max(1, count // 2), 0), (0, 1)):
            while (candidate := _fewer(masks, current, heads, mlps)) is not None:
                latest = score(candidate)
                say(candidate, latest.metric)
                if latest.metric < floor:
                    current = score(masks) if self.rescore else latest
                    break
                current, masks = latest, candidate
        return masks


def least_metric(whole: float, threshold: float) -> float:
    """Return the lowest acceptable metric: ``threshold`` times the whole model's.

    Raises ValueError if the whole model's metric is not positive: a share of it is then meaningless.
    """
    if not whole > 0:
        raise ValueError(
            f"the whole model's metric is {whole:g}, and {threshold:.0%} of it is not a usable threshold: "
            "is the model trained?"
        )
    return whole * threshold


def _fewer(masks: UnitMasks, scored: Scored, heads: int, mlps: int) -> UnitMasks | None:
    """Return the masks without the least important units; None if no unit remains to mask or to keep."""
    if (heads and not masks.heads.any()) or (mlps and not masks.mlps.any()):
        return None
    fewer = UnitMasks(
        _without_lowest(masks.heads, scored.heads, heads), _without_lowest(masks.mlps, scored.mlps, mlps)
    )
    return fewer if fewer.heads.any() or fewer.mlps.any() else None


def _without_lowest(kept: Tensor, importance: Tensor, count: int) -> Tensor:
    ranking = importance.masked_fill(~kept, torch.inf).flatten().argsort(stable=True)
    fewer = kept.flatten().clone()
    fewer[ranking[:count]] = False
    return fewer.view_as(kept)
