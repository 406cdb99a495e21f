"""Gradients of the loss with respect to the matrices, summed over batches: what data-dependent scores see."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparsebert.bert import full_name, resolve


def loss_gradients(model: nn.Module, weights: Mapping[str, Tensor], batches: Any) -> dict[str, Tensor]:
    """Sum over the batches of dL/dW, per key float32 [out, in] on the CPU.

    ``weights``: key -> [out, in]; the gradients are taken at these values, so that pruned entries count as 0
    whatever the model holds there. ``batches``: mappings of keyword arguments for the model, labels among
    them, whose outputs carry a ``loss``. Dropout is off; parameters, gradients and modes of the model stay as
    they are.

    Raises ValueError if there is no batch, or none with a loss.
    """
    if not isinstance(batches, Iterable):
        raise ValueError(f"data must be batches of keyword arguments for the model, not {batches!r}")
    totals = {key: torch.zeros(weight.shape) for key, weight in weights.items()}
    leaves = {}
    for key, weight in weights.items():
        like = torch.as_tensor(resolve(model, key).weight)
        leaves[key] = weight.to(like.device, like.dtype, copy=True).requires_grad_()
    values = {f"{full_name(model, key)}.weight": leaf for key, leaf in leaves.items()}
    device = next(iter(leaves.values())).device
    count = 0
    with _evaluating(model), torch.enable_grad():
        for batch in batches:
            if not isinstance(batch, Mapping):
                raise ValueError(
                    f"a batch must be a mapping of keyword arguments, not a {type(batch).__name__}"
                )
            inputs = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()}
            loss = getattr(functional_call(model, values, (), inputs), "loss", None)
            if loss is None:
                raise ValueError(f"{type(model).__name__} gives no loss: the batches need labels")
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            for total, gradient in zip(totals.values(), gradients, strict=True):
                if gradient is not None:
                    total += gradient.to("cpu", torch.float32)
            count += 1
    if not count:
        raise ValueError("data holds no batch to take gradients of")
    return totals


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
