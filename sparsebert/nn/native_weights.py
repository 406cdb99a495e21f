"""Linear layers and LayerNorms in the native form of an engine, and which of their tensors it copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparsebert.compaction.live_rectangle import RectangleLinear
from sparsebert.nn.plain_path import PlainPath
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert_kernels.cpu import encoder as kernels
from sparsebert_kernels.cpu.encoder import DensePanel, HeadGroup
from sparsebert_kernels.cpu.row_panels import pack_row_panels, pad_columns, pad_rows, padded_heads
from sparsebert_kernels.formats import ElementFp16, ElementSparse, PackedWeight, VectorSparse


def require_float32(tensor: Tensor) -> None:
    """Raise ``PlainPath`` unless a parameter is float32 on the CPU."""
    if tensor.dtype != torch.float32 or not tensor.is_cpu:
        raise PlainPath(f"a parameter is {tensor.dtype} on {tensor.device}, not torch.float32 on cpu")


def require_linear(module: Any) -> None:
    """Raise ``PlainPath`` unless a linear layer has a native form."""
    if type(module) not in (nn.Linear, SparseLinear, RectangleLinear):
        raise PlainPath(f"{type(module).__name__} is not a plain or sparse linear layer")
    if 0 in (module.in_features, module.out_features):
        raise PlainPath("a linear layer is empty")


def require_norm(module: nn.Module) -> None:
    """Raise ``PlainPath`` unless a module is a LayerNorm with a weight."""
    if type(module) is not nn.LayerNorm or module.weight is None:
        raise PlainPath(f"{type(module).__name__} is not a LayerNorm with a weight")


def norm_tensors(module: Any) -> tuple[Tensor, Tensor] | None:
    """Return weight and bias of a LayerNorm, zeros for none; None for an identity."""
    if isinstance(module, nn.Identity):
        return None
    bias = torch.zeros_like(module.weight) if module.bias is None else module.bias
    require_float32(module.weight)
    require_float32(bias)
    return module.weight, bias


def bias_of(module: Any) -> Tensor | None:
    """Return the bias of a linear layer.

    Raises:
        PlainPath: It is not float32 on the CPU.
    """
    if module.bias is not None:
        require_float32(module.bias)
    return module.bias


class Padding(NamedTuple):
    """The heads, (heads, width), whose rows or columns of a matrix are spread over whole row panels."""

    rows: Sequence[tuple[int, int]] = ()
    columns: Sequence[tuple[int, int]] = ()


UNPADDED = Padding()


def paddings_of(heads: Sequence[HeadGroup], dtype: torch.dtype) -> list[Padding]:
    """Return the paddings of a layer's six matrices that the engine for a dtype needs."""
    if dtype != torch.bfloat16 or heads == padded_heads(heads):
        return [UNPADDED] * 6
    scores = [(group.heads, group.score) for group in heads]
    values = [(group.heads, group.value) for group in heads]
    query = Padding(rows=scores)
    return [query, query, Padding(rows=values), Padding(columns=values), UNPADDED, UNPADDED]


def packed_weight(
    module: Any, dtype: torch.dtype = torch.float32, padding: Padding = UNPADDED
) -> PackedWeight:
    """Return the layer's own packed weight if the engine for a dtype computes it, else one that it does."""
    if _own_weight(module, dtype, padding):
        packed: PackedWeight = module.packed
        return packed
    weight = module.weight
    if weight.dtype != torch.float32 or not weight.is_cpu or weight.is_meta:
        raise PlainPath(f"a weight is {weight.dtype} on {weight.device}, not torch.float32 on cpu")
    if dtype == torch.bfloat16:
        return _row_panels(module, padding)
    if dtype == torch.float16:
        return _in_fp16(module)
    if isinstance(module, RectangleLinear):
        live = module.whole(torch.ones_like(weight, dtype=torch.bool))
        return VectorSparse.from_dense(module.whole(weight.detach()), live)
    if isinstance(module, SparseLinear) and module.format == "compact":
        return VectorSparse.from_dense(weight)
    if isinstance(module, SparseLinear) and module.format != "dense":
        return ElementSparse.from_dense(weight, module.mask)
    return DensePanel.from_dense(weight)


def _own_weight(module: Any, dtype: torch.dtype, padding: Padding) -> bool:
    """Whether the engine for a dtype reads the layer's own packed weight."""
    return isinstance(module, SparseLinear) and padding == UNPADDED and kernels.supports(module.packed, dtype)


def _in_fp16(module: Any) -> PackedWeight:
    packed = module.packed if isinstance(module, SparseLinear) else None
    try:
        if isinstance(packed, ElementSparse) and packed.dtype == torch.float32:
            return ElementFp16.from_fp32(packed)
        return ElementFp16.from_dense(*_weight_and_mask(module))
    except ValueError as error:
        raise kernels.BeyondFp16(str(error)) from None


def _row_panels(module: Any, padding: Padding) -> PackedWeight:
    weight, mask = _weight_and_mask(module)
    weight, mask = (pad_columns(pad_rows(each, padding.rows), padding.columns) for each in (weight, mask))
    stored = torch.int8 if getattr(module, "precision", "") == "int8" else torch.bfloat16
    return pack_row_panels(weight, mask, stored)


def _weight_and_mask(module: Any) -> tuple[Tensor, Tensor]:
    weight = module.weight.detach()
    # Zeros of a dense layer count as weights, as in fp32: sparsity is what `sparsify_` makes.
    mask = module.mask if isinstance(module, SparseLinear) else torch.ones_like(weight, dtype=torch.bool)
    if isinstance(module, RectangleLinear):
        weight, mask = module.whole(weight), module.whole(mask)
    return weight, mask


def copied_of_linear(
    module: Any, dtype: torch.dtype = torch.float32, padding: Padding = UNPADDED
) -> list[Tensor]:
    """Return the weight and bias that a linear layer's description holds copies of.

    Raises:
        PlainPath: In-place changes of the weight are not counted.
    """
    copied = []
    in_place = _own_weight(module, dtype, padding)
    weight = module.values if isinstance(module, SparseLinear) else module.weight
    # The values of a prepacked layer are opaque: they are replaced, not changed.
    if not in_place and weight.layout == torch.strided and weight.numel():
        if weight.is_inference():
            raise PlainPath(
                "a weight was made under torch.inference_mode(), which does not count changes; "
                "load the model outside it"
            )
        copied.append(weight)
    bias, rows = module.bias, kernels.rows_of(dtype)
    if bias is not None and (bias.numel() % rows or padding.rows or not kernels.read_in_place(bias)):
        copied.append(bias)
    return copied
