"""prune: the methods that need no training, from a model to a ticket."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import Structure, resolve, structure
from sparsebert.provenance import describe_model, weight_hash
from sparsebert.pruning.gradients import loss_gradients
from sparsebert.pruning.granularity import POOLING, Granularity, keep_n_of_m, parse_granularity
from sparsebert.pruning.registry import Method, Subject, find_method
from sparsebert.pruning.select import ordered_keys, select
from sparsebert.ticket import Ticket, prunable
from sparsebert_kernels.names import unknown

_SCOPES = ("global", "matrix", "type")


def prune(
    model: nn.Module,
    method: str | Method = "magnitude",
    *,
    sparsity: float | Decimal | Fraction | None = None,
    granularity: str = "element",
    block_size: tuple[int, int] | None = None,
    scope: str = "global",
    pooling: str = "mean",
    seed: int = 0,
    include_pooler: bool = False,
    ticket: Ticket | None = None,
    data: Any = None,
) -> Ticket:
    """Choose which weights of the encoder matrices to keep; the model is only read.

    ``method``: a registered name ("magnitude", "random", "snip") or a method object with options of its own.
    ``sparsity``: share of all prunable weights to prune, in [0, 1), read as the decimal it is written as.
    ``granularity``: "element", "block" with ``block_size`` = (out, in), "row", "column", or n of m along
    in_features such as "2:4" (then sparsity may be left out, and the scope does not matter).
    ``scope``: one ranking over all matrices ("global"), one for each ("matrix") or one for each type
    ("type").
    ``pooling``: score of a unit from those of its weights: "mean", "rms" or "max".
    ``ticket``: prune further; what it prunes stays pruned and counts as pruned, whatever its value.
    ``data``: batches (keyword arguments for the model, with labels), for methods that look at examples.

    Of n weights in a scope exactly k = round((1 - sparsity) * n) are kept, half to even, for any ties: units
    are ranked by their float32 score, then by position. Units of several weights are kept from the top as
    long as that brings the number of kept weights nearer to (1 - sparsity) * n; a unit at the edge of a
    matrix counts with the weights that it has. The same ticket comes out on every device.

    Raises ValueError for unknown names (nearest offered), a sparsity outside [0, 1) or one that would keep
    nothing, blocks or patterns that do not fit, NaN weights (naming the matrix), a model that is no BERT, and
    a ``ticket`` of another model or granularity or one that keeps less than asked for.
    """
    chosen = find_method(method)
    units = parse_granularity(granularity, block_size)
    density = _density(sparsity, units)
    for kind, value, known in (("scope", scope, _SCOPES), ("pooling rule", pooling, POOLING)):
        if value not in known:
            raise unknown(kind, value, known)
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an int from 0 to 2**63 - 1, not {seed!r}")
    found = structure(model)
    names = prunable(model, include_pooler)
    alive = _alive(ticket, model, names)
    weights = {key: _matrix(model, key, alive.get(key)) for key in names}
    shapes = {key: weight.shape for key, weight in weights.items()}
    grids = {key: units.units(shape) for key, shape in shapes.items()}
    subject = Subject(weights, grids, found, seed)
    if data is not None:
        subject = replace(subject, data=data, gradients=partial(loss_gradients, model, weights, data))
    scores = chosen.scores(subject)
    del weights, subject
    keys = {}
    for key in names:
        live = _live_units(alive[key], units, key) if key in alive else None
        keys[key] = _unit_keys(scores.pop(key), grids[key], units, pooling, live, key)
    if units.pattern:
        masks = {key: _n_of_m(keys[key], alive.get(key), units.pattern, key) for key in names}
    else:
        masks = {}
        for group in _groups(names, scope, found):
            budget = density * sum(math.prod(shapes[key]) for key in group)
            kept = select([keys[key] for key in group], [units.sizes(shapes[key]) for key in group], budget)
            masks |= {key: units.expand(mask, shapes[key]) for key, mask in zip(group, kept, strict=True)}
    if not any(mask.any() for mask in masks.values()):
        raise ValueError(f"sparsity {sparsity} would keep none of the weights")
    earlier = ticket.metadata if ticket else {}
    step = {
        "operation": "prune",
        "method": chosen.name,
        "options": vars(chosen),
        "sparsity": float(1 - density),
        "granularity": granularity,
        "scope": scope,
        "pooling": pooling,
        "seed": seed,
    } | ({"block_size": list(block_size)} if block_size else {})
    origin = describe_model(model)
    origin["weights"] = earlier.get("model", {}).get("weights") or weight_hash(model)
    result = Ticket(
        {key: masks[key] for key in names},
        bias_masks=ticket.bias_masks if ticket else None,
        removed=ticket.removed if ticket else (),
        metadata={
            **{name: value for name, value in step.items() if name != "operation"},
            "model": origin,
            "history": [*earlier.get("history", []), step],
        },
    )
    result.check(model)
    _warn_of_collapse(result, getattr(chosen, "least_density", 0.0))
    return result


def _warn_of_collapse(ticket: Ticket, least: float) -> None:
    thin = {key: 1 - share for key, share in ticket.layer_sparsity.items() if 1 - share < least}
    if thin:
        key = min(thin, key=thin.__getitem__)
        warnings.warn(
            f"layer collapse: {len(thin)} of {len(ticket.masks)} matrices keep less than {least:.0%}, "
            f"{key} {thin[key]:.2%}; a lower sparsity or scope='matrix' avoids that",
            stacklevel=3,
        )


def _density(sparsity: float | Decimal | Fraction | None, units: Granularity) -> Fraction:
    if units.pattern:
        n, m = units.pattern
        if sparsity is not None and abs(float(sparsity) - (1 - n / m)) > 1e-6:
            raise ValueError(f"granularity '{n}:{m}' means sparsity {1 - n / m:.6g}, not {sparsity}")
        return Fraction(n, m)
    if sparsity is None:
        raise ValueError("sparsity is missing: the share of weights to prune, in [0, 1)")
    if isinstance(sparsity, bool) or not isinstance(sparsity, (Real, Decimal)) or not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be a number in [0, 1), not {sparsity!r}")
    # Through its decimal spelling: the float 0.29 is a little less than 29 %.
    return 1 - Fraction(str(sparsity))


def _alive(ticket: Ticket | None, model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    if ticket is None:
        return {}
    ticket.check(model)
    for key in ticket.masks:
        if key not in names:
            raise ValueError(f"the ticket masks {key}, which is not among the matrices to prune")
    return ticket.masks


def _matrix(model: nn.Module, key: str, alive: Tensor | None) -> Tensor:
    weight = resolve(model, key).weight
    if not isinstance(weight, Tensor) or weight.is_meta:
        raise ValueError(f"{key} of {type(model).__name__} has no values")
    # On the CPU whatever the device: sums over blocks round differently elsewhere.
    matrix = weight.detach().to("cpu", torch.float32)
    if alive is not None:
        matrix = matrix.masked_fill(~alive, 0)
    if torch.isnan(matrix).any():
        raise ValueError(f"{key}.weight of {type(model).__name__} holds NaN")
    return matrix


def _live_units(alive: Tensor, units: Granularity, key: str) -> Tensor:
    live = units.pool(alive.float(), "mean")
    if ((live > 0) & (live < 1)).any():
        raise ValueError(f"the ticket prunes parts of units of {key}: it was made at another granularity")
    return live > 0


def _unit_keys(
    scores: Tensor,
    grid: tuple[int, int],
    units: Granularity,
    pooling: str,
    live: Tensor | None,
    key: str,
) -> Tensor:
    pooled = scores if scores.shape == grid else units.pool(scores, pooling)
    try:
        return ordered_keys(pooled, live)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _n_of_m(keys: Tensor, alive: Tensor | None, pattern: tuple[int, int], key: str) -> Tensor:
    n, m = pattern
    if keys.shape[1] % m:
        raise ValueError(f"granularity '{n}:{m}' does not fit {key}: {keys.shape[1]} in_features")
    mask = keep_n_of_m(keys, n, m)
    if alive is not None and (mask & ~alive).any():
        raise ValueError(f"the ticket keeps fewer than {n} of {m} somewhere in {key}")
    return mask


def _groups(names: Sequence[str], scope: str, found: Structure) -> list[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for key in names:
        groups[{"global": "", "matrix": key, "type": found.types[key]}[scope]].append(key)
    return list(groups.values())
