"""Linear layers from paired panels to paired panels, as the encoder calls them; for benchmarks and tests.

A paired panel holds 16 tokens in bfloat16, two features side by side: ``[features / 2, 16, 2]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..formats import RowPanelSparse
from . import native

TOKENS = 16
FEATURES = 64  # of the panels of `pair` are a multiple; int8 weights need it
ROWS = 32  # of the panels of `linear` are a multiple
_PAIRED = 3  # SB_PAIRED


def pair(x: Tensor) -> Tensor:
    """Return x [tokens, features] as paired panels [panels, features / 2, 16, 2], padded with zeros."""
    tokens, features = x.shape
    padded = torch.nn.functional.pad(x.bfloat16(), (0, -features % FEATURES, 0, -tokens % TOKENS))
    return padded.view(-1, TOKENS, padded.shape[1] // 2, 2).transpose(1, 2).contiguous()


def unpair(panels: Tensor, tokens: int, features: int) -> Tensor:
    """Return the tokens [tokens, features] of paired panels."""
    return panels.transpose(1, 2).reshape(-1, 2 * panels.shape[1])[:tokens, :features]


def linear(panels: Tensor, packed: RowPanelSparse, bias: Tensor, activation: str = "none") -> Tensor:
    """Return ``activation(x @ W.T + bias)`` in paired panels, on one thread.

    Args:
        panels: x [panels, features / 2, 16, 2], of at least W's columns, as from ``pair``.
        packed: W [out, in].
        bias: float32 [out].
        activation: See ``ops.linear``.

    Returns:
        [panels, ceil(out / 32) * 16, 16, 2]; rows past ``out`` are activation(0).

    Raises:
        ValueError: The instruction set in use has no kernel for W, or x is too narrow for it.
    """
    count, lines, *_ = panels.shape
    if 2 * lines < packed.shape[1] or 2 * lines % FEATURES:
        raise ValueError(
            f"panels have {2 * lines} features; {packed!r} needs a multiple of {FEATURES} "
            f"of at least {packed.shape[1]}"
        )
    y = panels.new_empty(count, -(-packed.shape[0] // ROWS) * ROWS // 2, TOKENS, 2)
    head = native._CALL.pack(
        panels.data_ptr(), count * TOKENS, 2 * lines, _PAIRED, native.ACTIVATIONS[activation], 1, 1
    )
    if native.library().sb_linear(head + native.describe(packed, bias, y)) != 0:
        raise ValueError(f"{native.instruction_set()} has no kernel for {packed!r}")
    return y
