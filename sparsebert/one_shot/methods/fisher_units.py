"""Fisher information of heads and neurons: search, rearrange, rescale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsebert.bert import Structure, weight_of
from sparsebert.one_shot.calibration import LABELS
from sparsebert.one_shot.progress import GRADIENTS, PRUNE, Listener, ProgressReporter
from sparsebert.one_shot.progress_file import ProgressFile
from sparsebert.one_shot.prune_units import UNIT_METHODS, PrunedUnits
from sparsebert.one_shot.unit_costs import COSTS, Workload, unit_costs
from sparsebert.one_shot.unit_gradients import LOSSES, unit_gradients
from sparsebert.one_shot.unit_rescaling import TEACHERS, Rescaling
from sparsebert.one_shot.unit_search import rearrange, search_units
from sparsebert.pruning.gates import GateSite, gate_sites
from sparsebert.pruning.registry import register
from sparsebert.pruning.unit_groups import UnitGroup
from sparsebert_kernels.errors import unknown

AUTO = "auto"
# Work of the gradients, as a multiple of that of the rescaling.
_COST_OF_GRADIENTS = 0.6

Units = dict[str, Tensor]


@register("fisher-units", UNIT_METHODS)
@dataclass(frozen=True)
class FisherUnits:
    """Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers", and its published code.

    The Fisher information of each head and neuron is the sum over examples of the squared gradient of its
    gate. Units with the most information within a budget are kept, then each layer's units are exchanged for
    others that lose less together, and factors of the units that stay are fitted by least squares, layer by
    layer, and folded into the weights that read them.

    Attributes:
        loss: "labels": gradients of the model's own loss, as published. "outputs" (not in the paper): of the
            distance to the dense model's outputs, without labels. "auto": labels if the batches have them.
        per_example: One gradient an example, as in the paper; False for one a batch, as in the code.
        probes: For "outputs": gradients of an example; see :func:`unit_gradients`.
        cost: What the sparsity counts: "weights", "flops" as published, or "milliseconds" predicted for this
            CPU and batches of the same size; see :func:`sparsebert.one_shot.unit_costs.unit_costs`.
        rearranges: Whether units are exchanged.
        rescales: Whether factors are fitted.
        teacher: What the factors are to reproduce: the "dense" model or, as in the published code, the model
            "halfway": pruned by the search to the square root of the density.
        first_token: Fit the factors of the last layer's neurons to the first token only, as the code does for
            classifiers.
        norm_weighted: Weigh errors of outputs by the norm that reads them (not in the paper; see
            :func:`sparsebert.one_shot.norm_weights.norm_weights`).
        seed: Seed of the random signs of "outputs".
        lsmr_damping: Damping of the least squares.
        limit: Factors beyond [-limit, limit] end the rescaling at their layer, as do least squares that do
            not converge.

    Raises:
        ValueError: An option has a value that is not listed, or a number is not positive.
    """

    name: ClassVar[str]
    compensates: ClassVar[bool] = True
    loss: str = AUTO
    per_example: bool = True
    probes: int = 4
    cost: str = "weights"
    rearranges: bool = True
    rescales: bool = True
    teacher: str = "dense"
    first_token: bool = False
    norm_weighted: bool = True
    seed: int = 0
    lsmr_damping: float = 1.0
    limit: float = 10.0

    def __post_init__(self) -> None:
        for what, value, names in (
            ("loss", self.loss, (AUTO, *LOSSES)),
            ("cost of a unit", self.cost, COSTS),
            ("teacher", self.teacher, TEACHERS),
        ):
            if value not in names:
                raise unknown(what, value, names)
        if not isinstance(self.probes, int) or isinstance(self.probes, bool) or self.probes < 1:
            raise ValueError(f"probes must be a positive int, got {self.probes!r}")
        for option in ("lsmr_damping", "limit"):
            if not getattr(self, option) > 0:
                raise ValueError(f"{option} must be positive, got {getattr(self, option)!r}")

    def prune_units(
        self,
        model: nn.Module,
        structure: Structure,
        groups: Sequence[UnitGroup],
        density: Fraction,
        batches: Sequence[Mapping[str, Any]],
        saved: ProgressFile | None = None,
        progress: Listener | None = None,
    ) -> PrunedUnits:
        """Choose heads and neurons; see :class:`~sparsebert.one_shot.prune_units.UnitMethod`.

        ``saved`` gets the chosen units, then the factors of each layer; gradients are not stored.

        Raises:
            ValueError: A batch gives no loss; activations or gradients are not finite; or the budget is too
                small for a single unit.
        """
        saved = saved or ProgressFile()
        shapes = {key: shape for group in groups for key, shape in group.shapes.items()}
        kinds = {group.name: group.kind for group in groups}
        sites = {
            name: site
            for kind in dict.fromkeys(kinds.values())
            for name, site in gate_sites(structure, kind, shapes).items()
            if name in kinds
        }
        readers = [site.key for site in sites.values()] if self.rescales else []
        numbers = [f"{number} of {len(batches)}" for number in range(1, len(batches) + 1)]
        costs = {(GRADIENTS, number): _COST_OF_GRADIENTS / len(batches) for number in numbers}
        costs |= {(PRUNE, key): 1 / len(readers) for key in readers}
        reporter = ProgressReporter(costs, progress)
        if "chosen" in saved.notes:
            reporter.skip((GRADIENTS, number) for number in numbers)
            kept, teacher = (
                {name: saved.tensors[f"{name}.{which}"] for name in sites} for which in ("kept", "teacher")
            )
            notes = saved.notes["chosen"]
        else:
            reporter.begin(GRADIENTS)
            kept, teacher, notes = self._choose(model, sites, groups, density, batches, reporter)
            stored = {f"{name}.kept": each for name, each in kept.items()}
            stored |= {f"{name}.teacher": each for name, each in teacher.items()}
            saved.add(stored, chosen=notes)
        if not self.rescales:
            return PrunedUnits(kept, {name: mask.double() for name, mask in kept.items()}, notes=notes)
        rescaling = Rescaling(self.lsmr_damping, self.limit, self.first_token, self.norm_weighted)
        factors, errors = rescaling.fit(model, sites, kept, teacher, batches, saved, reporter)
        return PrunedUnits(kept, factors, errors, {**notes, "rescaled_layers": len(errors)})

    def _choose(
        self,
        model: nn.Module,
        sites: Mapping[str, GateSite],
        groups: Sequence[UnitGroup],
        density: Fraction,
        batches: Sequence[Mapping[str, Any]],
        reporter: ProgressReporter,
    ) -> tuple[Units, Units, dict[str, Any]]:
        """Return the units to keep, those of the model to reproduce, by layer, and notes for the ticket."""
        loss = self.loss
        if loss == AUTO:
            loss = "labels" if all(set(LABELS) & set(batch) for batch in batches) else "outputs"
        gradients = unit_gradients(
            model,
            sites,
            batches,
            loss=loss,
            per_example=self.per_example,
            probes=self.probes,
            seed=self.seed,
            on_batch=lambda number: reporter.finish(f"{number} of {len(batches)}"),
        )
        importance = {name: each.double().square().sum(0) for name, each in gradients.items()}
        dtype = weight_of(model, groups[0].name).dtype
        costs = unit_costs(groups, self.cost, Workload.of(batches), dtype)
        total = costs.total({name: len(each) for name, each in importance.items()})
        kinds = {group.name: group.kind for group in groups}

        def search(share: Fraction) -> Units:
            return search_units(importance, costs.of_unit, kinds, costs.budget(share, total))

        kept = search(density)
        if not any(mask.any() for mask in kept.values()):
            raise ValueError(f"sparsity {float(1 - density):g} would keep no head and no neuron")
        if self.rearranges:
            kept = {name: rearrange(mask, gradients[name]) for name, mask in kept.items()}
        if self.teacher == "halfway":
            teacher = search(Fraction(float(density) ** 0.5))
        else:
            teacher = {name: torch.ones_like(mask) for name, mask in kept.items()}
        share = costs.total({name: int(mask.sum()) for name, mask in kept.items()}) / total
        return kept, teacher, {"loss": loss, "cost_kept": share}
