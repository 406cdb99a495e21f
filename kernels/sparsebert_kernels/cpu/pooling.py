"""Sentence vectors from the states of tokens, in one native call."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from ..memory import readable
from . import native

# The struct sb_pool_call of src/native.h, which asserts its size and offsets.
_POOL_CALL = struct.Struct("=QQQqqqiiiiii")
MASK_DTYPES = (torch.bool, torch.int64)
_STATES = {torch.float32: 0, torch.bfloat16: 1}


def pool(states: Tensor, mask: Tensor | None, *, mean: bool, normalize: bool = False) -> Tensor | None:
    """Return the mean of each sequence's kept tokens, or the first of them.

    Args:
        states: [batch, tokens, hidden], float32 or bfloat16 on the CPU.
        mask: [batch, tokens], bool or int64, 1 = keep; None keeps all.
        mean: Whether to return the mean; zeros if nothing is kept. Else the first kept token, or that of
            index 0 if nothing is kept.
        normalize: Whether to divide each vector by its length, or by 1e-12 if that is more.

    Returns:
        [batch, hidden] in the dtype of the states; None for a mask with other values than 0 and 1.

    Raises:
        ValueError: Shapes or dtypes do not fit.
    """
    if states.dim() != 3 or states.dtype not in _STATES or not states.is_cpu:
        raise ValueError(
            f"states are {list(states.shape)} of {states.dtype} on {states.device}; "
            "they must be [batch, tokens, hidden] of torch.float32 or torch.bfloat16 on cpu"
        )
    if mask is not None and (
        mask.shape != states.shape[:2] or mask.dtype not in MASK_DTYPES or not mask.is_cpu
    ):
        raise ValueError(
            f"mask is {list(mask.shape)} of {mask.dtype}; "
            f"it must be {list(states.shape[:2])} of torch.bool or torch.int64"
        )
    states = readable(states.contiguous())
    mask = None if mask is None else readable(mask.contiguous())
    y = torch.empty(states.shape[0], states.shape[2])
    call = _POOL_CALL.pack(
        states.data_ptr(),
        y.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        *states.shape,
        1 if mask is None else mask.element_size(),
        mean,
        normalize,
        native.threads(),
        _STATES[states.dtype],
        0,
    )
    return y.to(states.dtype) if native.library().sb_pool(call) == 0 else None
