"""Linear layers on paired token panels, as the encoder calls them; for benchmarks and tests.

A paired token panel holds 16 tokens in bfloat16, two features side by side: ``[features / 2, 16, 2]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..formats import RowPanelSparse
from . import native

TOKENS = 16
FEATURES = 64  # `pair` pads to a multiple; int8 weights need it
ROWS = 32  # `linear` pads its result to a multiple
_PAIRED = 3  # SB_PAIRED


def pair(x: Tensor) -> Tensor:
    """Return x [tokens, features] as paired token panels [tokens / 16, features / 2, 16, 2], zero-padded."""
    tokens, features = x.shape
    padded = torch.nn.functional.pad(x.bfloat16(), (0, -features % FEATURES, 0, -tokens % TOKENS))
    return padded.view(-1, TOKENS, padded.shape[1] // 2, 2).transpose(1, 2).contiguous()


def unpair(paired: Tensor, tokens: int, features: int) -> Tensor:
    """Return the rows [tokens, features] of paired token panels."""
    return paired.transpose(1, 2).reshape(-1, 2 * paired.shape[1])[:tokens, :features]


def linear(x: Tensor, packed: RowPanelSparse, bias: Tensor, activation: str = "none") -> Tensor:
    """Return ``activation(x @ W.T + bias)`` in paired token panels, on one thread.

    Args:
        x: [tokens / 16, features / 2, 16, 2], of at least W's columns, as from ``pair``.
        packed: W [out, in].
        bias: float32 [out].
        activation: See ``ops.linear``.

    Returns:
        [tokens / 16, ceil(out / 32) * 16, 16, 2]; rows past ``out`` are activation(0).

    Raises:
        ValueError: The instruction set in use has no kernel for W, or x does not fit it.
    """
    count, lines, *_ = x.shape
    out_features, in_features = packed.shape
    if 2 * lines < in_features or 2 * lines % FEATURES:
        raise ValueError(
            f"x has {2 * lines} features; it must have a multiple of {FEATURES} of at least {in_features}"
        )
    y = x.new_empty(count, -(-out_features // ROWS) * ROWS // 2, TOKENS, 2)
    call = native._CALL.pack(
        x.data_ptr(), count * TOKENS, 2 * lines, _PAIRED, native.ACTIVATIONS[activation], 1, 1
    )
    if native.library().sb_linear(call + native.describe(packed, bias, y)) != 0:
        raise ValueError(f"{native.instruction_set()} has no kernel for {packed!r}")
    return y
