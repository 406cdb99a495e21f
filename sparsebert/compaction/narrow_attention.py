"""Attention over heads that are narrower than the model's configuration says, or wider in one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebert.compaction.heads import HeadGroup, total

IMPLEMENTATIONS = ("eager", "sdpa")


class CompactAttention(nn.Module):
    """What takes the place of a model's self-attention; made by :func:`shrink_attention_`, never by itself.

    It stands in front of the model's own class, whose projections, dropout and hooks it keeps, so what looks
    for that class (recording of attention weights, for one) still finds it. The scale stays that of the head
    size as configured. Where attention weights are asked for ("eager"), those of the heads that run are
    given, in the model's order.
    """

    groups: tuple[HeadGroup, ...]
    scale: float
    names: tuple[str, ...]
    config: Any
    dropout: nn.Dropout

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states [B, T, hidden] -> context [B, T, values of all heads] or, for a model whose attention
        has its output projection inside, [B, T, hidden]; and the weights [B, heads, T, T] under "eager".

        attention_mask: bool (True = attend) or added to the scores, [B, 1 or heads as configured, T, T].
        """
        implementation = self.config._attn_implementation
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"a compacted attention cannot run as {implementation!r}: "
                'model.set_attn_implementation("sdpa") or "eager"'
            )
        if kwargs.get("past_key_values") is not None:
            raise ValueError("a compacted attention keeps no cache: it is an encoder's")
        query, key, value = (getattr(self, name)(hidden_states) for name in self.names[:3])
        dropout = self.dropout.p if self.training else 0.0
        run = _eager if implementation == "eager" else _fused
        contexts, weights = [], []
        for group, q, k, v in zip(
            self.groups,
            _split(query, self.groups, "score"),
            _split(key, self.groups, "score"),
            _split(value, self.groups, "value"),
            strict=True,
        ):
            mask = _mask_of(attention_mask, group)
            context, attended = run(q, k, v, mask, dropout, self.scale)
            contexts.append(context.transpose(1, 2).flatten(2))
            weights.append(attended)
        context = contexts[0] if len(contexts) == 1 else torch.cat(contexts, -1)
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

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made at run time: copies and pickles name the model's own.
        return _blank, (_original(type(self)),), self.__getstate__()


def shrink_attention_(
    attention: nn.Module, groups: Sequence[HeadGroup], scale: float, names: Sequence[str]
) -> None:
    """Turn a model's self-attention, in place, into one of heads as narrow as ``groups`` says.

    names  of its projections: query, key, value and, where it applies that itself, output
    """
    attention.__class__ = _compact_class(type(attention))
    compact = cast(CompactAttention, attention)
    compact.groups, compact.scale, compact.names = tuple(groups), scale, tuple(names)


def restore_attention_(attention: nn.Module) -> None:
    """Undo `shrink_attention_`, in place: the model's own class again, for projections as configured."""
    if isinstance(attention, CompactAttention):
        for name in ("groups", "scale", "names"):
            delattr(attention, name)
        cast(nn.Module, attention).__class__ = _original(type(attention))


def _original(compact: type[nn.Module]) -> type[nn.Module]:
    return compact.__mro__[2]


_CLASSES: dict[type[nn.Module], type[CompactAttention]] = {}


def _compact_class(original: type[nn.Module]) -> type[CompactAttention]:
    if original not in _CLASSES:
        name = f"Compact{original.__name__}"
        _CLASSES[original] = type(name, (CompactAttention, original), {"__module__": __name__})
    return _CLASSES[original]


def _blank(original: type[nn.Module]) -> nn.Module:
    compact = _compact_class(original)
    return compact.__new__(compact)


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
    """A mask for every head is cut to those that run."""
    return mask if mask is None or mask.shape[1] == 1 else mask[:, list(group.heads)]


def _fused(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scale: float
) -> tuple[Tensor, None]:
    """By `scaled_dot_product_attention`, whose fused kernels want query, key and value of one width."""
    wide, own = query.shape[-1], value.shape[-1]
    if own < wide:
        value = F.pad(value, (0, wide - own))
    elif own > wide:
        query, key = F.pad(query, (0, own - wide)), F.pad(key, (0, own - wide))
    context = F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale)
    return context if own >= wide else context[..., :own], None


def _eager(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scale: float
) -> tuple[Tensor, Tensor]:
    """Step by step, with the weights to look at; as the models do it."""
    scores = query @ key.transpose(2, 3) * scale
    weights = (scores if mask is None else scores + mask).softmax(-1)
    weights = F.dropout(weights, dropout)
    return weights @ value, weights
