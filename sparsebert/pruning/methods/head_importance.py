"""Importance of heads, neurons and whole MLPs: the first-order change of the loss with their gates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsebert.pruning.gates import GATED, GateSite, gated
from sparsebert.pruning.gradients import evaluating, loss_of, on_device, placed, without
from sparsebert.pruning.registry import ScoringContext, register

# Avoids a division by zero in a layer without gradient, as in the published code.
_TINY = 1e-20


def gate_importance(
    model: nn.Module,
    sites: Mapping[str, GateSite],
    batches: Any,
    *,
    weights: Mapping[str, Tensor] | None = None,
    dead_biases: Mapping[str, Tensor] | None = None,
    gates: Mapping[str, Tensor] | None = None,
    accumulate: bool = False,
    per_example: bool = False,
    per_token: bool = False,
    equal_batches: bool = False,
) -> dict[str, Tensor]:
    """Return the sum over batches of abs(dL/dgate), divided by the number of tokens.

    This is equation 2 of Michel et al. 2019 as Prasanna et al. 2020 compute it. Dropout is off, and the model
    does not change.

    Args:
        model: The model.
        sites: The gates to score.
        batches: Mappings of keyword arguments for the model, with labels. The number of tokens is taken from
            ``attention_mask``; without one, all tokens count.
        weights: key -> [out, in]: weights that replace the model's.
        dead_biases: key -> bool [out], True = pruned; these biases count as 0.
        gates: Values of the gates at which to take the gradients; 1 everywhere by default.
        accumulate: Sum the gradients over the batches so far before the absolute value is taken: sum over b
            of abs(sum over b' <= b of dL/dgate). The published code never clears the gradient of its masks.
        per_example: Take the absolute value for each example, not for the mean of each batch, so that the
            batch size does not matter. For losses that are means over the examples of a batch.
        per_token: Take the absolute value for each token's part of the gradient, x_t . dL/dx_t, as Michel et
            al. and Liang et al. 2021 compute it; ``accumulate`` then adds up absolute values. The loss must
            be a mean, as for ``per_example``.
        equal_batches: With ``per_example`` or ``per_token``: every batch has the same weight, whatever its
            number of examples, and the sum is divided by the number of batches, as in the published code of
            Liang et al. The examples of a short last batch then count more.

    Returns:
        float64 [gates] of each site.

    Raises:
        ValueError: There is no batch, a batch gives no loss, ``per_example`` is combined with
            ``accumulate`` or ``per_token``, or ``equal_batches`` with neither of the two.
    """
    if accumulate and per_example:
        raise ValueError(
            "accumulate sums gradients over batches, per_example takes one an example: choose one of them"
        )
    if per_token and per_example:
        raise ValueError(
            "per_example takes one gradient an example, per_token one a token: choose one of them"
        )
    if equal_batches and not (per_token or per_example):
        raise ValueError(
            "equal_batches needs per_token or per_example: whole batches have equal weights anyway"
        )
    like = next(model.parameters())
    values = {
        name: torch.ones(site.count(model)) if gates is None else gates[name].detach()
        for name, site in sites.items()
    }
    totals = {name: torch.zeros(len(value), dtype=torch.float64) for name, value in values.items()}
    sums = {name: torch.zeros_like(total) for name, total in totals.items()}
    replaced, biases = placed(model, weights or {}), without(model, dead_biases or {})
    tokens = count = 0
    with evaluating(model), torch.enable_grad():
        for inputs in on_device(model, batches):
            mask = inputs.get("attention_mask")
            size = next(x.shape for x in inputs.values() if isinstance(x, Tensor) and x.dim() > 1)
            tokens += size[0] * size[1] if mask is None else int(mask.sum())
            count += 1
            apart = size[:2] if per_token else size[:1] if per_example else ()
            leaves = {
                name: value.to(like.device, like.dtype).expand(*apart, -1).clone().requires_grad_()
                for name, value in values.items()
            }
            with gated(model, sites, leaves):
                loss = loss_of(model, replaced, biases, inputs)
            for name, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
                change = gradient.to("cpu", torch.float64)
                if apart:
                    change = change.abs().flatten(0, -2).sum(0) * (1 if equal_batches else size[0])
                sums[name] = sums[name] + change if accumulate else change
                totals[name] += sums[name].abs()
    return {name: total / (count if equal_batches else tokens) for name, total in totals.items()}


def normalised(
    importance: Mapping[str, Tensor],
    kinds: Mapping[str, str],
    *,
    by_layer: bool = True,
    min_max: bool = True,
) -> dict[str, Tensor]:
    """Make importance comparable between layers and kinds, as Michel et al. 2019 and Prasanna et al. 2020 do.

    Args:
        importance: Site -> [units].
        kinds: Site -> kind of unit.
        by_layer: Divide by the L2 norm over the units of a layer (+ 1e-20), except for whole MLPs, of which a
            layer has one.
        min_max: Then map all units of one kind onto [0, 1].

    Raises:
        ValueError: ``min_max`` is set and all units of a kind are equally important.
    """
    result = {
        name: each / (each.norm() + _TINY) if by_layer and kinds[name] != "mlp" else each
        for name, each in importance.items()
    }
    if not min_max:
        return result
    of_kind: dict[str, list[str]] = defaultdict(list)
    for name in result:
        of_kind[kinds[name]].append(name)
    for kind, names in of_kind.items():
        every = torch.cat([result[name] for name in names])
        low, high = every.min(), every.max()
        if not low < high:
            raise ValueError(
                f"every {kind} has importance {float(high):g}, so they cannot be ranked: is the model "
                "trained, and do its gates affect the loss?"
            )
        result |= {name: (result[name] - low) / (high - low) for name in names}
    return result


@register("head-importance")
@dataclass(frozen=True)
class HeadImportance:
    """Score heads, neurons or whole MLPs by abs(dL/dgate) summed over batches.

    Michel et al. 2019, "Are Sixteen Heads Really Better than One?", equation 2; Prasanna et al. 2020, "When
    BERT Plays the Lottery, All Tickets Are Winning"; for ``keep_a_head`` Liang et al. 2021, "Super Tickets in
    Pre-Trained Language Models". The method scores granularities head, neuron, mlp and their combinations
    ("head+mlp") on a fine-tuned model. Use training data: the published search uses the examples that it
    reports on.

    Attributes:
        accumulate, per_example, per_token: See :func:`gate_importance`.
        by_layer, min_max: See :func:`normalised`.
        keep_a_head: Rank the most important head of each layer before all others, so that a layer loses its
            last head only if the sparsity does not allow one for each layer.

    Raises:
        ValueError: The granularity is another one, or there is no data; see also these two functions.
    """

    name: ClassVar[str]
    accumulate: bool = False
    per_example: bool = False
    per_token: bool = False
    by_layer: bool = True
    min_max: bool = True
    keep_a_head: bool = False

    def scores(self, context: ScoringContext) -> dict[str, Tensor]:
        if wrong := sorted(set(context.kinds.values()) - set(GATED)):
            raise ValueError(
                f"head-importance scores {', '.join(GATED)} or several of them (head+mlp), "
                f"not granularity {wrong[0]!r}"
            )
        importance = context.importance(
            accumulate=self.accumulate, per_example=self.per_example, per_token=self.per_token
        )
        ready = normalised(importance, context.kinds, by_layer=self.by_layer, min_max=self.min_max)
        scores = {name: each.float().view(context.units[name]) for name, each in ready.items()}
        if self.keep_a_head:
            for name, score in scores.items():
                if context.kinds[name] == "head":
                    score.view(-1)[score.argmax()] = torch.inf
        return scores
