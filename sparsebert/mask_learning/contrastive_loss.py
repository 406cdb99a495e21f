"""Contrastive terms of CAP: a model in pruning stays near what other encoders make of the same examples.

Xu et al. 2022, "From Dense to Sparse: Contrastive Pruning for Better Pre-trained Language Model Compression",
section 3, as the released code computes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Examples:
    """What one or several encoders made of some examples.

    ``numbers``: int64 [examples], which they are. ``labels``: int64 [examples]; None where there are none.
    ``representations``: float [examples, encoders, features], each of length 1.
    """

    numbers: Tensor
    labels: Tensor | None
    representations: Tensor


def contrast(
    own: Tensor, batch: Examples, others: Examples, temperature: float
) -> tuple[Tensor, Tensor | None]:
    """The term of instances and that of labels (None without labels) for one bank of encoders: scalars.

    ``own``: float [examples, features], what the model itself makes of the batch; brought to length 1 here,
    and all that gradients go to. ``batch``: what the encoders make of it, in the same order. ``others``:
    examples drawn at random, which may be the batch's too.

    The candidates of example i are the whole ``batch`` and ``others`` of every encoder, and what the model
    makes of the batch, but for z_i itself. log p_ij = s_ij - log sum over the candidates of exp s, with
    s_ij = z_i . c_j / temperature. Each term is - sum over i of (sum over P_i of log p_ij) / |P_i|, divided
    by the sum of all |P_i|, where P_i are the candidates that are the same example, or have the same label.
    (A mean would divide by the number of examples; the published weights belong to this.)
    """
    dtype = torch.promote_types(own.dtype, torch.float32)
    z = F.normalize(own.to(dtype), dim=-1)
    encoders = batch.representations.shape[1]
    banked = [each.representations.to(dtype).flatten(0, 1) for each in (batch, others)]
    candidates = torch.cat([z.detach(), *banked])
    oneself = torch.eye(len(z), len(candidates), dtype=torch.bool, device=z.device)
    scores = (z @ candidates.T / temperature).masked_fill(oneself, -torch.inf)
    likelihoods = scores.log_softmax(-1)

    def term(of_batch: Tensor, of_others: Tensor) -> Tensor:
        known = torch.cat([of_batch, *(each.repeat_interleave(encoders) for each in (of_batch, of_others))])
        positive = (of_batch[:, None] == known) & ~oneself
        counts = positive.sum(1, keepdim=True)
        return -(likelihoods.masked_fill(~positive, 0) / counts).sum() / counts.sum()

    by_instance = term(batch.numbers, others.numbers)
    if batch.labels is None or others.labels is None:
        return by_instance, None
    return by_instance, term(batch.labels, others.labels)
