"""The norms that read a matrix' outputs: their weights tell how much each output counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import resolve, weight_of


@torch.no_grad()
def norm_weights(model: nn.Module, keys: Sequence[str], batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the absolute weights of the norm that follows each matrix, float64 [out], with mean square 1.

    In the models of the BERT family, the outputs of attention and of the feed-forward network are added to
    the residual stream and normalised. Some features of this stream are dozens of times as large as the
    others, and the norm's weights make up for that: an error counts by the weight of its feature.

    Args:
        model: The model, which runs once.
        keys: The matrices.
        batch: Keyword arguments for the model.

    Returns:
        The weights by key. Matrices without a norm of their outputs' size after them are left out.
    """
    weights: dict[str, Tensor] = {}
    waiting: list[str] = []

    def ran(key: str) -> Any:
        return lambda module, args, output: waiting.append(key)

    def reads(module: Any, args: tuple[Any, ...]) -> None:
        scale = module.weight.detach().cpu().double().abs()
        for key in [key for key in waiting if weight_of(model, key).shape[0] == len(scale)]:
            waiting.remove(key)
            if scale.any():
                weights.setdefault(key, scale / scale.square().mean().sqrt())

    handles = [resolve(model, key).register_forward_hook(ran(key)) for key in keys]
    handles += [module.register_forward_pre_hook(reads) for module in model.modules() if _is_norm(module)]
    try:
        model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return weights


def _is_norm(module: nn.Module) -> bool:
    """Whether a module is a LayerNorm, RMSNorm or the like, with a weight for each feature."""
    weight = getattr(module, "weight", None)
    return type(module).__name__.endswith("Norm") and isinstance(weight, Tensor) and weight.dim() == 1
