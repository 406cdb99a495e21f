"""Contrastive loss terms of CAP, which keep a model's representations close to those of other encoders.

Xu et al. 2022, "From Dense to Sparse: Contrastive Pruning for Better Pre-trained Language Model Compression",
section 3, as the released code computes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class EncodedExamples:
    """Representations of examples by one or several encoders.

    Attributes:
        ids: int64 [examples], positions in the training data.
        labels: int64 [examples]; None for data without labels.
        representations: Floating-point [examples, encoders, features]; each vector has length 1.
    """

    ids: Tensor
    labels: Tensor | None
    representations: Tensor


def contrastive_terms(
    representations: Tensor, batch: EncodedExamples, negatives: EncodedExamples, temperature: float
) -> tuple[Tensor, Tensor | None]:
    """Return the instance term and the label term for one bank of encoders.

    z_i is the model's representation of example i. The candidates c_j of example i are all encoders'
    representations of ``batch`` and ``negatives``, and the model's representations of the other examples of
    the batch. With s_ij = z_i . c_j / temperature, log p_ij = s_ij - log sum over candidates of exp(s).

    P_i are the candidates that show the same example (instance term) or carry the same label (label term). A
    term is - sum over i of (sum over P_i of log p_ij) / |P_i|, divided by the sum of all |P_i|. The published
    weights belong to this normalisation; a mean would divide by the number of examples.

    Args:
        representations: Floating-point [examples, features], the model's representations of the batch. They
            are normalised here, and gradients flow only to them.
        batch: The encoders' representations of the same examples in the same order.
        negatives: Examples sampled at random, possibly also from the batch.
        temperature: Divides the similarities.

    Returns:
        The two terms, scalars. The label term is None for data without labels.
    """
    dtype = torch.promote_types(representations.dtype, torch.float32)
    z = F.normalize(representations.to(dtype), dim=-1)
    encoders = batch.representations.shape[1]
    banked = [examples.representations.to(dtype).flatten(0, 1) for examples in (batch, negatives)]
    candidates = torch.cat([z.detach(), *banked])
    itself = torch.eye(len(z), len(candidates), dtype=torch.bool, device=z.device)
    scores = (z @ candidates.T / temperature).masked_fill(itself, -torch.inf)
    log_probabilities = scores.log_softmax(-1)

    def term(of_batch: Tensor, of_negatives: Tensor) -> Tensor:
        banked = [keys.repeat_interleave(encoders) for keys in (of_batch, of_negatives)]
        positive = (of_batch[:, None] == torch.cat([of_batch, *banked])) & ~itself
        counts = positive.sum(1, keepdim=True)
        return -(log_probabilities.masked_fill(~positive, 0) / counts).sum() / counts.sum()

    by_instance = term(batch.ids, negatives.ids)
    if batch.labels is None or negatives.labels is None:
        return by_instance, None
    return by_instance, term(batch.labels, negatives.labels)
