"""One-shot pruning matrix by matrix, layer after layer, written into the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from sparsebert.linear_layers import Filter
from sparsebert.one_shot.allocation import allocated, error_points
from sparsebert.one_shot.calibration import TokenFilter, calibration_batches
from sparsebert.one_shot.error_curves import FIXED_DENSITIES, ErrorCurve, ErrorCurves
from sparsebert.one_shot.layer_problem import LayerMethod, Target
from sparsebert.one_shot.layerwise import LayerwiseRun, cost_of_pruning
from sparsebert.one_shot.progress import ALLOCATE, PRUNE, Listener, ProgressReporter
from sparsebert.one_shot.progress_file import ProgressFile
from sparsebert.one_shot.segments import segments_of
from sparsebert.one_shot.unit_columns import prune_sources_, reader_of
from sparsebert.one_shot.unit_table import Row, allocated_units, table_by_weights
from sparsebert.one_shot.units_to_prune import UnitsToPrune
from sparsebert.pruning.density import Number, as_sparsity
from sparsebert.pruning.gradients import evaluating
from sparsebert.pruning.granularity import kinds_in
from sparsebert.tickets.provenance import weight_hash
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels.errors import unknown

REPRODUCE, ALLOCATIONS = ("dense", "layer"), ("uniform", "error")
# Work of measuring a matrix, as a multiple of pruning it; 0.5 to 3 by method and width.
_WORK_OF_MEASURING = 1.0


def prune_layers_(
    model: nn.Module,
    method: LayerMethod,
    *,
    data: Any,
    sparsity: Number | None,
    densities: Mapping[str, Number] | None = None,
    granularity: str = "element",
    granularities: Mapping[str, str] | None = None,
    block_size: tuple[int, int] | None = None,
    round_to: int | None = None,
    reproduce: str = "dense",
    allocate: str | None = None,
    tokenizer: Any = None,
    include_pooler: bool = False,
    filter: Filter | None = None,
    magnitude_where_singular: bool = False,
    checkpoint: Path | None = None,
    curves: ErrorCurves | None = None,
    progress: Listener | None = None,
) -> Ticket:
    """Prune matrices one after the other, each on the activations of the model as pruned so far.

    Arguments and result are those of :func:`sparsebert.prune_`. The checkpoint holds the densities that were
    allocated, or what was measured for them, and the weights, biases and masks of finished layers.

    Raises:
        ValueError: As :func:`sparsebert.prune_`.
    """
    for name, value, values in (("reproduce", reproduce, REPRODUCE), ("allocate", allocate, ALLOCATIONS)):
        if value is not None and value not in values:
            raise unknown(f"value of {name}", value, values)
    kinds = kinds_in(granularity)
    if "mlp" in kinds:
        raise ValueError(
            f"granularity {granularity!r} does not fit method {method.name}, which prunes matrix by "
            "matrix: use prune, or granularity head+neuron"
        )
    batches = calibration_batches(model, data, tokenizer)
    units = UnitsToPrune.of(
        model,
        batches,
        sparsity,
        granularity,
        block_size,
        round_to,
        include_pooler=include_pooler,
        filter=filter,
    )
    if granularities:
        units = units.recut(granularities)
    density = units.one_density
    given = "densities" if densities else "granularities" if granularities else ""
    unsuited = units.pattern or (kinds and not hasattr(method, "losses"))
    fixed = bool(given or unsuited or density == 1)
    if allocate == "error" and fixed:
        conflict = given or f"granularity {granularity!r}"
        raise ValueError(f"allocate='error' chooses the density of each matrix and conflicts with {conflict}")
    allocate = allocate or ("uniform" if fixed else "error")
    readers = [reader_of(group) for group in units.groups]
    shares = _shares([each.name for each in readers], density, densities, bool(kinds))
    targets = {each.name: Target(each, shares[each.name], pattern=units.pattern) for each in readers}
    step = units.describe(method, "matrix", batches) | {
        "allocate": "densities" if shares.keys() <= (densities or {}).keys() else allocate,
        "reproduce": reproduce if method.compensates else "layer",
    }
    step |= {"densities": {key: float(share) for key, share in shares.items()}} if densities else {}
    step |= {"granularities": dict(granularities)} if granularities else {}
    curves_of = {
        "calibration": step["calibration"],
        "units": [units.granularity, units.block_size, units.round_to, sorted(targets)],
        "by": [method.name, step["options"]] if kinds else list(FIXED_DENSITIES),
    }
    if curves is not None and allocate == "error":
        step["curves"] = curves_of["by"]
    before = weight_hash(model)
    saved = ProgressFile(checkpoint, {**step, "weights": before})
    costs = {(PRUNE, key): cost_of_pruning(target) for key, target in targets.items()}
    if allocate == "error":
        costs |= {(ALLOCATE, key): _WORK_OF_MEASURING * costs[PRUNE, key] for key in targets}
    reporter = ProgressReporter(costs, progress)
    if allocate == "error" and "densities" not in saved.notes:
        kept = None if curves is None else _KeptCurves(curves, {**curves_of, "weights": before})
        targets = _allocated(model, method, units, targets, batches, kept, saved, reporter)
        saved.add(densities={key: str(target.density) for key, target in targets.items()})
    elif allocate == "error":
        allocation = saved.notes["densities"]
        targets = {key: replace(target, density=Fraction(allocation[key])) for key, target in targets.items()}
        reporter.skip((ALLOCATE, key) for key in targets)
    if kinds and not any(round(each.density * math.prod(each.group.grid)) for each in targets.values()):
        raise ValueError(f"sparsity {as_sparsity(density)} would keep no {' and no '.join(kinds)}")
    run = LayerwiseRun(
        model, method, targets, step["reproduce"] == "dense", magnitude_where_singular, saved, reporter
    )
    keys = [key for key in units.keys if any(key in group.parts for group in units.groups)]
    with evaluating(model), torch.no_grad():
        run.prune(segments_of(model, keys, batches), TokenFilter(batches))
        masks = prune_sources_(model, units.groups, run.masks)
    return units.ticket(model, masks, step, before, compensates=method.compensates, errors=run.errors)


class _KeptCurves(NamedTuple):
    """Error curves for several calls, and what they must be of."""

    curves: ErrorCurves
    run: Mapping[str, Any]


def _allocated(
    model: nn.Module,
    method: Any,
    units: UnitsToPrune,
    targets: Mapping[str, Target],
    batches: Sequence[Mapping[str, Any]],
    kept: _KeptCurves | None,
    saved: ProgressFile,
    reporter: ProgressReporter,
) -> dict[str, Target]:
    """Return the targets with the densities, or numbers of units, that cost the model least."""
    points: dict[str, list[list[float]]] = {}
    if kept is not None:
        if not kept.curves.is_empty:
            reporter.skip((ALLOCATE, key) for key in targets)
        measure: Any = partial(error_points, model, targets, batches, FIXED_DENSITIES)
        if kinds_in(units.granularity):
            measure = partial(table_by_weights, model, units.groups, batches, method)
        points = kept.curves.points(kept.run, partial(measure, saved, reporter))
    if kinds_in(units.granularity):
        table = {key: [Row(int(count), *rest) for count, *rest in rows] for key, rows in points.items()}
        return allocated_units(
            model, units.groups, targets, batches, method, table=table or None, saved=saved, reporter=reporter
        )
    curves = {key: ErrorCurve.through(*each) for key, each in points.items()}
    return allocated(model, targets, batches, curves or None, saved, reporter)


def _shares(
    keys: Sequence[str], density: Fraction, densities: Mapping[str, Number] | None, may_be_empty: bool
) -> dict[str, Fraction]:
    """Return the density of each matrix."""
    if unknown_keys := (densities or {}).keys() - set(keys):
        raise unknown("matrix in densities", min(unknown_keys), keys)
    shares = dict.fromkeys(keys, density)
    for key, share in (densities or {}).items():
        if isinstance(share, bool) or not (0 < share <= 1 or (share == 0 and may_be_empty)):
            raise ValueError(f"the density of {key} must be above 0 and at most 1, got {share!r}")
        shares[key] = Fraction(str(share))
    return shares
