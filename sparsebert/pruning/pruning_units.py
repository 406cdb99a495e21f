"""The units of a pruning run: their granularity and their competition."""

from __future__ import annotations

from dataclasses import dataclass

from sparsebert.pruning.granularity import PANEL, default_round_to, spelled_out


@dataclass(frozen=True)
class PruningUnits:
    """The arguments of :func:`sparsebert.prune` that describe units and their competition.

    Raises:
        ValueError: The granularity is unknown, or the block size does not belong to it.
    """

    granularity: str = "element"
    block_size: tuple[int, int] | None = None
    scope: str = "global"
    pooling: str = "mean"
    include_pooler: bool = False
    round_to: int | None = None

    def __post_init__(self) -> None:
        name, block_size = spelled_out(self.granularity, self.block_size)
        object.__setattr__(self, "granularity", name)
        object.__setattr__(self, "block_size", block_size)
        if name == PANEL and block_size is not None and self.round_to is None:
            object.__setattr__(self, "round_to", default_round_to(block_size[1]))
