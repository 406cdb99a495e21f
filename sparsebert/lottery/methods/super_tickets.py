"""Super tickets: one-shot tickets on a grid of sparsities are trained, and the best one is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsebert.atomic import replacing
from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.method import Round, SearchingMethod, Source, register, require_at_least_one
from sparsebert.lottery.methods.head_mlp_search import head_mlp_sites, require_heads_and_mlps
from sparsebert.lottery.option_help import ACCUMULATE, BATCHES, STEP
from sparsebert.pruning import HeadImportance, Share, levels
from sparsebert.pruning.methods.head_importance import gate_importance
from sparsebert.pruning.prune import prune
from sparsebert.pruning.registry import ScoringContext
from sparsebert.tickets.ticket import Ticket


@register("super-tickets")
@dataclass(frozen=True)
class SuperTickets(SearchingMethod):
    """Super tickets (Liang et al. 2021, "Super Tickets in Pre-Trained Language Models: From Model Compression
    to Improving Generalization").

    Trains the dense model and scores its heads and MLPs once. For each sparsity of a grid it rewinds the
    model and trains the most important heads and MLPs. The ticket with the best validation metric becomes the
    run's ticket. The metric of a ticket selected on validation data is optimistic there: report results on
    other data.

    Granularity is "head+mlp"; the same share of both is pruned, the best head of each layer last.
    :class:`sparsebert.pruning.HeadImportance` computes the scores, token by token.

    Attributes:
        batches: Batches of training data to compute scores on; the published code takes all.
        accumulate: Never clear the gradients of the masks between batches, as in the published code.
        step: Distance of the sparsities in the grid, which ends at the sparsity of the run.
    """

    batches: int = field(default=32, metadata=BATCHES)
    accumulate: bool = field(default=False, metadata=ACCUMULATE)
    step: float = field(default=0.05, metadata=STEP)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least_one(self, "batches")

    @property
    def granularity(self) -> str:
        return "head+mlp"

    @property
    def scope(self) -> str:
        return "type"

    def require_units(self, granularity: str, scope: str) -> None:
        require_heads_and_mlps(self.name, granularity)

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        grid = levels(sparsity, self.step, Share.ORIGINAL)
        return (Round(Source.DENSE), *(Round(Source.SEARCH, level) for level in grid))

    def find_ticket(self, experiment: Experiment, config: RunConfig, folder: Path, round_: Round) -> Ticket:
        """Return the ticket of one sparsity. ``round-00/importance.safetensors`` holds the scores."""
        model, settings = experiment.model, config.training
        path = folder.parent / "round-00" / "importance.safetensors"
        if not path.exists():
            batches = experiment.first_batches(self.batches, settings.batch_size, settings.seed)
            scores = gate_importance(
                model, head_mlp_sites(model), batches, accumulate=self.accumulate, per_token=True
            )
            with replacing(path) as unfinished:
                save_file(scores, unfinished)
        options = {"accumulate": self.accumulate, "per_token": True, "keep_a_head": True}
        method = _StoredImportance(**options, stored=load_file(path))
        return prune(model, method, sparsity=round_.sparsity, seed=settings.seed, **asdict(config.units))

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


def _value(metrics: Mapping[str, float], metric: str | None) -> float:
    return metrics[metric] if metric is not None else next(iter(metrics.values()))
