"""Importance of heads, neurons and whole MLPs: how the loss changes with their gates, to first order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsebert.pruning.gates import GATED, GateSite, gated
from sparsebert.pruning.gradients import evaluating, loss_of, on_device, placed, without
from sparsebert.pruning.registry import Subject, register

# The sources' own: keeps a layer without any gradient from being divided by zero.
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
) -> dict[str, Tensor]:
    """Sum over batches of abs(dL/dgate), divided by the number of tokens: float64 [gates] of each site.

    Equation 2 of Michel et al. 2019 as Prasanna et al. 2020 compute it. ``batches``: mappings of keyword
    arguments for the model, labels among them; tokens are those of ``attention_mask``, or all. ``gates``:
    where the gradients are taken, 1 everywhere by default. ``weights``: key -> [out, in] to take instead of
    the model's; ``dead_biases``: key -> bool [out] of biases to take as 0. Dropout is off, and the model
    stays as it is.

    ``accumulate``: the published code never clears the gradient of its masks, so that batch b counts with the
    sum of the gradients up to it: sum over b of abs(sum over b' <= b of dL/dgate).
    ``per_example``: the absolute value of each example's gradient, and not that of each batch's mean, so that
    the batch size does not matter. For losses that are means over the examples of a batch.
    ``per_token``: the absolute value of each token's part of the gradient, x_t . dL/dx_t, as Michel et al.
    and Liang et al. 2021 compute it; here ``accumulate`` adds up absolute values. Else as ``per_example``.

    Raises ValueError if there is no batch, one without a loss, for ``per_example`` with one of the others.
    """
    if accumulate and per_example:
        raise ValueError("accumulate adds up the gradients of batches, per_example has one of each example")
    if per_token and per_example:
        raise ValueError(
            "per_example adds up the gradients of an example's tokens, per_token has one of each"
        )
    like = next(model.parameters())
    values = {
        name: torch.ones(site.count(model)) if gates is None else gates[name].detach()
        for name, site in sites.items()
    }
    totals = {name: torch.zeros(len(value), dtype=torch.float64) for name, value in values.items()}
    sums = {name: torch.zeros_like(total) for name, total in totals.items()}
    replaced, biases = placed(model, weights or {}), without(model, dead_biases or {})
    tokens = 0
    with evaluating(model), torch.enable_grad():
        for inputs in on_device(model, batches):
            mask = inputs.get("attention_mask")
            size = next(x.shape for x in inputs.values() if isinstance(x, Tensor) and x.dim() > 1)
            tokens += size[0] * size[1] if mask is None else int(mask.sum())
            apart = size[:2] if per_token else size[:1] if per_example else ()
            leaves = {
                name: value.to(like.device, like.dtype).expand(*apart, -1).clone().requires_grad_()
                for name, value in values.items()
            }
            with gated(model, sites, leaves):
                loss = loss_of(model, replaced, biases, inputs)
            for name, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
                found = gradient.to("cpu", torch.float64)
                if apart:
                    found = found.abs().flatten(0, -2).sum(0) * size[0]
                sums[name] = sums[name] + found if accumulate else found
                totals[name] += sums[name].abs()
    return {name: total / tokens for name, total in totals.items()}


def normalised(
    importance: Mapping[str, Tensor],
    kinds: Mapping[str, str],
    *,
    by_layer: bool = True,
    min_max: bool = True,
) -> dict[str, Tensor]:
    """Importance made comparable, as Michel et al. 2019 and Prasanna et al. 2020 do it.

    ``by_layer``: divided by the L2 norm over the units of a layer (+ 1e-20), but for whole MLPs, of which a
    layer has one. ``min_max``: then all units of one kind mapped onto [0, 1]. ``kinds``: site -> kind.

    Raises ValueError where all units of a kind are equally important, for which [0, 1] has no meaning.
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
                f"every {kind} has importance {float(high):g}: there is nothing to rank (is the model "
                "trained, and do its gates reach the loss?)"
            )
        result |= {name: (result[name] - low) / (high - low) for name in names}
    return result


@register("head-importance")
@dataclass(frozen=True)
class HeadImportance:
    """Score heads, neurons or whole MLPs by abs(dL/dgate) summed over batches: Michel et al. 2019, "Are
    Sixteen Heads Really Better than One?", equation 2; Prasanna et al. 2020, "When BERT Plays the Lottery,
    All Tickets Are Winning"; with ``keep_a_head`` Liang et al. 2021, "Super Tickets in Pre-Trained Language
    Models".

    For granularities head, neuron, mlp and those joined ("head+mlp"), on a fine-tuned model, on training
    data: the published search looks at the very examples that it reports. ``accumulate``, ``per_example`` and
    ``per_token`` as :func:`gate_importance` takes them, ``by_layer`` and ``min_max`` as :func:`normalised`.
    ``keep_a_head``: the most important head of each layer comes before all others, so that a layer loses its
    last head only where the sparsity leaves no room for one each.

    Raises ValueError for other granularities and without data, and as those two functions do.
    """

    name: ClassVar[str]
    accumulate: bool = False
    per_example: bool = False
    per_token: bool = False
    by_layer: bool = True
    min_max: bool = True
    keep_a_head: bool = False

    def scores(self, subject: Subject) -> dict[str, Tensor]:
        if wrong := sorted(set(subject.kinds.values()) - set(GATED)):
            raise ValueError(
                f"head-importance scores {', '.join(GATED)} or several of them (head+mlp), "
                f"not granularity {wrong[0]!r}"
            )
        found = subject.importance(
            accumulate=self.accumulate, per_example=self.per_example, per_token=self.per_token
        )
        ready = normalised(found, subject.kinds, by_layer=self.by_layer, min_max=self.min_max)
        scores = {name: each.float().view(subject.units[name]) for name, each in ready.items()}
        if self.keep_a_head:
            for name, score in scores.items():
                if subject.kinds[name] == "head":
                    score.view(-1)[score.argmax()] = torch.inf
        return scores
