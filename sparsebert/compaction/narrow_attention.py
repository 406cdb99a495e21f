"""Self-attention whose heads are narrower than the model's configuration says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebert.bert import base_model, full_name, resolve
from sparsebert.compaction.heads import HeadGroup, is_whole, total
from sparsebert.nn.module_swap import move_hooks, replace_module

IMPLEMENTATIONS = ("eager", "sdpa")


class NarrowAttention(nn.Module):
    """Self-attention of a compacted model: heads in groups, each group with its own widths.

    The scale stays that of the configured head size. Under "eager", the attention weights of the remaining
    heads are returned in the model's order.

    Attributes:
        groups: Heads by width, in the order of the projections' rows.
        scale: Factor of the scores.
        names: Names of the projections: query, key, value and, if this module applies it, output.
        model_class: Class of the base model, which records the attention weights; None without recording.
    """

    def __init__(
        self,
        original: nn.Module,
        groups: Sequence[HeadGroup],
        scale: float,
        names: Sequence[str],
        model_class: type | None = None,
    ) -> None:
        """Take over the submodules of ``original`` under their names, and keep it for ``restored``."""
        super().__init__()
        self.groups, self.scale, self.names = tuple(groups), scale, tuple(names)
        self.config: Any = original.config
        self.training = original.training
        self.model_class = model_class
        # In a tuple, so that it does not become a submodule.
        self._original = (original,)
        _move_children(original, self)
        _record_attention_weights(model_class)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _record_attention_weights(self.model_class)

    def restored(self) -> nn.Module:
        """Return the model's own self-attention with the present submodules, which this module loses."""
        (original,) = self._original
        _move_children(self, original)
        original.training = self.training
        return original

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over all heads.

        Args:
            hidden_states: [B, T, hidden].
            attention_mask: Bool (True = attend) or added to the scores; [B, 1 or configured heads, T, T].

        Returns:
            The context [B, T, value widths of all heads], or [B, T, hidden] if this module applies the output
            projection; and the weights [B, heads, T, T] under "eager", else None.
        """
        implementation = self.config._attn_implementation
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"a compacted attention cannot run as {implementation!r}; "
                'call model.set_attn_implementation("sdpa") or ("eager")'
            )
        if kwargs.get("past_key_values") is not None:
            raise ValueError("a compacted attention is an encoder's and has no cache; omit past_key_values")
        query, key, value = (getattr(self, name)(hidden_states) for name in self.names[:3])
        dropout = cast(nn.Dropout, self.dropout).p if self.training else 0.0
        run = _eager if implementation == "eager" else _fused
        context, weights = attend(query, key, value, self.groups, attention_mask, self.scale, dropout, run)
        if len(self.names) == 4:
            context = getattr(self, self.names[3])(context)
        return context, self._in_order(weights)

    def _in_order(self, weights: Sequence[Tensor | None]) -> Tensor | None:
        if weights[0] is None or len(weights) == 1:
            return weights[0]
        heads = [head for group in self.groups for head in group.heads]
        order = sorted(range(len(heads)), key=heads.__getitem__)
        return torch.cat(cast(list[Tensor], weights), 1)[:, order]

    def extra_repr(self) -> str:
        return "; ".join(
            f"{len(group.heads)} heads of {group.score} and {group.value}" for group in self.groups
        )


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: Sequence[HeadGroup],
    mask: Tensor | None,
    scale: float,
    dropout: float = 0.0,
    run: Callable[..., tuple[Tensor, Tensor | None]] | None = None,
) -> tuple[Tensor, list[Tensor | None]]:
    """Attend group by group; ``run`` is the computation of a group, step by step if omitted.

    Returns:
        The context [B, T, value widths of all heads], and the weights [B, heads, T, T] of each group, or None
        if ``run`` returns none.
    """
    contexts, weights = [], []
    for group, q, k, v in zip(
        groups,
        _split(query, groups, "score"),
        _split(key, groups, "score"),
        _split(value, groups, "value"),
        strict=True,
    ):
        context, attended = (run or _eager)(q, k, v, _mask_of(mask, group), dropout, scale)
        contexts.append(context.transpose(1, 2).flatten(2))
        weights.append(attended)
    return contexts[0] if len(contexts) == 1 else torch.cat(contexts, -1), weights


def attention_path(keys: Sequence[str]) -> str:
    """Return the path of the self-attention with these projections (query, key, value, output)."""
    return keys[0].rpartition(".")[0]


def shrink_attention_(
    model: nn.Module, keys: Sequence[str], groups: Sequence[HeadGroup], head_size: int
) -> None:
    """Replace the self-attention with these projections by a ``NarrowAttention``, hooks included.

    Without effect if every head is ``head_size`` wide: the model's own attention can run those.

    Args:
        model: The model, changed in place.
        keys: Query, key, value and output projection, by key.
        groups: Heads by width, in the order of the projections' rows.
        head_size: The configured head size.
    """
    if is_whole(groups, head_size):
        return
    path = attention_path(keys)
    names = [key.rpartition(".")[2] for key in keys if attention_path((key,)) == path]
    original = resolve(model, path)
    narrow = NarrowAttention(original, groups, head_size**-0.5, names, type(base_model(model)))
    move_hooks(original, narrow)
    replace_module(model, full_name(model, path), narrow)


def restore_attention_(model: nn.Module, keys: Sequence[str]) -> None:
    """Undo ``shrink_attention_``: put the model's own self-attention back, for projections as configured."""
    path = attention_path(keys)
    narrow = resolve(model, path)
    if isinstance(narrow, NarrowAttention):
        original = narrow.restored()
        move_hooks(narrow, original)
        replace_module(model, full_name(model, path), original)


def _move_children(source: nn.Module, target: nn.Module) -> None:
    for name, child in list(source.named_children()):
        delattr(source, name)
        setattr(target, name, child)


def _record_attention_weights(model_class: type | None) -> None:
    """Let transformers record the weights of ``NarrowAttention`` in models of this class.

    transformers hooks the modules whose class a model class names in ``_can_record_outputs``.
    """
    recorders = getattr(model_class, "_can_record_outputs", None) or {}
    if "attentions" in recorders:
        named = recorders["attentions"]
        classes = named if isinstance(named, list) else [named]
        if NarrowAttention not in classes:
            recorders["attentions"] = [*classes, NarrowAttention]


def _split(projected: Tensor, groups: Sequence[HeadGroup], kind: str) -> list[Tensor]:
    """[B, T, rows] -> [B, heads, T, width] of each group."""
    widths = [getattr(group, kind) for group in groups]
    rows = [total((group,), kind) for group in groups]
    parts = projected.split(rows, -1) if len(groups) > 1 else (projected,)
    return [
        part.view(*part.shape[:-1], -1, width).transpose(1, 2)
        for part, width in zip(parts, widths, strict=True)
    ]


def _mask_of(mask: Tensor | None, group: HeadGroup) -> Tensor | None:
    """Return the part of a mask for this group's heads."""
    return mask if mask is None or mask.shape[1] == 1 else mask[:, list(group.heads)]


def _fused(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scale: float
) -> tuple[Tensor, None]:
    """Attend with ``scaled_dot_product_attention``, whose fused kernels require equal widths: pad to them."""
    score_width, value_width = query.shape[-1], value.shape[-1]
    if value_width < score_width:
        value = F.pad(value, (0, score_width - value_width))
    elif value_width > score_width:
        padding = (0, value_width - score_width)
        query, key = F.pad(query, padding), F.pad(key, padding)
    context = F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale)
    return context if value_width >= score_width else context[..., :value_width], None


def _eager(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend step by step, as the models do, and return the weights too."""
    scores = query @ key.transpose(2, 3) * scale
    weights = (scores if mask is None else scores + mask).softmax(-1)
    weights = F.dropout(weights, dropout)
    return weights @ value, weights
