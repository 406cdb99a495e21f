"""Sequences of a batch side by side, [tokens, width], and the attention within each of them.

``EqualLengths`` are sequences of one length, padding included. ``Ragged`` sequences have no padding; their
bounds are a tensor, so that nothing here waits for a GPU. Attention over ragged sequences is torch's
FlashAttention for variable lengths where it runs, else it pads and calls ``scaled_dot_product_attention``.
"""

from __future__ import annotations

import importlib
import inspect
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# ``torch.nn.attention.varlen.varlen_attn`` after ``load_flash``; None without it.
varlen_attn: Any = None
# What FlashAttention 2 computes.
FLASH_DTYPES = (torch.bfloat16, torch.float16)
FLASH_CAPABILITY = (8, 0)
FLASH_WIDTH, FLASH_STEP = 256, 8


@dataclass(frozen=True)
class EqualLengths:
    """Sequences of one length.

    Attributes:
        batch: Number of sequences.
        length: Tokens of each.
        mask: Bool (True = attend) or added to the scores, [B, 1, 1 or T, T]; None attends to all.
    """

    batch: int
    length: int
    mask: Tensor | None = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return the context [tokens, heads, value width].

        Args:
            query: [tokens, heads, score width].
            key: [tokens, heads, score width].
            value: [tokens, heads, value width].
            scale: Factor of the scores.
        """
        size = self.batch, self.length
        query, key, value = (each.unflatten(0, size).transpose(1, 2) for each in (query, key, value))
        return _attend(query, key, value, self.mask, scale).transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class Ragged:
    """Sequences of several lengths, without padding.

    Attributes:
        bounds: First token of each sequence and the end of the last, int32 [B + 1]. The context of tokens
            behind that end is undefined.
        longest: An upper limit of the lengths.
    """

    bounds: Tensor
    longest: int

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See ``EqualLengths.attend``."""
        if runs_flash(query, value):
            return self._flash(query, key, value, scale)
        return self._padded(query, key, value, scale)

    def places(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Return the sequence of each of so many tokens, and its place in it; int64 [tokens] each.

        Tokens behind the last sequence count as part of it.
        """
        numbers = torch.arange(tokens, device=self.bounds.device)
        sequence = torch.searchsorted(self.bounds[1:].long(), numbers, right=True)
        sequence = sequence.clamp(max=self.bounds.shape[0] - 2)
        place = numbers - self.bounds[sequence]
        return sequence, place.clamp(max=self.longest - 1)

    def _flash(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        width = value.shape[-1]
        common = -(-max(query.shape[-1], width) // FLASH_STEP) * FLASH_STEP
        query, key, value = (_widen(each, common) for each in (query, key, value))
        bounds, longest = self.bounds, self.longest
        context: Any = varlen_attn(query, key, value, bounds, bounds, longest, longest, scale=scale)
        return context.narrow(-1, 0, width)

    def _padded(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        tokens, batch = query.shape[0], self.bounds.shape[0] - 1
        places = torch.arange(self.longest, device=query.device)
        source = self.bounds[:-1, None] + places
        kept = source < self.bounds[1:, None]
        source = source.clamp(max=tokens - 1)
        # Zeros at padding: what stands there, NaN perhaps, must not spread.
        outside = ~kept[:, :, None, None]
        query, key, value = (
            each[source].masked_fill(outside, 0).transpose(1, 2) for each in (query, key, value)
        )
        # An empty sequence attends to its padding: no row of the scores may be masked whole.
        kept = kept | (self.bounds[1:, None] == self.bounds[:-1, None])
        context = _attend(query, key, value, kept[:, None, None], scale).transpose(1, 2)
        sequence, place = self.places(tokens)
        return context.reshape(batch * self.longest, *context.shape[2:])[sequence * self.longest + place]


Sequences = EqualLengths | Ragged


def load_flash() -> None:
    """Import torch's attention for variable lengths, which imports Triton; a compiler cannot trace that."""
    global varlen_attn
    with suppress(ImportError):  # since torch 2.10, which cannot be told the factor of the scores
        attention = importlib.import_module("torch.nn.attention.varlen").varlen_attn
        varlen_attn = attention if "scale" in inspect.signature(attention).parameters else None


@dataclass(frozen=True)
class Unpadded:
    """The kept tokens of a padded batch.

    Attributes:
        index: Place of each kept token among all, int64 [kept].
        sequences: The sequences without padding.
        shape: [batch, tokens] of the batch.
    """

    index: Tensor
    sequences: Ragged
    shape: tuple[int, int]

    @classmethod
    def of(cls, kept: Tensor, tokens: int, longest: int) -> Unpadded:
        """Find the kept tokens without waiting for the device.

        Args:
            kept: Bool [B, T].
            tokens: Number of kept tokens.
            longest: The largest number of them in one row.
        """
        flat = kept.flatten()
        numbers = torch.arange(flat.shape[0], device=kept.device)
        # Each kept token writes its place where it will stand; padding writes behind them.
        target = torch.where(flat, flat.cumsum(0) - 1, tokens)
        index = numbers.new_empty(tokens + 1).scatter_(0, target, numbers)[:tokens]
        bounds = F.pad(kept.sum(1).cumsum(0, dtype=torch.int32), (1, 0))
        return cls(index, Ragged(bounds, longest), (kept.shape[0], kept.shape[1]))

    def padded(self, states: Tensor) -> Tensor:
        """Return [B, T, width] for states [kept, width], zero at padding."""
        batch, length = self.shape
        whole = states.new_zeros(batch * length, states.shape[1])
        return whole.index_copy_(0, self.index, states).view(batch, length, -1)


def runs_flash(query: Tensor, value: Tensor) -> bool:
    """Whether torch has FlashAttention for variable lengths for these tensors."""
    return (
        query.is_cuda
        and varlen_attn is not None
        and query.dtype in FLASH_DTYPES
        and max(query.shape[-1], value.shape[-1]) <= FLASH_WIDTH
        and torch.cuda.get_device_capability(query.device) >= FLASH_CAPABILITY
    )


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attend over [B, heads, T, width]; fused kernels require equal widths of scores and values."""
    width = value.shape[-1]
    common = max(query.shape[-1], width)
    query, key, value = (_widen(each, common) for each in (query, key, value))
    context = F.scaled_dot_product_attention(query, key, value, mask, scale=scale)
    return context if common == width else context[..., :width]


def _widen(x: Tensor, width: int) -> Tensor:
    """Return x with zeros up to a width of its last dimension."""
    missing = width - x.shape[-1]
    return F.pad(x, (0, missing)) if missing else x
