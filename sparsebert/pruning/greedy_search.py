"""Search for the fewest heads and MLPs that keep most of a metric: Prasanna et al. 2020, algorithm 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsebert.pruning.head_mlp_masks import UnitMasks
from sparsebert.pruning.sparsity_schedule import require_share


@dataclass(frozen=True, eq=False)
class Scored:
    """What a model with some heads and MLPs masked is worth.

    ``metric``: higher is better. ``heads``: importance [layers, heads]. ``mlps``: importance [layers].
    """

    metric: float
    heads: Tensor
    mlps: Tensor


@dataclass(frozen=True)
class Search:
    """Mask the least important heads and MLPs, score anew, and go on as long as the metric holds.

    First ``share`` of all heads and one MLP in a step, then half as many heads, then one MLP at a time; each
    part ends with the first step below ``threshold`` times the whole model's metric, which is taken back.

    ``rescore``: after a step that is taken back, the masks that are left are scored again; the published code
    goes on with the scores of the masks it rejected.

    Raises ValueError for a threshold or share outside (0, 1).
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
        """The last masks above the threshold. ``score`` is asked of each that is tried, beginning with
        ``whole``, and ``say`` is told.

        Raises ValueError as :func:`least_metric` does.
        """
        found = score(whole)
        say(whole, found.metric)
        floor, masks = least_metric(found.metric, self.threshold), whole
        count = max(1, int(whole.heads.numel() * self.share))
        for heads, mlps in ((count, 1), (max(1, count // 2), 0), (0, 1)):
            while (tried := _fewer(masks, found, heads, mlps)) is not None:
                latest = score(tried)
                say(tried, latest.metric)
                if latest.metric < floor:
                    found = score(masks) if self.rescore else latest
                    break
                found, masks = latest, tried
        return masks


def least_metric(whole: float, threshold: float) -> float:
    """The metric that is to hold: a share of the whole model's.

    Raises ValueError if that is not positive: a share of it means nothing.
    """
    if not whole > 0:
        raise ValueError(
            f"the whole model's metric is {whole:g}: {threshold:.0%} of it is no threshold; "
            "is the model trained?"
        )
    return whole * threshold


def _fewer(masks: UnitMasks, found: Scored, heads: int, mlps: int) -> UnitMasks | None:
    """Without so many of the least important; None where there are none to take, or nothing would be left."""
    if (heads and not masks.heads.any()) or (mlps and not masks.mlps.any()):
        return None
    fewer = UnitMasks(
        _without_lowest(masks.heads, found.heads, heads), _without_lowest(masks.mlps, found.mlps, mlps)
    )
    return fewer if fewer.heads.any() or fewer.mlps.any() else None


def _without_lowest(kept: Tensor, importance: Tensor, count: int) -> Tensor:
    ranking = importance.masked_fill(~kept, torch.inf).flatten().argsort(stable=True)
    left = kept.flatten().clone()
    left[ranking[:count]] = False
    return left.view_as(kept)
