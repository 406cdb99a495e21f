"""prune: the methods that need no training, from a model to a ticket."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import Structure, resolve, structure
from sparsebert.pruning.gates import GATED, GateSite, gate_sites
from sparsebert.pruning.gradients import loss_gradients
from sparsebert.pruning.granularity import (
    Granularity,
    keep_n_of_m,
    kinds_in,
    parse_granularity,
    spelled_out,
)
from sparsebert.pruning.methods.head_importance import gate_importance
from sparsebert.pruning.registry import Method, Subject, find_method
from sparsebert.pruning.top_k import ranked, select
from sparsebert.pruning.unit_groups import POOLING, SCOPES, UnitGroup, rivals, unit_groups
from sparsebert.tickets.provenance import describe_model, weight_hash
from sparsebert.tickets.ticket import Ticket, prunable, require_ticket
from sparsebert_kernels.errors import unknown

Number = float | Decimal | Fraction

_BIAS = ".bias"


def prune(
    model: nn.Module,
    method: str | Method = "magnitude",
    *,
    sparsity: Number | Mapping[str, Number] | None = None,
    granularity: str = "element",
    block_size: tuple[int, int] | None = None,
    scope: str = "global",
    pooling: str = "mean",
    seed: int = 0,
    include_pooler: bool = False,
    include_biases: bool = False,
    ticket: Ticket | None = None,
    data: Any = None,
) -> Ticket:
    """Choose which weights of the encoder matrices to keep; the model is only read.

    ``method``: a registered name ("magnitude", "random", "snip", "head-importance") or a method object with
    options of its own.
    ``sparsity``: share of all prunable weights to prune, in [0, 1), read as the decimal it is written as; or
    one for each kind of unit of a joined granularity, {"head": 0.25, "neuron": 0.4}, in a scope that lets
    each kind compete with its own alone (any but "global").
    ``granularity``: "element", "block" with ``block_size`` = (out, in) or for short "4x1", "row", "column",
    "neuron" (its row of the up- and its column of the down-projection of a feed-forward layer), "head" (its
    rows of query, key and value and its columns of the attention's output), "mlp" (a whole feed-forward
    layer, which the ticket then removes: its biases go too), "head+neuron" or "head+mlp", or n of m along
    in_features such as "2:4" (then sparsity may be left out, and the scope does not matter). With neurons,
    heads and MLPs only the matrices that have them are in the ticket and count; the others stay whole, and
    ``encoder_sparsity`` in the metadata is the share of all.
    ``scope``: one ranking over all matrices ("global"), one for each ("matrix"; for neurons and heads one for
    each layer) or one for each type ("type"; heads are of one type, neurons or MLPs of another);
    "heads-by-layer" is one of the heads of each layer, and one of all neurons or MLPs.
    ``pooling``: score of a unit from those of its weights: "mean", "rms" or "max".
    ``include_biases``: single biases compete with single weights in one ranking, all but those of the second
    feed-forward matrices, as Prasanna et al. 2020 prune by magnitude; the sparsity is then of both together.
    For magnitude and random, granularity "element" and scope "global".
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
    granularity, block_size = spelled_out(granularity, block_size)
    units = parse_granularity(granularity, block_size)
    density = _densities(sparsity, units)
    for kind, value, known in (("scope", scope, SCOPES), ("pooling rule", pooling, POOLING)):
        if value not in known:
            raise unknown(kind, value, known)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an int from 0 to 2**63 - 1, not {seed!r}")
    found = structure(model)
    names = prunable(model, include_pooler)
    shapes = {key: _weight(model, key).shape for key in names}
    groups = unit_groups(granularity, block_size, shapes, found)
    if scope == "matrix" and density != 1 and any(group.kind == "mlp" for group in groups):
        raise ValueError("in scope 'matrix' each MLP competes with itself alone: use 'type' or 'global'")
    touched = [key for key in names if any(key in group.parts for group in groups)]
    if include_pooler and found.pooler not in touched:
        raise ValueError(f"the pooler has no unit of granularity {granularity!r}: leave it out")
    alive = _alive(ticket, model, touched)
    weights = {key: _matrix(model, key, alive.get(key)) for key in touched}
    kinds = {group.name: group.kind for group in groups}
    biases: dict[str, Tensor] = {}
    live: dict[str, Tensor] = {}
    if include_biases:
        if not getattr(chosen, "scores_biases", False) or granularity != "element" or scope != "global":
            raise ValueError(
                "biases are pruned by magnitude or random, granularity 'element' and scope 'global', "
                f"not {chosen.name}, {granularity!r} and {scope!r}"
            )
        biases, live = _biases(model, [key for key in touched if found.types[key] != "ffn_down"], ticket)
    grids = {group.name: group.grid for group in groups} | {
        name: (1, len(b[0])) for name, b in biases.items()
    }
    subject = Subject({**weights, **biases}, grids, found, seed, kinds)
    if data is not None:
        dead = ticket.dead_biases() if ticket else {}
        subject = replace(
            subject,
            data=data,
            gradients=partial(loss_gradients, model, weights, data, dead),
            importance=partial(
                gate_importance, model, _sites(groups, found), data, weights=weights, dead_biases=dead
            ),
        )
    scores = chosen.scores(subject)
    del weights, subject
    rankings = {group.name: _unit_scores(scores, group, pooling, alive) for group in groups}
    masks: dict[str, Tensor] = {}
    bias_masks = dict(ticket.bias_masks) if ticket else {}
    if units.pattern:
        masks = {key: _n_of_m(rankings[key], alive.get(key), units.pattern, key) for key in touched}
    else:
        for competing in rivals(groups, scope, found.types):
            of_biases = [ranked(scores[name], live.get(name)) for name in biases]
            budget = _of(competing, density) * sum(
                (group.weights for group in competing), sum(map(Tensor.numel, of_biases))
            )
            kept = select(
                [*(rankings[group.name] for group in competing), *of_biases],
                [*(group.sizes for group in competing), *(1 for _ in of_biases)],
                budget,
            )
            for group, mask in zip(competing, kept, strict=False):
                masks |= group.expand(mask)
            for name, mask in zip(biases, kept[len(competing) :], strict=True):
                bias_masks[name.removesuffix(_BIAS)] = mask[0]
    removed = [key for group in groups if group.kind == "mlp" for key in group.parts if not masks[key].any()]
    if not any(mask.any() for mask in masks.values()):
        raise ValueError(f"sparsity {_asked(density)} would keep none of the weights")
    earlier = ticket.metadata if ticket else {}
    step = {
        "operation": "prune",
        "method": chosen.name,
        "options": {k: v for k, v in vars(chosen).items() if not isinstance(v, Mapping)},
        "sparsity": _asked(density),
        "granularity": granularity,
        "scope": scope,
        "pooling": pooling,
        "seed": seed,
    } | ({"block_size": list(block_size)} if block_size else {})
    step |= {"include_biases": True} if include_biases else {}
    origin = describe_model(model)
    origin["weights"] = earlier.get("model", {}).get("weights") or weight_hash(model)
    result = Ticket(
        {key: masks[key] for key in touched},
        bias_masks=bias_masks,
        removed=dict.fromkeys((*(ticket.removed if ticket else ()), *removed)),
        metadata={
            **{name: value for name, value in step.items() if name != "operation"},
            "model": origin,
            "history": [*earlier.get("history", []), step],
        },
    )
    if len(touched) < len(names):
        total = sum(math.prod(shape) for shape in shapes.values())
        pruned = sum(int((~mask).sum()) for mask in result.masks.values())
        result.metadata["encoder_sparsity"] = pruned / total
    result.check(model)
    _warn_of_collapse(result, getattr(chosen, "least_density", 0.0))
    return result


def kept_units(
    model: nn.Module,
    scores: Mapping[str, Tensor],
    sparsity: Number | Mapping[str, Number],
    granularity: str,
    scope: str = "global",
) -> dict[str, Tensor]:
    """The mask over units that :func:`prune` would make a ticket of, for units across matrices.

    ``scores``: float32 [units] by the key of the first matrix of their units; so is the mask, bool [units].
    """
    found = structure(model)
    shapes = {key: _weight(model, key).shape for key in found.linears}
    density = _densities(sparsity, parse_granularity(granularity))
    kept: dict[str, Tensor] = {}
    for competing in rivals(unit_groups(granularity, None, shapes, found), scope, found.types):
        budget = _of(competing, density) * sum(group.weights for group in competing)
        rankings = [ranked(scores[group.name]) for group in competing]
        masks = select(rankings, [group.sizes for group in competing], budget)
        kept |= {group.name: mask for group, mask in zip(competing, masks, strict=True)}
    return kept


def _sites(groups: Sequence[UnitGroup], structure: Structure) -> dict[str, GateSite]:
    """Where the gates of these units act; those of single matrices have none."""
    kinds = {group.kind for group in groups} & set(GATED)
    sites = {name: site for kind in kinds for name, site in gate_sites(structure, kind).items()}
    return {group.name: sites[group.name] for group in groups if group.name in sites}


def _warn_of_collapse(ticket: Ticket, least: float) -> None:
    thin = {key: 1 - share for key, share in ticket.layer_sparsity.items() if 1 - share < least}
    if thin:
        key = min(thin, key=thin.__getitem__)
        warnings.warn(
            f"layer collapse: {len(thin)} of {len(ticket.masks)} matrices keep less than {least:.0%}, "
            f"{key} {thin[key]:.2%}; a lower sparsity or scope='matrix' avoids that",
            stacklevel=3,
        )


def _densities(
    sparsity: Number | Mapping[str, Number] | None, units: Granularity
) -> Fraction | dict[str, Fraction]:
    """The density to keep, or that of each kind of unit."""
    if not isinstance(sparsity, Mapping):
        return _density(sparsity, units)
    kinds = kinds_in(units.name)
    if len(kinds) < 2 or sparsity.keys() != set(kinds):
        raise ValueError(
            f"shares of {' and '.join(sparsity)} do not fit granularity {units.name!r}: one for each kind of "
            "unit of a joined granularity, such as head and neuron of 'head+neuron', is expected"
        )
    return {kind: _density(sparsity[kind], units) for kind in kinds}


def _of(competing: Sequence[UnitGroup], density: Fraction | Mapping[str, Fraction]) -> Fraction:
    """The density of units that compete with each other."""
    if isinstance(density, Fraction):
        return density
    kinds = {group.kind for group in competing}
    if len(kinds) > 1:
        raise ValueError(
            f"{' and '.join(sorted(kinds))} compete with each other in scope 'global': shares of their own "
            "need another one, such as 'type' or 'heads-by-layer'"
        )
    return density[kinds.pop()]


def _asked(density: Fraction | Mapping[str, Fraction]) -> float | dict[str, float]:
    """The sparsity that a density stands for, in plain numbers."""
    if isinstance(density, Fraction):
        return float(1 - density)
    return {kind: float(1 - each) for kind, each in density.items()}


def _density(sparsity: Number | None, units: Granularity) -> Fraction:
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
    require_ticket(ticket)
    ticket.check(model)
    for key in ticket.masks:
        if key not in names:
            raise ValueError(f"the ticket masks {key}, which is not among the matrices to prune")
    return ticket.masks


def _weight(model: nn.Module, key: str) -> Tensor:
    weight = resolve(model, key).weight
    if not isinstance(weight, Tensor) or weight.is_meta:
        raise ValueError(f"{key} of {type(model).__name__} has no values")
    return weight.detach()


def _biases(
    model: nn.Module, keys: Sequence[str], ticket: Ticket | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """``<key>.bias`` -> float32 [1, out] on the CPU; and what the ticket keeps of those that it prunes."""
    own = {key: resolve(model, key)._parameters.get("bias") for key in keys}
    biases = {
        f"{key}{_BIAS}": bias.detach().to("cpu", torch.float32)[None]
        for key, bias in own.items()
        if bias is not None
    }
    for name, bias in biases.items():
        if torch.isnan(bias).any():
            raise ValueError(f"{name} of {type(model).__name__} holds NaN")
    dead = ticket.dead_biases() if ticket else {}
    return biases, {f"{key}{_BIAS}": ~each[None] for key, each in dead.items() if f"{key}{_BIAS}" in biases}


def _matrix(model: nn.Module, key: str, alive: Tensor | None) -> Tensor:
    # On the CPU whatever the device: sums over blocks round differently elsewhere.
    matrix = _weight(model, key).to("cpu", torch.float32)
    if alive is not None:
        matrix = matrix.masked_fill(~alive, 0)
    if torch.isnan(matrix).any():
        raise ValueError(f"{key}.weight of {type(model).__name__} holds NaN")
    return matrix


def _unit_scores(
    scores: dict[str, Tensor], group: UnitGroup, pooling: str, alive: dict[str, Tensor]
) -> Tensor:
    """The scores of a group's units, ready to be selected from; takes those of its matrices out."""
    own = {key: scores.pop(key) for key in group.parts if key in scores}
    by_unit = own[group.name].shape == group.grid
    pooled = own[group.name] if by_unit else group.pool(own, pooling)
    live = None
    if not alive.keys().isdisjoint(group.parts):
        live = group.whole({key: alive.get(key, torch.ones(group.shapes[key])) for key in group.parts})
    try:
        return ranked(pooled, live)
    except ValueError as error:
        raise ValueError(f"{group.name}: {error}") from None


def _n_of_m(scores: Tensor, alive: Tensor | None, pattern: tuple[int, int], key: str) -> Tensor:
    n, m = pattern
    if scores.shape[1] % m:
        raise ValueError(f"granularity '{n}:{m}' does not fit {key}: {scores.shape[1]} in_features")
    mask = keep_n_of_m(scores, n, m)
    if alive is not None and (mask & ~alive).any():
        raise ValueError(f"the ticket keeps fewer than {n} of {m} somewhere in {key}")
    return mask
