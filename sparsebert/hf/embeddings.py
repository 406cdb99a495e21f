"""The dtype that embeddings are stored in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsebert_kernels.dtype_names import short_name


def with_embeddings_in(dtype: str, model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with embeddings in ``dtype`` where that is narrower than their own.

    Tensors tied to an embedding stay tied to it.

    Args:
        dtype: Name of the dtype, such as ``bfloat16``.
        model: The model.
        state: Its tensors by name.

    Raises:
        ValueError: A value is beyond the range of ``dtype``.
    """
    narrow: torch.dtype = getattr(torch, dtype)
    modules = model.named_modules(remove_duplicate=False)
    names = {f"{name}.weight" for name, module in modules if isinstance(module, nn.Embedding)}
    cast = {
        state[name].data_ptr(): _in_range(name, state[name], narrow)
        for name in names & state.keys()
        if state[name].is_floating_point() and state[name].itemsize > narrow.itemsize
    }
    return {name: cast.get(tensor.data_ptr(), tensor) for name, tensor in state.items()}


def _in_range(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor in ``dtype``; raise ValueError if a finite value becomes infinite."""
    narrow = tensor.to(dtype)
    overflows = tensor[narrow.isinf() & tensor.isfinite()]
    if overflows.numel():
        raise ValueError(
            f"{name} holds {overflows.abs().max().item():.6g}, beyond the range of {short_name(dtype)} "
            f"(at most {torch.finfo(dtype).max:.6g}): store the embeddings in another dtype"
        )
    return narrow
