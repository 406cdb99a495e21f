"""Super tickets: one-shot tickets on a grid of sparsities are trained, and the best one is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsebert.atomic import replacing
from sparsebert.bert import structure
from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.method import Round, SearchingMethod, Source, register, require_at_least_one
from sparsebert.lottery.methods.head_mlp_search import head_mlp_sites, require_heads_and_mlps
from sparsebert.lottery.option_help import ACCUMULATE, BATCHES
from sparsebert.pruning import HeadImportance, Share, levels
from sparsebert.pruning.head_mlp_masks import UnitMasks
from sparsebert.pruning.methods.head_importance import gate_importance
from sparsebert.pruning.prune import prune
from sparsebert.pruning.registry import ScoringContext
from sparsebert.tickets.ticket import Ticket


class Grid(StrEnum):
    """The numbers of heads and MLPs that the tickets of the grid prune.

    ``EVEN``: the same share of the heads and of the MLPs, to the nearest unit. ``RELEASED``: the counts of
    the published code (:func:`released_counts`).
    """

    EVEN = "even"
    RELEASED = "released"


# Shares of the published grid's steps: a tenth of the heads of 12 layers.
_STEPS = {Grid.EVEN: 0.05, Grid.RELEASED: 0.1}


def released_counts(share: Fraction, layers: int, heads: int) -> tuple[int, int]:
    """Return the heads and the MLPs that the published code prunes at a share of the heads.

    The code rounds the number of heads down and keeps a head in each layer. Its scripts prune one MLP with
    each tenth of the heads of 12 layers (14 and 1, 28 and 2, ... 115 and 8), and with each twentieth of the
    heads of 24 layers (19 and 1, 38 and 2, ... 153 and 8): 5/6 of the share of the heads, rounded down.

    Args:
        share: Share of the heads, in [0, 1).
        layers: Number of layers.
        heads: Number of heads of a layer.
    """
    most = layers * (heads - 1)
    return min(math.floor(share * layers * heads), most), math.floor(share * layers * Fraction(5, 6))


@register("super-tickets")
@dataclass(frozen=True)
class SuperTickets(SearchingMethod):
    """Super tickets (Liang et al. 2021, "Super Tickets in Pre-Trained Language Models: From Model Compression
    to Improving Generalization").

    Trains the dense model and scores its heads and MLPs once. For each sparsity of a grid it rewinds the
    model and trains the most important heads and MLPs. The ticket with the best validation metric becomes the
    run's ticket. The metric of a ticket selected on validation data is optimistic there: report results on
    other data.

    Granularity is "head+mlp"; the best head of each layer is pruned last.
    :class:`sparsebert.pruning.HeadImportance` computes the scores, token by token.

    Attributes:
        batches: Batches of training data to compute scores on, at most all; the published code takes all.
        accumulate: Never clear the gradients of the masks between batches, as in the published code. Of B
            batches, the first then has the weight B, the second B - 1, and the last 1.
        equal_batches: Every batch has the same weight, whatever its number of examples, as in the published
            code, which averages the loss of each batch.
        step: Distance of the shares in the grid, which ends at the sparsity of the run. None for 0.05, and
            for 0.1 with the released grid.
        grid: See :class:`Grid`. In the released grid, the run's sparsity and ``step`` are shares of the
            heads: 0.8 is the last ticket of the published scripts.
    """

    batches: int = field(default=32, metadata=BATCHES)
    accumulate: bool = field(default=False, metadata=ACCUMULATE)
    step: float | None = field(
        default=None,
        metadata={
            "help": "share of the heads and MLPs between two tickets of the grid; if omitted, 0.05, or 0.1 "
            "with --grid released"
        },
    )
    grid: Grid = field(
        default=Grid.EVEN,
        metadata={
            "help": "heads and MLPs to prune: even (the same share of both) or released (the numbers of the "
            "published code; --sparsity and --step are shares of the heads)"
        },
    )
    equal_batches: bool = field(
        default=False,
        metadata={"help": "count every batch alike, even a short last one, as published"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one(self, "batches")
        if self.step is None:
            object.__setattr__(self, "step", _STEPS[self.grid])

    @property
    def granularity(self) -> str:
        return "head+mlp"

    @property
    def scope(self) -> str:
        return "type"

    def require_units(self, granularity: str, scope: str) -> None:
        require_heads_and_mlps(self.name, granularity)
        if self.grid is Grid.RELEASED and scope != "type":
            raise ValueError(
                f"the released grid counts heads and MLPs apart: scope must be type, got {scope!r}"
            )

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        assert self.step is not None
        grid = levels(sparsity, self.step, Share.ORIGINAL)
        of_heads = self.grid is Grid.RELEASED
        tickets = (
            Round(Source.SEARCH, each, title=f"without {float(each):.1%} of the heads" if of_heads else "")
            for each in grid
        )
        return (Round(Source.DENSE), *tickets)

    def require(self, experiment: Experiment, config: RunConfig) -> None:
        """Raise ValueError if the first ticket of the released grid would prune nothing."""
        first = config.rounds[1:2]
        if self.grid is Grid.EVEN or not first:
            return
        encoder = structure(experiment.model)
        layers, heads = len(encoder.heads), encoder.num_heads
        if not any(released_counts(first[0].sparsity, layers, heads)):
            raise ValueError(
                f"the first ticket of the grid prunes no unit: {float(first[0].sparsity):g} is less than one "
                f"of {layers * heads} heads; choose a larger step or sparsity"
            )

    def find_ticket(self, experiment: Experiment, config: RunConfig, folder: Path, round_: Round) -> Ticket:
        """Return the ticket of one sparsity. ``round-00/importance.safetensors`` holds the scores.

        ``search`` in the metadata of a ticket of the released grid holds its numbers of heads and MLPs.
        """
        model, settings = experiment.model, config.training
        path = folder.parent / "round-00" / "importance.safetensors"
        if not path.exists():
            batches = islice(experiment.batches(settings.batch_size, settings.seed), self.batches)
            scores = gate_importance(
                model,
                head_mlp_sites(model),
                batches,
                accumulate=self.accumulate,
                per_token=True,
                equal_batches=self.equal_batches,
            )
            with replacing(path) as unfinished:
                save_file(scores, unfinished)
        method = _StoredImportance(keep_a_head=True, stored=load_file(path))
        shares = self.shares(model, round_.sparsity)
        ticket = prune(model, method, sparsity=shares, seed=settings.seed, **asdict(config.units))
        if self.grid is Grid.RELEASED:
            ticket.metadata["search"] = _counted(ticket, model)
        return ticket

    def shares(self, model: nn.Module, sparsity: Fraction) -> Fraction | dict[str, Fraction]:
        if self.grid is Grid.EVEN:
            return sparsity
        encoder = structure(model)
        layers, heads = len(encoder.heads), encoder.num_heads
        pruned_heads, pruned_mlps = released_counts(sparsity, layers, heads)
        return {"head": Fraction(pruned_heads, layers * heads), "mlp": Fraction(pruned_mlps, layers)}

    def best_round(self, rows: Sequence[Mapping[str, Any]], metric: str | None) -> int:
        """Return the sparse round with the highest metric; on a tie, the sparsest."""
        candidates = range(min(1, len(rows) - 1), len(rows))
        return max(candidates, key=lambda number: (_value(rows[number]["metrics"], metric), number))


@dataclass(frozen=True)
class _StoredImportance(HeadImportance):
    """Head importance with stored scores."""

    stored: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def scores(self, context: ScoringContext) -> dict[str, Tensor]:
        return super().scores(replace(context, importance=lambda **options: self.stored))


def _counted(ticket: Ticket, model: nn.Module) -> dict[str, int]:
    """Return the pruned heads and MLPs of a ticket, and their numbers in the model."""
    kept = UnitMasks.of(ticket, model)
    kinds = {"heads": kept.heads, "mlps": kept.mlps}
    pruned = {f"pruned_{kind}": int((~mask).sum()) for kind, mask in kinds.items()}
    return pruned | {kind: mask.numel() for kind, mask in kinds.items()}


def _value(metrics: Mapping[str, float], metric: str | None) -> float:
    return metrics[metric] if metric is not None else next(iter(metrics.values()))
