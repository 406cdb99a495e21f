"""Gradients of the gates of heads and neurons, one an example: the samples of their Fisher information."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebert.one_shot.calibration import LABELS
from sparsebert.pruning.gates import GateSite, gated
from sparsebert.pruning.gradients import evaluating, on_device
from sparsebert_kernels.errors import unknown

LOSSES = ("labels", "outputs")


def unit_gradients(
    model: nn.Module,
    sites: Mapping[str, GateSite],
    batches: Any,
    *,
    loss: str = "labels",
    per_example: bool = True,
    probes: int = 4,
    seed: int = 0,
    on_batch: Callable[[int], object] = lambda number: None,
) -> dict[str, Tensor]:
    """Return gradients of a loss with respect to gates of 1. Dropout is off; the model does not change.

    Args:
        model: The model.
        sites: The gates.
        batches: Mappings of keyword arguments for the model.
        loss: "labels": the model's own loss. "outputs": the squared distance to the outputs of the dense
            model. Its gradient is 0 there, but its Hessian is J^T J with the Jacobian J of the outputs, of
            which s^T J are samples, with random signs s (Hutchinson 1990). See :func:`compared_outputs`.
        per_example: Take the gradient of each example's loss; otherwise that of each batch's.
        probes: Vectors of random signs for each example.
        seed: Seed of the signs.
        on_batch: Called with the number of each batch, from 1.

    Returns:
        [samples, gates] of each site, on the CPU, in float32 or the dtype of a more precise model. Their
        squares, summed over the samples, are the diagonal of the Fisher information, up to a factor.

    Raises:
        ValueError: There is no batch, a batch gives no loss, or the outputs cannot be told.
    """
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    generator = torch.Generator().manual_seed(seed)
    like = next(model.parameters())
    dtype = torch.promote_types(like.dtype, torch.float32)
    samples: dict[str, list[Tensor]] = {name: [] for name in sites}
    with evaluating(model), torch.enable_grad():
        for number, inputs in enumerate(on_device(model, batches), 1):
            size = next(x.shape[0] for x in inputs.values() if isinstance(x, Tensor) and x.dim() > 1)
            shape = (size,) if per_example else ()
            gates = {
                name: torch.ones(*shape, site.count(model), device=like.device, dtype=like.dtype)
                for name, site in sites.items()
            }
            leaves = [each.requires_grad_() for each in gates.values()]
            with gated(model, sites, gates):
                scalars = list(_scalars(model, inputs, loss, size if per_example else 1, probes, generator))
            for i, scalar in enumerate(scalars):
                gradients = torch.autograd.grad(
                    scalar, leaves, retain_graph=i + 1 < len(scalars), materialize_grads=True
                )
                for name, gradient in zip(gates, gradients, strict=True):
                    samples[name].append(gradient.to("cpu", dtype).view(-1, gradient.shape[-1]))
            on_batch(number)
    stacked = {name: torch.cat(each) for name, each in samples.items()}
    for name, each in stacked.items():
        if not each.isfinite().all():
            raise ValueError(f"the gradients of the gates of {name} hold NaN or inf")
    return stacked


def _scalars(
    model: nn.Module,
    inputs: Mapping[str, Any],
    loss: str,
    examples: int,
    probes: int,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Yield the numbers of a batch to differentiate."""
    if loss == "labels":
        value = getattr(model(**inputs), "loss", None)
        if value is None:
            raise ValueError(
                f"{type(model).__name__} gives no loss: pass batches with labels, or loss='outputs'"
            )
        # The loss is the mean over the examples of the batch.
        yield value * examples
        return
    unlabelled = {name: each for name, each in inputs.items() if name not in LABELS}
    outputs = compared_outputs(model, unlabelled)
    for _ in range(probes):
        signs = torch.randint(0, 2, outputs.shape, generator=generator) * 2 - 1
        yield (outputs * signs.to(outputs)).sum()


def compared_outputs(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Return what a model is used for, [examples, features]: its logits, or embeddings of the texts.

    Embeddings are the hidden states, averaged over the tokens of a text and normalised. Logits of padding
    count as 0.

    Raises ValueError if the model returns neither logits nor hidden states.
    """
    result = model(**inputs)
    mask = inputs.get("attention_mask")
    names = ("logits", "start_logits", "end_logits")
    logits = [each for name in names if isinstance(each := getattr(result, name, None), Tensor)]
    if logits:
        return torch.cat([_without_padding(each, mask).flatten(1) for each in logits], 1)
    states = result if isinstance(result, Tensor) else getattr(result, "last_hidden_state", None)
    if not isinstance(states, Tensor):
        raise ValueError(
            f"{type(model).__name__} returns neither logits nor hidden states: pass batches with labels"
        )
    if states.dim() != 3:
        return states.flatten(1)
    return F.normalize(_without_padding(states, mask).sum(1), dim=-1)


def _without_padding(values: Tensor, mask: Tensor | None) -> Tensor:
    """Set values [examples, tokens, ...] of padding to 0; other values are returned as they are."""
    if mask is None or values.shape[:2] != mask.shape:
        return values
    return values * mask.view(*mask.shape, *(1 for _ in values.shape[2:])).to(values)
