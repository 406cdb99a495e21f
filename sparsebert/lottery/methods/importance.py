"""Tickets of the most important heads, neurons and MLPs of a trained model."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar

from sparsebert.lottery.method import NeedsBatches, Round, Source, register
from sparsebert.lottery.option_help import ACCUMULATE
from sparsebert.pruning import HeadImportance
from sparsebert.pruning.granularity import kinds_in


@register("importance")
@dataclass(frozen=True)
class Importance(NeedsBatches):
    """Pruning by head importance: the structured tickets of Prasanna et al. 2020, "When BERT Plays the
    Lottery, All Tickets Are Winning", with the scores of Michel et al. 2019, at the user's sparsity.

    Trains the dense model, keeps its most important heads, neurons or MLPs, rewinds and trains them.
    Granularity is head, neuron, mlp, "head+neuron" or "head+mlp". With ``scope="type"`` the same share of
    each kind is pruned; with "global" the kinds compete. :class:`sparsebert.pruning.HeadImportance` describes
    ``accumulate``, ``per_example``, ``per_token`` and ``keep_a_head``.

    From a start ticket, the first round trains that ticket instead of the dense model, and what it prunes
    stays pruned.
    """

    takes_start_ticket: ClassVar[bool] = True

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
                f"granularity of method {self.name} must be head, neuron, mlp, head+neuron or head+mlp, got "
                f"{granularity!r}"
            )

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        scores = HeadImportance(
            accumulate=self.accumulate,
            per_example=self.per_example,
            per_token=self.per_token,
            keep_a_head=self.keep_a_head,
        )
        return (Round(Source.DENSE), Round(Source.TRAINED, sparsity, scores))
