"""Heads, neurons and MLPs by their importance to a model that is trained first."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from sparsebert.lottery.method import NeedsBatches, Round, Source, register
from sparsebert.pruning import HeadImportance
from sparsebert.pruning.granularity import kinds_in


@register("importance")
@dataclass(frozen=True)
class Importance(NeedsBatches):
    """Train the dense model, keep its most important heads, neurons or MLPs, rewind and train those: the
    structured tickets of Prasanna et al. 2020, "When BERT Plays the Lottery, All Tickets Are Winning", by the
    scores of Michel et al. 2019, at a given sparsity.

    For granularities head, neuron, mlp, "head+neuron" and "head+mlp"; ``scope="type"`` prunes the same share
    of the heads and of the neurons, "global" lets them compete. The scores are taken on ``batches`` batches
    of the training data. ``accumulate``, ``per_example``, ``per_token`` and ``keep_a_head`` as
    :class:`sparsebert.pruning.HeadImportance` has them.
    """

    accumulate: bool = False
    per_example: bool = False
    per_token: bool = False
    keep_a_head: bool = False

    @property
    def granularity(self) -> str:
        return "head+neuron"

    def require_units(self, granularity: str, scope: str) -> None:
        if not kinds_in(granularity):
            raise ValueError(
                f"method {self.name} chooses among heads, neurons and MLPs: granularity head, neuron, mlp, "
                f"head+neuron or head+mlp, not {granularity!r}"
            )

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        scores = HeadImportance(
            accumulate=self.accumulate,
            per_example=self.per_example,
            per_token=self.per_token,
            keep_a_head=self.keep_a_head,
        )
        return (Round(Source.DENSE), Round(Source.TRAINED, sparsity, scores))
