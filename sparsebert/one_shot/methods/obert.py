"""oBERT: second-order pruning by the loss on labelled examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsebert.one_shot.block_fisher import BlockFisher
from sparsebert.one_shot.layer_problem import PrunedMatrix
from sparsebert.one_shot.progress import GRADIENTS, Listener, ProgressReporter
from sparsebert.one_shot.progress_file import ProgressFile
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
        self,
        model: nn.Module,
        competitions: Sequence[Competition],
        batches: Sequence[Mapping[str, Any]],
        saved: ProgressFile | None = None,
        progress: Listener | None = None,
    ) -> dict[str, PrunedMatrix]:
        """Prune step by step; see :class:`~sparsebert.one_shot.prune_model.ModelMethod`.

        ``saved`` gets the weights and masks after each step. Where the blocks do not fit into memory at once,
        it also gets the saliencies and then the weights of each part of the matrices in a step. Blocks are
        never stored: gradients give them again.

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
        parts = self._parts(weights)
        passes = self.recomputations * (1 if len(parts) == 1 else 2 * len(parts))
        run = _Run(model, units, weights, masks, batches, saved or ProgressFile(), passes, progress)
        for step in range(1 + run.resume(passes // self.recomputations), self.recomputations + 1):
            self._step(run, competitions, parts, Fraction(step, self.recomputations))
            run.finish(step)
        return {key: PrunedMatrix(run.weights[key].double(), run.masks[key]) for key in units}

    def _step(
        self,
        run: _Run,
        competitions: Sequence[Competition],
        parts: Sequence[Sequence[str]],
        share: Fraction,
    ) -> None:
        """Prune to this share of the way to the densities; weights and masks of the run change."""
        held: dict[str, BlockFisher] = {}

        def saliencies(keys: Sequence[str]) -> dict[str, Tensor]:
            fishers = run.fishers(keys, self)
            if len(parts) == 1:
                held.update(fishers)
            return {key: fisher.saliencies(run.weights[key]) for key, fisher in fishers.items()}

        def compensated(keys: Sequence[str]) -> dict[str, Tensor]:
            fishers = held or run.fishers(keys, self)
            joint = self.update == "joint"
            return {
                key: fisher.compensated(run.weights[key], masks[key], joint)
                for key, fisher in fishers.items()
            }

        of_units = run.by_parts("saliency", parts, saliencies)
        masks: dict[str, Tensor] = {}
        for competition in competitions:
            masks |= _select(competition, share, of_units, run.masks)
        run.weights = run.by_parts("changed", parts, compensated)
        run.masks = masks

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


class _Run:
    """A model as pruned so far, the examples that show its loss, and the file of what is finished.

    Args:
        model: The model; it is only read.
        units: Key -> granularity.
        weights: Key -> dense weights.
        masks: Key -> mask of the dense weights.
        batches: The examples.
        saved: The file.
        passes: Passes over the batches, for the progress.
        listener: Called for each batch.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Mapping[str, Granularity],
        weights: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        batches: Sequence[Mapping[str, Any]],
        saved: ProgressFile,
        passes: int,
        listener: Listener | None,
    ) -> None:
        self.weights, self.masks = weights, masks
        self._model, self._units, self._batches, self._saved = model, units, batches, saved
        self._names = [f"{n} of {passes * len(batches)}" for n in range(1, passes * len(batches) + 1)]
        self._reporter = ProgressReporter({(GRADIENTS, name): 1.0 for name in self._names}, listener)
        self._next = 0
        self._reporter.begin(GRADIENTS)

    def resume(self, passes: int) -> int:
        """Go on after the steps that are finished, of so many passes each; return their number."""
        steps: int = self._saved.notes.get("steps", 0)
        if steps:
            stored = self._saved.tensors
            self.weights = {key: stored[f"{key}.weight"] for key in self.weights}
            self.masks = {key: stored[f"{key}.mask"] for key in self.masks}
            self._skip(steps * passes)
        return steps

    def finish(self, step: int) -> None:
        """Store the result of a step instead of its parts."""
        tensors = {f"{key}.weight": each for key, each in self.weights.items()}
        tensors |= {f"{key}.mask": each for key, each in self.masks.items()}
        self._saved.add(tensors, instead=True, steps=step)

    def by_parts(
        self,
        what: str,
        parts: Sequence[Sequence[str]],
        compute: Callable[[Sequence[str]], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Compute a tensor of each matrix, part by part; where there are several, each is stored."""
        tensors: dict[str, Tensor] = {}
        for keys in parts:
            names = {key: f"{key}.{what}" for key in keys}
            if all(name in self._saved.tensors for name in names.values()):
                tensors |= {key: self._saved.tensors[name] for key, name in names.items()}
                self._skip(1)
                continue
            tensors |= (computed := compute(keys))
            if len(parts) > 1:
                self._saved.add({names[key]: each for key, each in computed.items()})
        return tensors

    def _skip(self, passes: int) -> None:
        end = self._next + passes * len(self._batches)
        self._reporter.skip((GRADIENTS, name) for name in self._names[self._next : end])
        self._next = end

    def fishers(self, keys: Sequence[str], method: OptimalBertSurgeon) -> dict[str, BlockFisher]:
        """Compute the Fisher blocks of these matrices."""
        fishers = {
            key: BlockFisher(
                key,
                self._units[key],
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
            if len(pending) == _GRADIENTS or number == len(self._batches):
                for key, of_key in zip(keys, zip(*pending, strict=True), strict=True):
                    fishers[key].add(of_key)
                pending = []
        return fishers

    def _gradients(self, keys: Sequence[str]) -> Iterator[tuple[Tensor, ...]]:
        """Yield dL/dW of these matrices for each batch, 0 where they are pruned."""
        leaves = placed(self._model, self.weights)
        wanted = [leaves[key].requires_grad_() for key in keys]
        for inputs in self._batches:
            with evaluating(self._model), torch.enable_grad():
                loss = loss_of(self._model, leaves, {}, dict(inputs))
                gradients = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
            yield tuple(
                _floating(gradient).masked_fill(~self.masks[key], 0)
                for key, gradient in zip(keys, gradients, strict=True)
            )
            self._reporter.finish(self._names[self._next])
            self._next += 1


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
