"""What the methods have in common that search for heads and whole MLPs by their importance."""

from __future__ import annotations

from dataclasses import dataclass

from sparsebert.lottery.registry import SearchingMethod


@dataclass(frozen=True)
class HeadsAndMlps(SearchingMethod):
    """Base of them.

    ``batches``: of the training data, that importance is summed over. ``accumulate``: the gradients of masks
    are never cleared between them, as in the published code.
    """

    batches: int = 32
    accumulate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batches < 1:
            raise ValueError(f"batches must be at least 1, not {self.batches}")

    @property
    def granularity(self) -> str:
        return "head+mlp"

    def require_units(self, granularity: str, scope: str) -> None:
        if granularity != "head+mlp":
            raise ValueError(
                f"method {self.name} chooses heads and MLPs: granularity head+mlp, not {granularity!r}"
            )
