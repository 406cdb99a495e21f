"""``PlainPath``: why the layers of a fused module run one by one in a call, and the checks of each call."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.nn.fused_qkv import FusedQKV

# Where transformers records hidden states and attentions: hooks of this module, active while a collector is
# set.
RECORDER = "transformers.utils.output_capturing"
RECORDED_GRADIENTS = "gradients are recorded; call the model under torch.inference_mode()"
RECORDED_OUTPUTS = "the call asks for hidden states or attentions"
# Zero at padding, the first state would mislead the task heads that read it.
LEFT_PADDING = "a row of the batch begins with padding, or holds nothing else; pad on the right"
FOREIGN_CODE = "a module of the encoder has hooks or a patched forward method"


class PlainPath(Exception):
    """The layers must run one by one in this call; the message says why."""


def say_once(module: nn.Module, reason: str) -> None:
    """Warn that the layers of a fused module run one by one, once for each reason."""
    said = module.__dict__.setdefault("_said", set())
    if reason not in said:
        said.add(reason)
        warnings.warn(f"the fused encoder runs its layers one by one: {reason}", UserWarning, stacklevel=5)


def require_inference(module: nn.Module) -> None:
    """Raise ``PlainPath`` where a module trains: a description of its layers would be made in vain."""
    if module.training:
        raise PlainPath("the encoder is in training mode")
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters()):
        raise PlainPath(RECORDED_GRADIENTS)


def is_recording() -> bool:
    """Whether transformers records hidden states or attentions in this call."""
    recorder = sys.modules.get(RECORDER)
    return recorder is not None and bool(recorder._active_collector.get())


def is_foreign(hook: Any) -> bool:
    """Whether a hook is of another package."""
    ours = isinstance(getattr(hook, "__self__", None), FusedQKV)
    return not ours and getattr(hook, "__module__", None) != RECORDER


def kept_tokens(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """Return the tokens that an attention mask keeps for all heads and queries, bool [B, T]; None for all."""
    if mask is None:
        return None
    batch, tokens, _ = x.shape
    if mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[2] not in (1, tokens) or mask.shape[3] != tokens:
        raise PlainPath("the attention mask is not [batch, 1, tokens, tokens]")
    if mask.dtype != torch.bool:
        kept = mask == 0
        least = torch.finfo(mask.dtype if mask.is_floating_point() else torch.float32).min
        if not bool((kept | (mask <= least)).all()):
            raise PlainPath("the attention mask has other values than 0 and the least")
        mask = kept
    rows = mask[:, 0, 0]
    if mask.stride(2) and not torch.equal(mask, rows[:, None, None].expand_as(mask)):
        raise PlainPath("the attention mask differs between queries")
    if not bool(rows[:, :1].all()):
        raise PlainPath(LEFT_PADDING)
    return rows.expand(batch, tokens)
