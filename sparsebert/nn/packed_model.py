"""A fused base model on a GPU: embeddings of the kept tokens, packed layers, pooler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from sparsebert.nn.encoder_layers import is_of, result_class
from sparsebert.nn.packed_layers import PackedLayers, current_packed_layers
from sparsebert.nn.plain_path import (
    LEFT_PADDING,
    RECORDED_GRADIENTS,
    RECORDED_OUTPUTS,
    PlainPath,
    is_recording,
    kept_tokens,
    require_inference,
)
from sparsebert.nn.sequences import EqualLengths, Ragged, Unpadded
from sparsebert_kernels.ops import plain_inference

# Arguments of transformers for several sequences in one row, as its FlashAttention takes them: the bounds of
# the sequences and the length of the longest, for queries and the same for keys.
BOUNDS, LONGEST = "cu_seq_lens_q", "max_length_q"
RAGGED = (BOUNDS, LONGEST, "cu_seq_lens_k", "max_length_k")
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "return_dict", *RAGGED)
_STATIC: ContextVar[bool] = ContextVar("calls may not wait for the device", default=False)


@contextmanager
def without_waiting() -> Iterator[None]:
    """Let calls compute padding rather than wait for the device, as in the capture that they prepare."""
    token = _STATIC.set(True)
    try:
        yield
    finally:
        _STATIC.reset(token)


def run_packed_model(model: Any, given: Mapping[str, Any]) -> Any:
    """Run a fused base model on token ids, without computing padding.

    The number of kept tokens is read from the device, once. Under a compiler, during the capture of a CUDA
    graph and inside ``without_waiting``, padding is computed instead, and is zero in the result all the same,
    except for the first state of a row; only ragged sequences, in one row with their bounds, are then without
    padding.

    Raises:
        PlainPath: The model must run as its plain class does; the message says why.
    """
    family = model.family
    if not family.encoder[0]:
        raise PlainPath("the base model has no encoder of its own")
    for name, value in given.items():
        if name not in INPUTS and value is not None and value is not False:
            raise PlainPath(f"the call has the argument {name}")
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        raise PlainPath("the token ids are not [batch, tokens]")
    _require_observable(model, ids)
    encoder = getattr(model, family.encoder[0])
    embeddings = model.embeddings
    if not hasattr(encoder, "_packed") or encoder._forward_hooks or encoder._forward_pre_hooks:
        raise PlainPath("the encoder is not fused, or has hooks")
    if not is_of(embeddings, family, family.embeddings.cls):
        raise PlainPath(f"{type(embeddings).__name__} is not the family's embeddings")
    if embeddings._forward_hooks or embeddings._forward_pre_hooks or "forward" in vars(embeddings):
        raise PlainPath("the embeddings have hooks or a patched forward method")
    layers = current_packed_layers(encoder)
    types = given.get("token_type_ids") if family.embeddings.types else None
    if given.get(BOUNDS) is not None:
        states, firsts = _run_ragged(model, layers, ids, types, given)
    else:
        if given.get("position_ids") is not None:
            raise PlainPath("the call has the argument position_ids")
        states = firsts = _run_padded(model, layers, ids, types, given.get("attention_mask"))
    pooler = getattr(model, "pooler", None) if family.pooler else None
    pooled = {} if pooler is None else {"pooler_output": pooler(firsts)}
    result = result_class(family, family.model_result)(last_hidden_state=states, **pooled)
    return_dict = given.get("return_dict")
    if return_dict is None:
        return_dict = getattr(model.config, "return_dict", True)
    if return_dict:
        return result
    # MPNet alone returns an absent pooler's None, and has no packed form.
    return result.to_tuple()


def run_packed_encoder(encoder: Any, x: Tensor, mask: Tensor | None, given: Mapping[str, Any]) -> Tensor:
    """Run the layers of a fused encoder on x [B, T, hidden].

    The result is zero at padding, except where a call may not wait for the device (``run_packed_model``).

    Args:
        encoder: The fused encoder.
        x: The embeddings.
        mask: As of ``FusedEncoder.forward``.
        given: Further arguments, of which those for ragged sequences count.

    Raises:
        PlainPath: The layers must run one by one; the message says why.
    """
    if x.dim() != 3 or not x.numel():
        raise PlainPath(f"the input is {list(x.shape)}, not [batch, tokens, hidden]")
    if torch.is_grad_enabled() and x.requires_grad:
        raise PlainPath(RECORDED_GRADIENTS)
    _require_observable(encoder, x)
    layers = current_packed_layers(encoder)
    batch, tokens, _ = x.shape
    if given.get(BOUNDS) is not None:
        return layers.run(x.flatten(0, 1), _ragged(x, given)).unflatten(0, (batch, tokens))
    if mask is None or not _may_wait(x):
        return layers.run(x.flatten(0, 1), EqualLengths(batch, tokens, mask)).unflatten(0, (batch, tokens))
    kept = kept_tokens(mask, x)
    unpadded = None if kept is None else _unpad(kept)
    if unpadded is None:
        return layers.run(x.flatten(0, 1), EqualLengths(batch, tokens)).unflatten(0, (batch, tokens))
    return unpadded.padded(layers.run(x.flatten(0, 1)[unpadded.index], unpadded.sequences))


def _require_observable(module: Any, x: Tensor) -> None:
    """Raise ``PlainPath`` where gradients, autocast, tracers or recorders observe the layers."""
    require_inference(module)
    if torch.compiler.is_compiling():
        if torch.is_autocast_enabled(x.device.type):
            raise PlainPath("the call is under autocast")
        return
    if not plain_inference(x):
        raise PlainPath("the call is traced, transformed or under autocast")
    if is_recording():
        raise PlainPath(RECORDED_OUTPUTS)


def _may_wait(x: Tensor) -> bool:
    """Whether a call may read values from the device of x."""
    if torch.compiler.is_compiling() or _STATIC.get():
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def _run_padded(model: Any, layers: PackedLayers, ids: Tensor, types: Any, mask: Any) -> Tensor:
    """Return the states [B, T, hidden] of a padded batch."""
    batch, tokens = ids.shape
    kept = unpadded = None
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.shape != ids.shape:
            raise PlainPath("the attention mask is not [batch, tokens]")
        kept = mask.bool()
        if _may_wait(ids):
            unpadded = _unpad(kept)
            kept = None
    if unpadded is None:
        x = _embedded(model, ids, types, None)
        attended = None if kept is None else kept[:, None, None]
        x = layers.run(x.flatten(0, 1), EqualLengths(batch, tokens, attended)).unflatten(0, (batch, tokens))
        if kept is None:
            return x
        # The first state stays: task heads read it, also where a row begins with padding.
        padding = ~kept
        padding[:, 0].fill_(False)
        return x.masked_fill(padding[:, :, None], 0)
    places = _places(model, ids)
    index = unpadded.index
    kept_types = None if types is None else types.flatten()[index][None]
    x = _embedded(model, ids.flatten()[index][None], kept_types, places.flatten()[index][None])[0]
    return unpadded.padded(layers.run(x, unpadded.sequences))


def _run_ragged(
    model: Any, layers: PackedLayers, ids: Tensor, types: Any, given: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Return the states [1, T, hidden] of ragged sequences in one row, and [B, 1, hidden] for the pooler."""
    if given.get("attention_mask") is not None:
        raise PlainPath("the call has an attention mask beside the bounds of ragged sequences")
    sequences = _ragged(ids, given)
    places = given.get("position_ids")
    if places is None:
        _, place = sequences.places(ids.shape[1])
        counted = model.family.embeddings.counted
        places = (place + (1 + model.embeddings.padding_idx) if counted else place)[None]
    x = layers.run(_embedded(model, ids, types, places)[0], sequences)
    firsts = sequences.bounds[:-1].clamp(max=ids.shape[1] - 1)
    return x[None], x[firsts][:, None]


def _ragged(x: Tensor, given: Mapping[str, Any]) -> Ragged:
    """Return the sequences whose bounds a call gives."""
    bounds, longest = given[BOUNDS], given.get(LONGEST)
    if x.shape[0] != 1 or bounds.dim() != 1 or not isinstance(longest, int):
        raise PlainPath(f"ragged sequences need one row, {BOUNDS} [sequences + 1] and an integer {LONGEST}")
    return Ragged(bounds.to(torch.int32), longest)


def _embedded(model: Any, ids: Tensor, types: Tensor | None, places: Tensor | None) -> Tensor:
    """Return the embeddings [rows, tokens, hidden] of ids [rows, tokens], projected where the family does."""
    family = model.family
    typed = {} if types is None else {"token_type_ids": types}
    x = model.embeddings(input_ids=ids, position_ids=places, **typed)
    projection = getattr(model, family.projection, None) if family.projection else None
    return x if projection is None else projection(x)


def _places(model: Any, ids: Tensor) -> Tensor:
    """Return the position of each token, [B, T], as the embeddings count them."""
    if not model.family.embeddings.counted:
        return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    padding = model.embeddings.padding_idx
    is_token = ids != padding
    return is_token.cumsum(1) * is_token + padding


def _unpad(kept: Tensor) -> Unpadded | None:
    """Return the kept tokens [B, T], read from the device at once; None if all are kept.

    Raises:
        PlainPath: A row begins with padding.
    """
    lengths = kept.sum(1)
    total, longest, begun = torch.stack((lengths.sum(), lengths.max(), kept[:, 0].all().long())).tolist()
    if not begun:
        raise PlainPath(LEFT_PADDING)
    return None if total == kept.numel() else Unpadded.of(kept, total, longest)
