"""Super tickets: one-shot tickets along a grid of sparsities, each trained; the best one is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsebert.atomic import replacing
from sparsebert.bert import structure
from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.method import Round, Source, register
from sparsebert.lottery.methods.heads_and_mlps import HeadsAndMlps
from sparsebert.pruning import HeadImportance, Share, levels
from sparsebert.pruning.gates import gate_sites
from sparsebert.pruning.methods.head_importance import gate_importance
from sparsebert.pruning.prune import prune
from sparsebert.pruning.registry import ScoringContext
from sparsebert.tickets.ticket import Ticket


@register("super-tickets")
@dataclass(frozen=True)
class SuperTickets(HeadsAndMlps):
    """Train the dense model, score its heads and MLPs once, and for each sparsity of a grid rewind and train
    the most important ones; the run's ticket is the one that does best on the validation data: Liang et al.
    2021, "Super Tickets in Pre-Trained Language Models: From Model Compression to Improving Generalization".

    The grid goes in steps of ``step`` up to the asked sparsity; granularity is "head+mlp", of both the same
    share goes, and the best head of each layer goes last. Scores are those of
    :class:`sparsebert.pruning.HeadImportance`, each token by itself, on ``batches`` batches of the training
    data; the published code takes all of them, and never clears the gradients of its masks (``accumulate``).
    What is chosen by the validation data looks better there than it is: judge it by other data.
    """

    step: float = 0.05

    @property
    def scope(self) -> str:
        return "type"

    def rounds(self, sparsity: Fraction) -> tuple[Round, ...]:
        grid = levels(sparsity, self.step, Share.ORIGINAL)
        return (Round(Source.DENSE), *(Round(Source.SEARCH, level) for level in grid))

    def found(self, experiment: Experiment, request: RunConfig, folder: Path, round_: Round) -> Ticket:
        """The ticket of one sparsity; the dense model's scores are in ``round-00/importance.safetensors``."""
        model, settings = experiment.model, request.training
        path = folder.parent / "round-00" / "importance.safetensors"
        if not path.exists():
            known = structure(model)
            sites = gate_sites(known, "head") | gate_sites(known, "mlp")
            batches = experiment.first_batches(self.batches, settings.batch_size, settings.seed)
            scores = gate_importance(model, sites, batches, accumulate=self.accumulate, per_token=True)
            with replacing(path) as unfinished:
                save_file(scores, unfinished)
        options = {"accumulate": self.accumulate, "per_token": True, "keep_a_head": True}
        method = _Stored(**options, stored=load_file(path))
        return prune(model, method, sparsity=round_.sparsity, seed=settings.seed, **asdict(request.units))

    def best(self, rows: Sequence[Mapping[str, Any]], metric: str | None) -> int:
        """The round with the highest metric among the sparse ones, of equal ones the sparsest."""
        candidates = range(min(1, len(rows) - 1), len(rows))
        return max(candidates, key=lambda number: (_value(rows[number]["metrics"], metric), number))


@dataclass(frozen=True)
class _Stored(HeadImportance):
    """By importance that was found before."""

    stored: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def scores(self, context: ScoringContext) -> dict[str, Tensor]:
        return super().scores(replace(context, importance=lambda **options: self.stored))


def _value(metrics: Mapping[str, float], metric: str | None) -> float:
    return metrics[metric] if metric is not None else next(iter(metrics.values()))
