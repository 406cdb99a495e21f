"""Pruning in one shot: validate, group weights into units, score and select units, describe the ticket."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Size, Tensor, nn

from sparsebert.bert import Structure, structure
from sparsebert.linear_layers import Filter
from sparsebert.pruning.density import Density, Number, as_sparsity, density_of, parse_sparsity
from sparsebert.pruning.gates import GATED, GateSite, gate_sites
from sparsebert.pruning.gradients import loss_gradients
from sparsebert.pruning.granularity import PANEL, Granularity, keep_n_of_m, parse_granularity, spelled_out
from sparsebert.pruning.methods.head_importance import gate_importance
from sparsebert.pruning.panel_rounding import round_panels
from sparsebert.pruning.prunable_structure import prunable_structure
from sparsebert.pruning.read_matrices import BIAS, loaded_weight, read_biases, read_matrix
from sparsebert.pruning.registry import Method, ScoringContext, find_method
from sparsebert.pruning.top_k import ranked, select_top
from sparsebert.pruning.unit_groups import POOLING, SCOPES, UnitGroup, competition_groups, unit_groups
from sparsebert.tickets.provenance import describe_model, weight_hash
from sparsebert.tickets.ticket import Ticket, require_ticket
from sparsebert_kernels.errors import unknown


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
    filter: Filter | None = None,
    round_to: int | None = None,
) -> Ticket:
    """Choose which weights of a model's linear layers to keep; the model is only read.

    Of the n weights that compete, exactly k = round((1 - sparsity) * n) are kept, rounded half to even. Ties
    do not matter: units are ranked by their float32 score, then by position. Units of several weights
    are kept from the top as long as that brings the number of kept weights nearer to (1 - sparsity) * n. A
    unit at the edge of a matrix counts with its actual number of weights. Every device gives the same ticket.

    For neurons, heads and MLPs, the ticket contains, and the sparsity counts, only the matrices with such
    units. The other matrices stay whole, and ``encoder_sparsity`` in the metadata is the share of pruned
    weights among all encoder weights.

    Args:
        model: A model made of ``nn.Linear`` layers. Without a ``filter``, the encoder matrices of a BERT-like
            model are pruned, and in another model the linear layers in its stacks of layers: neither
            embeddings, pooler nor heads (see ``sparsebert.linear_layers.prunable``).
        method: A registered name ("magnitude", "random", "snip", "head-importance") or a method object, which
            carries its options.
        sparsity: Share of all prunable weights to prune, in [0, 1), read exactly as its decimal spelling. A
            joined granularity also takes one share for each kind of unit, {"head": 0.25, "neuron": 0.4}, in
            any scope but "global", where the kinds compete with each other.
        granularity: The unit of pruning: "element"; "block" with ``block_size``, or "4x1" for short; "panel"
            with ``block_size``, or "panel(32,2)" for short (blocks, of which each panel of 32 rows keeps a
            number that fills the kernels' tiles: see ``round_to``); "row"; "column"; "neuron" (its row of the
            up-projection and its column of the down-projection); "head" (its rows of query, key and value and
            its columns of the attention's output); "mlp" (a whole feed-forward layer, which the ticket
            removes with its biases); "head+neuron" or "head+mlp"; or n of m along in_features such as "2:4"
            (``sparsity`` may then be omitted, and ``scope`` has no effect). Heads and neurons of a model that
            is not BERT-like are located by running it once on made-up inputs or, if there are any, the first
            of ``data``. A neuron with a gate includes the gate's row; where query heads share a key and value
            head, all of them form one head.
        block_size: (out, in) of a block.
        scope: The units that compete: all ("global"); those of each matrix ("matrix"; for neurons and heads,
            of each layer); those of matrices of one type ("type"; heads are one type, neurons or MLPs
            another); or the heads of each layer, and all neurons or MLPs together ("heads-by-layer").
        pooling: Rule that combines the scores of a unit's weights: "mean", "rms" or "max".
        seed: Seed for methods that draw random numbers, 0 to 2**63 - 1.
        include_pooler: Prune the pooler's matrix too.
        include_biases: Rank biases, except the down-projections', together with the weights, as in the
            magnitude pruning of Prasanna et al. 2020; the sparsity counts both. Only for methods magnitude
            and random, granularity "element" and scope "global".
        ticket: An earlier ticket to prune further. Its pruned weights stay pruned and count as pruned,
            whatever their values.
        data: Batches (keyword arguments for the model, with labels), for methods that need examples.
        filter: ``filter(name, linear) -> bool`` selects the layers to prune among all linear layers of the
            model, in place of the default.
        round_to: For panels: each panel keeps a multiple of this number of columns, or all of them. None
            for 32, the quantum of bf16 kernels, with groups of 1 or 2 columns, and for 64, the quantum of
            int8 kernels, with wider ones. Rounding moves the kept weights of a matrix by at most one
            quantum of one panel; :func:`sparsebert.pruning.panel_rounding.round_panels` defines it exactly.
            ``sparsity_reached`` in the metadata is the sparsity after rounding.

    Raises:
        ValueError: A name is unknown (the message offers the nearest); the sparsity is outside [0, 1) or
            would keep nothing; blocks or patterns do not fit; a weight is NaN (the message names the matrix);
            the model has no such layers or units; or the ``ticket`` belongs to another model or granularity,
            or keeps less than requested.
    """
    request = _validate(
        method,
        sparsity=sparsity,
        granularity=granularity,
        block_size=block_size,
        scope=scope,
        pooling=pooling,
        seed=seed,
        include_biases=include_biases,
        ticket=ticket,
        round_to=round_to,
    )
    pool = _group(model, request, include_pooler, filter, data)
    scores = _score(model, request, pool, data)
    masks, bias_masks = _select(request, pool, scores)
    pruned = _describe(model, request, pool, masks, bias_masks)
    _warn_of_collapse(pruned, getattr(request.method, "least_density", 0.0))
    return pruned


def kept_units(
    model: nn.Module,
    scores: Mapping[str, Tensor],
    sparsity: Number | Mapping[str, Number],
    granularity: str,
    scope: str = "global",
) -> dict[str, Tensor]:
    """Return the mask over units that :func:`prune` would put into a ticket, for units across matrices.

    Args:
        model: A BERT-like model.
        scores: float32 [units], by the key of the units' first matrix.
        sparsity: As for :func:`prune`.
        granularity: "neuron", "head", "mlp" or two of them joined.
        scope: As for :func:`prune`.

    Returns:
        bool [units], True = keep, by the keys of ``scores``.
    """
    encoder = structure(model)
    shapes = {key: loaded_weight(model, key).shape for key in encoder.linears}
    density = parse_sparsity(sparsity, parse_granularity(granularity))
    kept: dict[str, Tensor] = {}
    for competing in competition_groups(
        unit_groups(granularity, None, shapes, encoder), scope, encoder.types
    ):
        budget = density_of(competing, density) * sum(group.weights for group in competing)
        rankings = [ranked(scores[group.name]) for group in competing]
        masks = select_top(rankings, [group.sizes for group in competing], budget)
        kept |= {group.name: mask for group, mask in zip(competing, masks, strict=True)}
    return kept


@dataclass(frozen=True)
class _Request:
    """The options of a call of :func:`prune`, checked and parsed."""

    method: Method
    granularity: str
    block_size: tuple[int, int] | None
    units: Granularity
    density: Density
    scope: str
    pooling: str
    seed: int
    include_biases: bool
    ticket: Ticket | None
    round_to: int | None


@dataclass(frozen=True)
class _Pool:
    """The prunable weights of a model, cut into units.

    Attributes:
        structure: Structure of the model.
        shapes: key -> [out, in] of every prunable matrix.
        groups: The units of these matrices.
        keys: The matrices that have such units, in model order.
        earlier: key -> mask of the earlier ticket; empty without one.
    """

    structure: Structure
    shapes: Mapping[str, Size]
    groups: Sequence[UnitGroup]
    keys: Sequence[str]
    earlier: Mapping[str, Tensor]


def _validate(
    method: str | Method,
    *,
    sparsity: Number | Mapping[str, Number] | None,
    granularity: str,
    block_size: tuple[int, int] | None,
    scope: str,
    pooling: str,
    seed: int,
    include_biases: bool,
    ticket: Ticket | None,
    round_to: int | None,
) -> _Request:
    """Check the options that do not depend on the model."""
    scorer = find_method(method)
    granularity, block_size = spelled_out(granularity, block_size)
    units = parse_granularity(granularity, block_size, round_to)
    if granularity == PANEL and block_size is not None:
        round_to = units.quantum * block_size[1]
    density = parse_sparsity(sparsity, units)
    for kind, value, names in (("scope", scope, SCOPES), ("pooling rule", pooling, POOLING)):
        if value not in names:
            raise unknown(kind, value, names)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an int from 0 to 2**63 - 1, got {seed!r}")
    scores_biases = getattr(scorer, "scores_biases", False) and granularity == "element" and scope == "global"
    if include_biases and not scores_biases:
        raise ValueError(
            "include_biases needs method magnitude or random, granularity 'element' and scope 'global', "
            f"got {scorer.name}, {granularity!r} and {scope!r}"
        )
    if ticket is not None:
        require_ticket(ticket)
    return _Request(
        scorer,
        granularity,
        block_size,
        units,
        density,
        scope,
        pooling,
        seed,
        include_biases,
        ticket,
        round_to,
    )


def _group(
    model: nn.Module, request: _Request, include_pooler: bool, filter: Filter | None, data: Any
) -> _Pool:
    """Cut the prunable matrices into units."""
    encoder, prunable = prunable_structure(
        model, request.granularity, include_pooler=include_pooler, filter=filter, data=data
    )
    shapes = {key: loaded_weight(model, key).shape for key in prunable}
    groups = unit_groups(request.granularity, request.block_size, shapes, encoder, request.round_to)
    if request.scope == "matrix" and request.density != 1 and any(group.kind == "mlp" for group in groups):
        raise ValueError("scope 'matrix' leaves each MLP without a competitor: use 'type' or 'global'")
    keys = [key for key in shapes if any(key in group.parts for group in groups)]
    if include_pooler and encoder.pooler not in keys:
        raise ValueError(
            f"the pooler has no unit of granularity {request.granularity!r}: omit include_pooler"
        )
    earlier: Mapping[str, Tensor] = {}
    if request.ticket is not None:
        request.ticket.check(model)
        earlier = request.ticket.masks
        for key in earlier:
            if key not in keys:
                raise ValueError(f"the ticket masks {key}, which is not among the matrices to prune")
    return _Pool(encoder, shapes, groups, keys, earlier)


def _score(model: nn.Module, request: _Request, pool: _Pool, data: Any) -> dict[str, Tensor]:
    """Return scores, prepared by :func:`ranked`: of units by group name, of biases by ``<key>.bias``."""
    weights = {key: read_matrix(model, key, pool.earlier.get(key)) for key in pool.keys}
    dead_biases = request.ticket.dead_biases() if request.ticket else {}
    biases: dict[str, Tensor] = {}
    if request.include_biases:
        types = pool.structure.types
        biases = read_biases(model, [key for key in pool.keys if types[key] != "ffn_down"])
    grids = {group.name: group.grid for group in pool.groups}
    context = ScoringContext(
        {**weights, **biases},
        grids | {name: (1, bias.shape[1]) for name, bias in biases.items()},
        pool.structure,
        request.seed,
        {group.name: group.kind for group in pool.groups},
    )
    if data is not None:
        context = replace(
            context,
            data=data,
            gradients=partial(loss_gradients, model, weights, data, dead_biases),
            importance=partial(
                gate_importance, model, _sites(pool), data, weights=weights, dead_biases=dead_biases
            ),
        )
    scores = request.method.scores(context)
    del weights, context  # as large as the scores
    live = {f"{key}{BIAS}": ~dead[None] for key, dead in dead_biases.items()}
    of_biases = {name: ranked(scores.pop(name), live.get(name)) for name in biases}
    return {group.name: _unit_scores(scores, group, request, pool) for group in pool.groups} | of_biases


def _select(
    request: _Request, pool: _Pool, scores: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Keep the units with the highest scores; return masks [out, in] and bias masks [out] by key."""
    masks: dict[str, Tensor] = {}
    bias_masks = dict(request.ticket.bias_masks) if request.ticket else {}
    if request.units.pattern:
        masks = {key: _n_of_m(scores[key], request.units.pattern, key, pool) for key in pool.keys}
    else:
        biases = [name for name in scores if name.endswith(BIAS)]
        for competing in competition_groups(pool.groups, request.scope, pool.structure.types):
            weights = sum(group.weights for group in competing) + sum(scores[name].numel() for name in biases)
            kept = select_top(
                [scores[name] for name in (*(group.name for group in competing), *biases)],
                [*(group.sizes for group in competing), *(1 for _ in biases)],
                density_of(competing, request.density) * weights,
            )
            whole = round_panels(
                competing, [scores[group.name] for group in competing], kept[: len(competing)]
            )
            for group, units in zip(competing, whole, strict=True):
                masks |= group.expand(units)
            for name, units in zip(biases, kept[len(competing) :], strict=True):
                bias_masks[name.removesuffix(BIAS)] = units[0]
    if not any(mask.any() for mask in masks.values()):
        rounding = f", rounded to {request.round_to} columns of a panel" if request.round_to else ""
        raise ValueError(f"sparsity {as_sparsity(request.density)} would keep none of the weights{rounding}")
    return masks, bias_masks


def _describe(
    model: nn.Module,
    request: _Request,
    pool: _Pool,
    masks: Mapping[str, Tensor],
    bias_masks: Mapping[str, Tensor],
) -> Ticket:
    """Make the ticket of these masks, with its provenance."""
    step: dict[str, Any] = {
        "method": request.method.name,
        "options": {k: v for k, v in vars(request.method).items() if not isinstance(v, Mapping)},
        "sparsity": as_sparsity(request.density),
        "granularity": request.granularity,
        "scope": request.scope,
        "pooling": request.pooling,
        "seed": request.seed,
    }
    step |= {"block_size": list(request.block_size)} if request.block_size else {}
    if request.round_to:
        total = sum(mask.numel() for mask in masks.values())
        zeros = total - sum(int(mask.count_nonzero()) for mask in masks.values())
        step |= {"round_to": request.round_to, "sparsity_reached": zeros / total}
    step |= {"include_biases": True} if request.include_biases else {}
    earlier = request.ticket.metadata if request.ticket else {}
    origin = describe_model(model)
    origin["weights"] = earlier.get("model", {}).get("weights") or weight_hash(model)
    mlps = [key for group in pool.groups if group.kind == "mlp" for key in group.parts]
    removed_modules = [key for key in mlps if not masks[key].any()]
    ticket = Ticket(
        {key: masks[key] for key in pool.keys},
        bias_masks=bias_masks,
        removed=dict.fromkeys((*(request.ticket.removed if request.ticket else ()), *removed_modules)),
        metadata={
            **step,
            "model": origin,
            "history": [*earlier.get("history", []), {"operation": "prune", **step}],
        },
    )
    if len(pool.keys) < len(pool.shapes):
        total = sum(math.prod(shape) for shape in pool.shapes.values())
        pruned = sum(int((~mask).sum()) for mask in ticket.masks.values())
        ticket.metadata["encoder_sparsity"] = pruned / total
    ticket.check(model)
    return ticket


def _sites(pool: _Pool) -> dict[str, GateSite]:
    """Return the gates of the units, by group; units of single matrices have none."""
    kinds = {group.kind for group in pool.groups} & set(GATED)
    sites = {
        name: site for kind in kinds for name, site in gate_sites(pool.structure, kind, pool.shapes).items()
    }
    return {group.name: sites[group.name] for group in pool.groups if group.name in sites}


def _unit_scores(scores: dict[str, Tensor], group: UnitGroup, request: _Request, pool: _Pool) -> Tensor:
    """Return the scores of a group's units, prepared by :func:`ranked`.

    The scores of the group's matrices are removed from ``scores``, which frees their memory.
    """
    of_weights = {key: scores.pop(key) for key in group.parts if key in scores}
    by_unit = of_weights[group.name].shape == group.grid
    pooled = of_weights[group.name] if by_unit else group.pool(of_weights, request.pooling)
    live = None
    if not pool.earlier.keys().isdisjoint(group.parts):
        live = group.whole({key: pool.earlier.get(key, torch.ones(group.shapes[key])) for key in group.parts})
    try:
        return ranked(pooled, live)
    except ValueError as error:
        raise ValueError(f"{group.name}: {error}") from None


def _n_of_m(scores: Tensor, pattern: tuple[int, int], key: str, pool: _Pool) -> Tensor:
    n, m = pattern
    if scores.shape[1] % m:
        raise ValueError(
            f"granularity '{n}:{m}' does not fit {key}: in_features must be a multiple of {m}, "
            f"got {scores.shape[1]}"
        )
    mask = keep_n_of_m(scores, n, m)
    earlier = pool.earlier.get(key)
    if earlier is not None and (mask & ~earlier).any():
        raise ValueError(
            f"the ticket keeps fewer than {n} of {m} neighbours in {key}: use a ticket that keeps more"
        )
    return mask


def _warn_of_collapse(ticket: Ticket, least: float) -> None:
    thin = {key: 1 - share for key, share in ticket.layer_sparsity.items() if 1 - share < least}
    if thin:
        key = min(thin, key=thin.__getitem__)
        warnings.warn(
            f"layer collapse: {len(thin)} of {len(ticket.masks)} matrices keep less than {least:.0%}, "
            f"{key} {thin[key]:.2%}; use a lower sparsity or scope='matrix'",
            stacklevel=3,
        )
