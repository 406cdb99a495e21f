"""oBERT: second-order pruning by the loss on labelled examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsebert.one_shot.block_fisher import BlockFisher
from sparsebert.one_shot.layer_problem import PrunedMatrix
from sparsebert.one_shot.prune_model import MODEL_METHODS, Competition
from sparsebert.pruning.gradients import evaluating, loss_of, placed
from sparsebert.pruning.granularity import Granularity, keep_n_of_m
from sparsebert.pruning.panel_rounding import round_panels
from sparsebert.pruning.read_matrices import loaded_weight
from sparsebert.pruning.registry import register
from sparsebert.pruning.top_k import ranked, select_top
from sparsebert.pruning.unit_groups import SCOPES
from sparsebert_kernels.errors import unknown

UPDATES = ("independent", "joint")
# Gradients whose outer products are added at once.
_GRADIENTS = 16
_GIB = 1 << 30


@register("obert", MODEL_METHODS)
@dataclass(frozen=True)
class OptimalBertSurgeon:
    """Kurtic et al. 2022, "The Optimal BERT Surgeon", sections 3.1 to 3.3.

    Units with the least w_g^T ([F^-1]_gg)^-1 w_g / 2 are pruned, and the weights of their blocks change by
    -F^-1[:, g] ([F^-1]_gg)^-1 w_g. F is the empirical Fisher matrix in blocks of consecutive weights, from
    one gradient of the loss for each batch (the authors take 1024). Between
    recomputations of F the sparsity grows by equal steps.

    Attributes:
        scope: Units that compete, as for :func:`sparsebert.prune`.
        block: Most weights of a block of F.
        damping: lambda, which is added to the diagonal of F.
        recomputations: Number of times that F is computed.
        update: "independent" adds the changes for each pruned unit, as published; "joint" compensates all
            that a block loses together.
        memory: GiB of blocks that may be held at once. Where F needs more, gradients are computed once more
            for each part of the matrices.
    """

    name: ClassVar[str]
    scope: str = "global"
    block: int = 50
    damping: float = 1e-7
    recomputations: int = 1
    update: str = "independent"
    memory: float = 4.0

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: One is out of range.
        """
        for option, names in (("scope", SCOPES), ("update", UPDATES)):
            if getattr(self, option) not in names:
                raise unknown(f"{option} of obert", getattr(self, option), names)
        for option in ("block", "damping", "recomputations", "memory"):
            if not getattr(self, option) > 0:
                raise ValueError(f"{option} of obert must be positive, got {getattr(self, option)!r}")

    def prune_model(
        self, model: nn.Module, competitions: Sequence[Competition], batches: Sequence[Mapping[str, Any]]
    ) -> dict[str, PrunedMatrix]:
        """Prune step by step; see :class:`~sparsebert.one_shot.prune_model.ModelMethod`.

        Raises:
            ValueError: A batch gives no loss, a gradient is NaN or infinite, or the
                damping is too small.
        """
        units = {
            key: granularity
            for competition in competitions
            for group in competition.groups
            for key, granularity in group.parts.items()
        }
        weights = {key: _floating(loaded_weight(model, key)) for key in units}
        masks = {key: torch.ones_like(weight, dtype=torch.bool) for key, weight in weights.items()}
        for step in range(1, self.recomputations + 1):
            share = Fraction(step, self.recomputations)
            self._step(_Point(model, units, weights, masks, batches), competitions, share)
        return {key: PrunedMatrix(weights[key].double(), masks[key]) for key in units}

    def _step(self, point: _Point, competitions: Sequence[Competition], share: Fraction) -> None:
        """Prune to this share of the way to the densities; ``weights`` and ``masks`` change."""
        fishers: dict[str, BlockFisher] = {}
        saliencies: dict[str, Tensor] = {}
        parts = self._parts(point.weights)
        for keys in parts:
            fishers = point.fishers(keys, self)
            saliencies |= {key: fisher.saliencies(point.weights[key]) for key, fisher in fishers.items()}
        masks: dict[str, Tensor] = {}
        for competition in competitions:
            masks |= _select(competition, share, saliencies, point.masks)
        weights: dict[str, Tensor] = {}
        for keys in parts:
            if len(parts) > 1:
                fishers = point.fishers(keys, self)
            joint = self.update == "joint"
            weights |= {
                key: fisher.compensated(point.weights[key], masks[key], joint)
                for key, fisher in fishers.items()
            }
        point.weights.update(weights)
        point.masks.update(masks)

    def _parts(self, weights: Mapping[str, Tensor]) -> list[list[str]]:
        """Split the matrices into parts whose blocks fit into memory."""
        parts: list[list[str]] = [[]]
        held = 0
        for key, weight in weights.items():
            size = BlockFisher.nbytes(weight.shape, self.block, weight.dtype)
            if parts[-1] and held + size > self.memory * _GIB:
                parts.append([])
                held = 0
            parts[-1].append(key)
            held += size
        return parts


@dataclass(frozen=True)
class _Point:
    """A model as pruned so far, and the examples that show its loss."""

    model: nn.Module
    units: Mapping[str, Granularity]
    weights: dict[str, Tensor]
    masks: dict[str, Tensor]
    batches: Sequence[Mapping[str, Any]]

    def fishers(self, keys: Sequence[str], method: OptimalBertSurgeon) -> dict[str, BlockFisher]:
        """Compute the Fisher blocks of these matrices."""
        fishers = {
            key: BlockFisher(
                key,
                self.units[key],
                self.weights[key].shape,
                method.block,
                method.damping,
                self.weights[key].dtype,
            )
            for key in keys
        }
        pending: list[tuple[Tensor, ...]] = []
        for number, gradients in enumerate(self._gradients(keys), 1):
            pending.append(gradients)
            if len(pending) == _GRADIENTS or number == len(self.batches):
                for key, of_key in zip(keys, zip(*pending, strict=True), strict=True):
                    fishers[key].add(of_key)
                pending = []
        return fishers

    def _gradients(self, keys: Sequence[str]) -> Iterator[tuple[Tensor, ...]]:
        """Yield dL/dW of these matrices for each batch, 0 where they are pruned."""
        leaves = placed(self.model, self.weights)
        wanted = [leaves[key].requires_grad_() for key in keys]
        for inputs in self.batches:
            with evaluating(self.model), torch.enable_grad():
                loss = loss_of(self.model, leaves, {}, dict(inputs))
                gradients = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
            yield tuple(
                _floating(gradient).masked_fill(~self.masks[key], 0)
                for key, gradient in zip(keys, gradients, strict=True)
            )


def _select(
    competition: Competition,
    share: Fraction,
    saliencies: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return key -> mask that keeps the units with the highest saliencies, among those that are kept."""
    groups = competition.groups
    scores = []
    for group in groups:
        of_units = torch.stack([saliencies[key].view(group.grid) for key in group.parts]).sum(0)
        alive = group.whole(masks)
        scores.append(ranked((of_units / torch.as_tensor(group.sizes)).float(), alive))
    if pattern := groups[0].parts[groups[0].name].pattern:
        n, m = pattern
        kept = m - round((m - n) * share)
        return {group.name: keep_n_of_m(score, kept, m) for group, score in zip(groups, scores, strict=True)}
    density = 1 - share * (1 - competition.density)
    budget = density * sum(group.weights for group in groups)
    units = select_top(scores, [group.sizes for group in groups], budget)
    selected: dict[str, Tensor] = {}
    for group, mask in zip(groups, round_panels(groups, scores, units), strict=True):
        selected |= group.expand(mask)
    return selected


def _floating(weight: Tensor) -> Tensor:
    """Return a tensor on the CPU in float32, or in float64 if that is its dtype."""
    weight = weight.detach().to("cpu")
    return weight if weight.dtype == torch.float64 else weight.float()
