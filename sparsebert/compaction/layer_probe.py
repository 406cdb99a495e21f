"""Check that the layers of an encoder compute what compaction assumes, by running each on stand-ins.

Names do not tell: the layers of MegatronBERT and BigBird are named as BERT's, but their attentions join a
fixed number of heads, and BigBird replaces its attentions between calls.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import Structure, activation_of, resolve
from sparsebert.compaction.heads import HeadGroup, total
from sparsebert.compaction.narrow_attention import NarrowAttention, attend, attention_path
from sparsebert.nn.module_swap import replace_module
from sparsebert.nn.skeleton import skeleton, stand_in_

# Arguments of an attention that ``NarrowAttention`` takes, or that no encoder passes.
_ARGUMENTS = {
    "hidden_states",
    "attention_mask",
    "head_mask",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "past_key_value",
    "past_key_values",
    "cache_position",
    "output_attentions",
}
_EXAMPLES, _TOKENS = 2, 3
_MASKED = -1e4  # in the range of every dtype


def require_known_layers(model: nn.Module, encoder: Structure) -> None:
    """Raise ValueError, naming the layer, unless every layer can run what compaction leaves of it.

    Each layer runs with all heads, with one head fewer and with a ``NarrowAttention``. In every run the input
    of the attention's output projection must be the context of softmax attention, and the input of the
    down-projection the activation of the up-projection's output.
    """
    for heads, neurons in zip(encoder.heads, encoder.neurons, strict=True):
        path = _common_path((*heads, *neurons))
        layer = resolve(model, path)
        size, count = encoder.head_size, encoder.num_heads
        fault = _other_arguments(resolve(model, attention_path(heads)))
        whole = HeadGroup(tuple(range(count)), size, size)
        fewer = HeadGroup(tuple(range(max(1, count - 1))), size, size)
        narrow = HeadGroup(fewer.heads, max(1, size // 2), max(1, size - 1))
        for group, is_narrow, what in (
            (whole, False, "the configured heads"),
            (fewer, False, "fewer heads"),
            (narrow, True, "narrow heads"),
        ):
            try:
                fault = fault or _fault(model, path, (heads, neurons), group, size**-0.5, is_narrow)
            except Exception as error:  # an unknown layer may fail in any way
                reason = str(error).partition("\n")[0]
                fault = f"it fails with {what} ({type(error).__name__}: {reason})"
            if fault:
                raise ValueError(
                    f"{path} is a {type(layer).__name__}, not a layer that can be compacted: {fault}"
                )


@torch.no_grad()
def _fault(
    model: nn.Module,
    path: str,
    keys: tuple[Sequence[str], Sequence[str]],
    group: HeadGroup,
    scale: float,
    is_narrow: bool,
) -> str:
    """Run a layer on stand-ins of its matrices; return what it computes differently, or ""."""
    heads, (up, down) = keys
    copies: dict[nn.Module, nn.Module] = {}
    layer = skeleton(resolve(model, path), copies)
    matrices: dict[str, Any] = {key: resolve(model, key) for key in (*heads, up, down)}
    like, generator = torch.as_tensor(matrices[heads[0]].weight), torch.Generator().manual_seed(0)

    def random(features: int) -> Tensor:
        return torch.randn(_EXAMPLES, _TOKENS, features, generator=generator).to(like)

    score, value = (total((group,), kind) for kind in ("score", "value"))
    widths = dict(zip(heads[:3], (score, score, value), strict=True))
    outputs = {key: random(widths.get(key, len(matrix.weight))) for key, matrix in matrices.items()}
    inputs = {
        key: stand_in_(copies[matrix], partial(_constant, outputs[key])) for key, matrix in matrices.items()
    }
    if is_narrow:
        attention = attention_path(heads)
        names = [key.rpartition(".")[2] for key in heads if attention_path((key,)) == attention]
        replacement = NarrowAttention(copies[resolve(model, attention)], (group,), scale, names)
        replace_module(layer, attention.removeprefix(f"{path}."), replacement)
    mask = torch.zeros(_EXAMPLES, 1, _TOKENS, _TOKENS).to(like)
    mask[-1, ..., -1] = _MASKED
    layer(random(like.shape[1]), attention_mask=mask)

    for key, calls in inputs.items():
        if len(calls) != 1:
            return f"it calls {key.removeprefix(f'{path}.')} {len(calls)} times"
    query, key_, value_ = (outputs[name] for name in heads[:3])
    context, _ = attend(query, key_, value_, (group,), mask, scale)
    if not all(_equal(inputs[heads[0]][0], inputs[name][0]) for name in heads[1:3]):
        return "its query, key and value have different inputs"
    if not _equal(inputs[heads[3]][0], context):
        return "its attention is not softmax attention over separate heads"
    if not _equal(inputs[down][0], activation_of(model, up)(outputs[up])):
        return "its feed-forward network is not an activation between two matrices"
    return ""


def _constant(y: Tensor, x: Tensor) -> Tensor:
    return y


def _other_arguments(attention: nn.Module) -> str:
    """Return what an attention takes beyond hidden states and a mask, such as position biases, or ""."""
    if not isinstance(getattr(attention, "dropout", None), nn.Dropout):
        return "its attention has no dropout module"
    named = [
        name
        for name, parameter in inspect.signature(type(attention).forward).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    others = sorted(set(named[1:]) - _ARGUMENTS)
    return f"its attention takes {', '.join(others)}" if others else ""


def _equal(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are equal up to rounding; different computations differ by much more."""
    tolerance = max(1e-4, 8 * torch.finfo(y.dtype).eps)
    return x.shape == y.shape and torch.allclose(
        x.float(), y.float(), rtol=tolerance, atol=tolerance, equal_nan=True
    )


def _common_path(keys: Sequence[str]) -> str:
    """Return the path of the innermost module that contains all keys."""
    common = []
    for parts in zip(*(key.split(".") for key in keys), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)
