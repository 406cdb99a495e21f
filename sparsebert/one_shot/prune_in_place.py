"""One-shot pruning that changes the weights that stay: layer by layer, written into the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sparsebert.linear_layers import Filter
from sparsebert.one_shot.layer_problem import (
    LAYER_METHODS,
    LayerMethod,
    Target,
)
from sparsebert.pruning.density import Number, as_sparsity, parse_sparsity
from sparsebert.pruning.gradients import evaluating
from sparsebert.pruning.granularity import PANEL, kinds_in, parse_granularity, spelled_out
from sparsebert.pruning.prunable_structure import prunable_structure
from sparsebert.pruning.read_matrices import loaded_weight
from sparsebert.pruning.registry import methods
from sparsebert.pruning.unit_groups import unit_groups
from sparsebert.tickets.provenance import describe_model, weight_hash
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels.errors import unknown

if TYPE_CHECKING:
    from sparsebert.one_shot.error_curves import ErrorCurves
    from sparsebert.one_shot.layerwise import Report
    from sparsebert.one_shot.prune_model import ModelMethod
    from sparsebert.one_shot.prune_units import UnitMethod

REPRODUCE, ALLOCATE = ("dense", "layer"), ("uniform", "error")

# What a method object has one of: it prunes matrices, heads and neurons, or all matrices together.
_ENTRIES = ("prune_layer", "prune_units", "prune_model")


def prune_(
    model: nn.Module,
    method: str | LayerMethod | UnitMethod | ModelMethod = "alps",
    *,
    data: Any,
    sparsity: Number | None = None,
    densities: Mapping[str, Number] | None = None,
    granularity: str = "element",
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
    progress: Callable[[Report], None] | None = None,
) -> Ticket:
    """Prune a model by calibration data, and write the weights that stay, changed, into the model.

    Layers are pruned one after the other, each on the activations of the model as pruned so far.

    Args:
        model: As for :func:`sparsebert.prune`. Its weights change in place: pruned ones become 0.
        method: A registered name ("wanda", "sparsegpt", "obs", "alps", "ziplm", "fisher-units", "obert") or
            a method object with its options. "ziplm" and "fisher-units" prune neurons and heads, the former
            layer by layer, the latter in all layers together; it reads labels if there are any. "obert"
            ranks the units of all matrices together and needs labels.
        data: Batches (keyword arguments for the model), or, with a ``tokenizer``, a list of texts.
        sparsity: Share of the weights to prune, in [0, 1); None for n:m patterns.
        densities: Share of weights to keep by key, for the matrices that differ; of neurons and heads, by the
            keys of the down-projection and the attention's output projection.
        granularity: "element"; "block" or "4x1"; "panel" or "panel(32,2)"; "row"; "column"; n of m, such as
            "2:4"; or "neuron", "head" or "head+neuron". Of these, the columns of the down-projection and of
            the attention's output projection are pruned, and with them the rows that feed them.
        block_size: As for :func:`sparsebert.prune`.
        round_to: As for :func:`sparsebert.prune`.
        reproduce: What each matrix is to reproduce. "dense": the dense model's outputs, from the pruned
            model's inputs, including what the residual connections have lost; biases are adjusted. "layer":
            its own outputs on the pruned model's inputs, as published for SparseGPT, ALPS and others. Methods
            that do not change weights always reproduce "layer".
        allocate: How the sparsity is spread over the matrices. "uniform": all prune the same share, as
            published. "error": matrices prune the shares that cost the model's last hidden states least,
            which :func:`sparsebert.one_shot.allocation.allocated` measures on a part of the data. None for
            "error" where it fits: not with ``densities`` or n:m patterns; of neurons and heads only with
            "ziplm", where :func:`sparsebert.one_shot.unit_table.allocated_units` chooses their numbers.
        tokenizer: Tokenizer for texts.
        include_pooler: Prune the pooler's matrix too.
        filter: As for :func:`sparsebert.prune`.
        magnitude_where_singular: Prune a matrix whose Hessian is singular by magnitude, instead of failing.
        checkpoint: File that holds the finished layers; a call that was killed goes on after the last of
            them. The caller deletes it once the result is safe.
        curves: Keeps what ``allocate="error"`` measures for other calls with the same model, data and
            granularity: it is measured once, at densities that serve every sparsity.
        progress: Called after each matrix.

    Returns:
        The ticket. ``metadata["errors"]`` holds the error of each matrix, see
        :meth:`~sparsebert.one_shot.LayerProblem.error`, and ``metadata["model"]["weights"]`` the hash of the
        changed weights.

    Raises:
        ValueError: A name is unknown, or an option does not fit; there is no data; a text is longer than the
            model's positions; activations are not finite; a Hessian is singular.
    """
    # Late, here and below: importing sparsebert stays quick.
    from sparsebert.one_shot.allocation import allocated, error_points
    from sparsebert.one_shot.calibration import TokenFilter, calibration_batches, describe_batches
    from sparsebert.one_shot.error_curves import FIXED_DENSITIES, ErrorCurve
    from sparsebert.one_shot.layerwise import LayerwiseRun
    from sparsebert.one_shot.progress_file import ProgressFile
    from sparsebert.one_shot.prune_model import prune_model_
    from sparsebert.one_shot.prune_units import prune_units_
    from sparsebert.one_shot.segments import segments_of
    from sparsebert.one_shot.unit_columns import prune_sources_, reader_of
    from sparsebert.one_shot.unit_table import Row, allocated_units, table_by_weights

    for name, value, values in (("reproduce", reproduce, REPRODUCE), ("allocate", allocate, ALLOCATE)):
        if value is not None and value not in values:
            raise unknown(f"value of {name}", value, values)
    pruning_method = find_one_shot(method)
    if hasattr(pruning_method, "prune_units"):
        _require_layerwise(
            pruning_method.name,
            densities=densities,
            curves=curves,
            block_size=block_size,
            round_to=round_to,
            include_pooler=include_pooler,
            magnitude_where_singular=magnitude_where_singular,
            reproduce="" if reproduce == "dense" else reproduce,
            allocate=allocate,
        )
        return prune_units_(
            model,
            pruning_method,
            data=data,
            sparsity=sparsity,
            granularity=granularity,
            tokenizer=tokenizer,
            filter=filter,
            progress=None if progress is None else _UnitProgress(progress),
        )
    if hasattr(pruning_method, "prune_model"):
        _require_layerwise(
            pruning_method.name,
            densities=densities,
            curves=curves,
            checkpoint=checkpoint,
            magnitude_where_singular=magnitude_where_singular,
            reproduce="" if reproduce == "dense" else reproduce,
            allocate=allocate,
        )
        return prune_model_(
            model,
            pruning_method,
            data=data,
            sparsity=sparsity,
            granularity=granularity,
            block_size=block_size,
            round_to=round_to,
            tokenizer=tokenizer,
            include_pooler=include_pooler,
            filter=filter,
        )
    layer_method: Any = pruning_method
    granularity, block_size = spelled_out(granularity, block_size)
    units = parse_granularity(granularity, block_size, round_to)
    if "mlp" in kinds_in(granularity):
        raise ValueError(
            f"granularity {granularity!r} does not fit method {layer_method.name}, which prunes matrix by "
            "matrix: use prune, or granularity head+neuron"
        )
    if granularity == PANEL and block_size is not None:
        round_to = units.quantum * block_size[1]
    density = parse_sparsity(sparsity, units)
    assert isinstance(density, Fraction)
    by_units = bool(kinds_in(granularity))
    unsuited = units.pattern or (by_units and not hasattr(layer_method, "losses"))
    fixed = bool(densities or unsuited or density == 1)
    if allocate == "error" and fixed:
        conflict = "densities" if densities else f"granularity {granularity!r}"
        raise ValueError(f"allocate='error' chooses the density of each matrix and conflicts with {conflict}")
    allocate = allocate or ("uniform" if fixed else "error")
    batches = calibration_batches(model, data, tokenizer)
    encoder, keys = prunable_structure(
        model, granularity, include_pooler=include_pooler, filter=filter, data=batches
    )
    shapes = {key: loaded_weight(model, key).shape for key in keys}
    groups = unit_groups(granularity, block_size, shapes, encoder, round_to)
    readers = [reader_of(group) for group in groups]
    shares = _shares([each.name for each in readers], density, densities)
    targets = {each.name: Target(each, shares[each.name], pattern=units.pattern) for each in readers}
    keys = tuple(key for key in keys if any(key in group.parts for group in groups))
    step: dict[str, Any] = {
        "method": layer_method.name,
        "options": dict(vars(layer_method)),
        "sparsity": as_sparsity(density),
        "granularity": granularity,
        "scope": "matrix",
        "allocate": allocate,
        "reproduce": reproduce if layer_method.compensates else "layer",
        "calibration": describe_batches(batches),
    }
    step |= {"block_size": list(block_size)} if block_size else {}
    step |= {"round_to": round_to} if round_to else {}
    step |= {"densities": {key: float(share) for key, share in shares.items()}} if densities else {}
    before = weight_hash(model)
    measured = {
        "weights": before,
        "calibration": step["calibration"],
        "units": [granularity, block_size, round_to, sorted(targets)],
        "by": [layer_method.name, step["options"]] if by_units else list(FIXED_DENSITIES),
    }
    if curves is not None and allocate == "error":
        step["curves"] = measured["by"]
    saved = ProgressFile(checkpoint, {**step, "weights": before})
    if allocate == "error" and by_units:
        table = None
        if curves is not None:
            points = curves.points(measured, partial(table_by_weights, model, groups, batches, layer_method))
            table = {key: [Row(int(kept), *rest) for kept, *rest in rows] for key, rows in points.items()}
        targets = allocated_units(model, groups, targets, batches, layer_method, table=table)
    elif allocate == "error":
        by_key = None
        if curves is not None:
            points = curves.points(measured, partial(error_points, model, targets, batches))
            by_key = {key: ErrorCurve.through(*each) for key, each in points.items()}
        targets = allocated(model, targets, batches, by_key)
    run = LayerwiseRun(
        model, layer_method, targets, step["reproduce"] == "dense", magnitude_where_singular, saved
    )
    with evaluating(model), torch.no_grad():
        run.prune(segments_of(model, keys, batches), TokenFilter(batches), progress)
        masks = prune_sources_(model, groups, run.masks)
    origin = {**describe_model(model), "weights": before}
    if layer_method.compensates:
        origin |= {"weights": weight_hash(model), "dense_weights": before}
    return Ticket(
        {key: masks[key] for key in keys},
        metadata={
            **step,
            "errors": run.errors,
            "model": origin,
            "history": [{"operation": "prune_", **step}],
        },
    )


class _UnitProgress:
    """Reports layers of heads and neurons, with the time that the rest takes at the same pace."""

    def __init__(self, progress: Callable[[Report], None]) -> None:
        self._progress = progress
        self._began = time.monotonic()

    def __call__(self, key: str, error: float, sparsity: float, done: float) -> None:
        pace = (time.monotonic() - self._began) / done
        from sparsebert.one_shot.layerwise import Report

        self._progress(Report(key, error, sparsity, done, pace * (1 - done)))


def _require_layerwise(method: str, **options: Any) -> None:
    """Raise ValueError for an option that is set and belongs to methods that prune matrix by matrix."""
    for name, value in options.items():
        if value:
            raise ValueError(
                f"{name} does not apply to method {method}, which prunes all layers together: omit it"
            )


def find_one_shot(method: str | LayerMethod | UnitMethod | ModelMethod, **options: Any) -> Any:
    """Return the method of that name with these options; a method object is returned unchanged.

    Raises ValueError for an unknown name, TypeError for an unknown option.
    """
    import sparsebert.one_shot.all_methods  # noqa: F401  (registers the methods)
    from sparsebert.one_shot.prune_model import MODEL_METHODS
    from sparsebert.one_shot.prune_units import UNIT_METHODS

    registered = {**LAYER_METHODS, **UNIT_METHODS, **MODEL_METHODS}
    if isinstance(method, str) and method in registered:
        return registered[method](**options)
    if isinstance(method, str) and method in methods():
        raise ValueError(f"method {method!r} does not change weights and needs no calibration: call prune")
    if isinstance(method, str) or not any(map(partial(hasattr, method), _ENTRIES)):
        raise unknown("one-shot method", method, registered)
    return method


def _shares(
    keys: Sequence[str], density: Fraction, densities: Mapping[str, Number] | None
) -> dict[str, Fraction]:
    """Return the density of each matrix."""
    if unknown_keys := (densities or {}).keys() - set(keys):
        raise unknown("matrix in densities", min(unknown_keys), keys)
    shares = dict.fromkeys(keys, density)
    for key, share in (densities or {}).items():
        if isinstance(share, bool) or not 0 < share <= 1:
            raise ValueError(f"the density of {key} must be above 0 and at most 1, got {share!r}")
        shares[key] = Fraction(str(share))
    return shares
