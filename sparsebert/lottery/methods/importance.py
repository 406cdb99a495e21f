"""Tickets of the most important heads, neurons and MLPs of a trained model."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from sparsebert.lottery.method import NeedsBatches, Round, Source, register
from sparsebert.lottery.option_help import ACCUMULATE
from sparsebert.pruning import HeadImportance
from sparsebert.pruning.granularity import kinds_in


@register("importance")
@dataclass(frozen=True)
class Importance(NeedsBatches):
    """Pruning by head importance: the structured tickets of Prasanna et al. 2020, "When BERT Plays the
    Lottery, All Tickets Are Winning", by the scores of Michel et al. 2019, at a sparsity of the user.

    Trains the dense model, keeps its most important heads, neurons or MLPs, rewinds and trains them.
    Granularity is head, neuron, mlp, "head+neuron" or "head+mlp"; ``scope="type"`` prunes the same share of
    each kind, "global" lets the kinds compete. :class:`sparsebert.pruning.HeadImportance` describes
    ``accumulate``, ``per_example``, ``per_token`` and ``keep_a_head``.
    """

    accumulate: bool = field(default=False, metadata=ACCUMULATE)
    per_example: bool = field(default=False, metadata={"help": "sum absolute gradients over examples"})
    per_token: bool = field(default=False, metadata={"help": "sum absolute gradients over tokens"})
    keep_a_head: bool = field(default=False, metadata={"help": "prune the best head of each layer last"})

    @property
    def granularity(self) -> str:
        return "head+neuron"

    def require_units(self, granularity: str, scope: str) -> None:
        if not kinds_in(granularity):
            raise ValueError(
                f"method {self.name} prunes heads, neurons and MLPs: granularity head, neuron, mlp, "
                f"head+neuron or head+mlp, got {granularity!r}"
            )

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        scores = HeadImportance(
            accumulate=self.accumulate,
            per_example=self.per_example,
            per_token=self.per_token,
            keep_a_head=self.keep_a_head,
        )
        return (Round(Source.DENSE), Round(Source.TRAINED, sparsity, scores))
