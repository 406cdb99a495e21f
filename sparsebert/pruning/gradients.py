"""Gradients of the loss with respect to the matrices, summed over batches, for data-dependent scores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparsebert.bert import full_name, resolve, weight_of
from sparsebert.conv1d import oriented


def loss_gradients(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    batches: Any,
    dead_biases: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the sum over the batches of dL/dW: key -> float32 [out, in] on the CPU.

    Dropout is off; parameters, gradients and modes of the model do not change.

    Args:
        model: The model.
        weights: key -> [out, in]: the values at which to take the gradients. They replace the model's, so
            that pruned entries count as 0.
        batches: Mappings of keyword arguments for the model, with labels; its outputs must have a ``loss``.
        dead_biases: key -> bool [out], True = pruned; these biases count as 0.

    Raises:
        ValueError: There is no batch, or a batch gives no loss.
    """
    totals = {key: torch.zeros(weight.shape) for key, weight in weights.items()}
    leaves = {key: weight.requires_grad_() for key, weight in placed(model, weights).items()}
    biases = without(model, dead_biases or {})
    with evaluating(model), torch.enable_grad():
        for inputs in on_device(model, batches):
            loss = loss_of(model, leaves, biases, inputs)
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            for total, gradient in zip(totals.values(), gradients, strict=True):
                if gradient is not None:
                    total += gradient.to("cpu", torch.float32)
    return totals


def placed(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy weights (key -> [out, in]) to the device and dtype of the model's weights."""
    copies = {}
    for key, weight in weights.items():
        like = weight_of(model, key)
        copies[key] = weight.to(like.device, like.dtype, copy=True)
    return copies


def without(model: nn.Module, dead_biases: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy the model's biases (key -> [out]) with their dead entries (True) set to 0."""
    copies = {}
    for key, dead in dead_biases.items():
        if isinstance(bias := getattr(resolve(model, key), "bias", None), Tensor):
            copies[key] = bias.detach().masked_fill(dead.to(bias.device), 0)
    return copies


def on_device(model: nn.Module, batches: Any) -> Iterator[dict[str, Any]]:
    """Yield the batches with their tensors on the model's device.

    Raises ValueError if a batch is not a mapping of keyword arguments or there is no batch.
    """
    if not isinstance(batches, Iterable):
        raise ValueError(f"data must be batches of keyword arguments for the model, got {batches!r}")
    device = next(model.parameters()).device
    count = 0
    for batch in batches:
        if not isinstance(batch, Mapping):
            raise ValueError(f"a batch must be a mapping of keyword arguments, got a {type(batch).__name__}")
        yield {name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()}
        count += 1
    if not count:
        raise ValueError("data holds no batch: gradients need at least one")


def loss_of(
    model: nn.Module, weights: Mapping[str, Tensor], biases: Mapping[str, Tensor], inputs: dict[str, Any]
) -> Tensor:
    """Return the loss of a batch with these weights and biases. Raises ValueError if the model gives none."""
    values = {
        f"{full_name(model, key)}.weight": oriented(resolve(model, key), weight)
        for key, weight in weights.items()
    }
    values |= {f"{full_name(model, key)}.bias": bias for key, bias in biases.items()}
    loss = getattr(functional_call(model, values, (), inputs), "loss", None)
    if loss is None:
        raise ValueError(f"{type(model).__name__} gives no loss: the batches need labels")
    return loss


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the ``with`` block, and restore each module's mode after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
