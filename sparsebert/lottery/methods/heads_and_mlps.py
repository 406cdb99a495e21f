"""What the methods have in common that search for heads and whole MLPs by their importance."""

from __future__ import annotations

from dataclasses import dataclass

from sparsebert.lottery.method import NeedsBatches, SearchingMethod


@dataclass(frozen=True)
class HeadsAndMlps(SearchingMethod, NeedsBatches):
    """Base of them: importance is summed over the batches.

    ``accumulate``: the gradients of masks are never cleared between them, as in the published code.
    """

    accumulate: bool = False

    @property
    def granularity(self) -> str:
        return "head+mlp"

    def require_units(self, granularity: str, scope: str) -> None:
        if granularity != "head+mlp":
            raise ValueError(
                f"method {self.name} chooses heads and MLPs: granularity head+mlp, not {granularity!r}"
            )
