"""``Ends``: embeddings, last LayerNorm and pooler of a base model as the native library takes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.nn.encoder_layers import Family, is_of
from sparsebert.nn.native_weights import (
    NativeForm,
    bias_of,
    copied_of_linear,
    is_copied,
    norm_tensors,
    packed_weight,
    require_linear,
    require_norm,
    require_stored,
)
from sparsebert.nn.plain_path import PlainPath
from sparsebert.nn.watched import Watched
from sparsebert_kernels.cpu.encoder import NativeEnds
from sparsebert_kernels.cpu.encoder_parts import EncoderEnds


class Ends(Watched):
    """The native description of a base model's embeddings, last LayerNorm and pooler."""

    def __init__(self, model: Any, family: Family, form: NativeForm) -> None:
        self.form = form
        # Projection and pooler are computed for few tokens, or once.
        exact = form._replace(dense=form.engine)
        embeddings, names = model.embeddings, family.embeddings
        pooler = getattr(model, "pooler", None) if family.pooler else None
        projection = getattr(model, family.projection, None) if family.projection else None
        _require_known_embeddings(embeddings, family)
        words, positions, types = (
            None if name is None else _table(getattr(embeddings, name), form.stored)
            for name in (names.words, names.positions, names.types)
        )
        norm = getattr(embeddings, names.norm)
        final_norm = model.final_norm if family.pre_norm else None
        linears = [module for module in (projection, pooler and pooler.dense) if module is not None]
        for linear in linears:
            require_linear(linear)
            if getattr(linear, "activation", "none") != "none":
                raise PlainPath("a sparse layer applies an activation of its own")
        if pooler is not None and not (
            is_of(pooler, family, family.pooler or "") and type(pooler.activation) is nn.Tanh
        ):
            raise PlainPath(f"{type(pooler).__name__} is not the family's pooler")
        if final_norm is not None:
            require_norm(final_norm)
        outer = [module for module in (embeddings, projection, pooler, final_norm) if module is not None]
        modules = [each for module in outer for each in module.modules()]
        norms = [module for module in (norm, final_norm) if module is not None]
        settings = [(vars(module), "eps") for module in norms]
        if names.counted:
            settings.append((vars(embeddings), "padding_idx"))
        with torch.inference_mode(False), torch.no_grad():
            after = EncoderEnds(
                final_norm=None if final_norm is None else norm_tensors(final_norm, form.stored),
                epsilons=(norm.eps, 0.0 if final_norm is None else final_norm.eps),
            )
            self.native = NativeEnds(
                replace(
                    after,
                    words=words,
                    positions=positions,
                    types=types,
                    embedding_norm=norm_tensors(norm, form.stored),
                    padding=embeddings.padding_idx if names.counted else None,
                    projection=None if projection is None else packed_weight(projection, exact),
                    projection_bias=None if projection is None else bias_of(projection, form.stored),
                    pooler=None if pooler is None else packed_weight(pooler.dense, exact),
                    pooler_bias=None if pooler is None else bias_of(pooler.dense, form.stored),
                ),
                form.engine,
            )
            self.after_embeddings = NativeEnds(after, form.engine)
        copied = [tensor for linear in linears for tensor in copied_of_linear(linear, exact)]
        copied += [tensor for each in norms for tensor in each.parameters() if is_copied(tensor)]
        super().__init__([model, *modules], copied, settings, self.native.addresses)


def _require_known_embeddings(embeddings: Any, family: Family) -> None:
    names = family.embeddings
    if not is_of(embeddings, family, names.cls):
        raise PlainPath(f"{type(embeddings).__name__} is not the family's class of embeddings")
    children = {names.words, names.norm, names.dropout, names.positions, names.types} - {None}
    if children != {*embeddings._modules}:
        raise PlainPath(f"{type(embeddings).__name__} has other modules than its family's")
    require_norm(getattr(embeddings, names.norm))
    if type(getattr(embeddings, names.dropout)) not in (nn.Dropout, nn.Identity):
        raise PlainPath("the dropout of the embeddings is another module")
    if names.counted and not isinstance(embeddings.padding_idx, int):
        raise PlainPath("the embeddings have no padding index to count positions from")
    numbers = embeddings._buffers.get("position_ids")
    if numbers is not None and not torch.equal(numbers[0], torch.arange(numbers.shape[1])):
        raise PlainPath("the position ids of the embeddings do not count from 0")
    types = embeddings._buffers.get("token_type_ids")
    if types is not None and bool(types.any()):
        raise PlainPath("the token types of the embeddings are not 0")


def _table(embedding: Any, stored: torch.dtype) -> Tensor:
    """Return the weight of a plain embedding, of the dtype ``stored`` on the CPU."""
    if type(embedding) is not nn.Embedding or embedding.max_norm is not None:
        raise PlainPath(f"{type(embedding).__name__} is not a plain embedding")
    weight = embedding.weight
    require_stored(weight, stored)
    if not weight.is_contiguous() or weight.is_neg() or weight.data_ptr() % weight.itemsize:
        raise PlainPath("an embedding has no plain memory")
    return weight.detach()
