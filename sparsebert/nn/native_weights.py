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
from sparsebert_kernels.cpu import native
from sparsebert_kernels.cpu.encoder_parts import DensePanel, HeadGroup
from sparsebert_kernels.cpu.row_panels import pack_row_panels, pad_columns, pad_rows, padded_heads
from sparsebert_kernels.formats import ElementFp16, ElementSparse, PackedWeight, VectorSparse


class NativeForm(NamedTuple):
    """The form in which an engine takes a model.

    Attributes:
        engine: Dtype of the activations between the layers: float32, bfloat16 in the paired engine, float16.
        stored: Dtype of the model's parameters, inputs and results: float32 or bfloat16.
        dense: Dtype in which dense layers are stored for the engine: that of the engine, or int8.
    """

    engine: torch.dtype
    stored: torch.dtype
    dense: torch.dtype


def native_form(tolerance: str, stored: torch.dtype) -> NativeForm:
    """Return the form of a model whose layers may compute in the precision ``tolerance``.

    The paired engine computes models in bfloat16, and others if the tolerance allows it and the library has
    that engine for this machine. With "int8", dense layers are stored in int8 there. The tolerance "fp16",
    with which modules are fused where a timing chose it, is for the fp16 engine alone.

    Raises:
        PlainPath: No engine here computes models with parameters of the dtype ``stored``.
    """
    if stored == torch.float16:
        raise PlainPath("no engine takes models in torch.float16: convert the model to bfloat16 or float32")
    if stored not in (torch.float32, torch.bfloat16):
        raise PlainPath(f"no engine takes models in {stored}, only in torch.float32 or torch.bfloat16")
    engine = torch.bfloat16
    if stored == torch.float32:
        engine = {"fp32": torch.float32, "fp16": torch.float16}.get(tolerance, engine)
    if engine != torch.float32 and not kernels.has_engine(engine):
        if stored == torch.bfloat16:
            raise PlainPath(f"{native.instruction_set()} has no engine for models in torch.bfloat16")
        engine = torch.float32
    in_int8 = engine == torch.bfloat16 and tolerance == "int8"
    return NativeForm(engine, stored, torch.int8 if in_int8 else engine)


def stored_dtype_of(module: nn.Module) -> torch.dtype:
    """Return the dtype of a module's parameters, by the first of them.

    Raises:
        PlainPath: It has none.
    """
    for parameter in module.parameters():
        return parameter.dtype
    raise PlainPath("the encoder has no parameters")


def require_stored(tensor: Tensor, stored: torch.dtype) -> None:
    """Raise ``PlainPath`` unless a parameter is of the dtype ``stored`` on the CPU."""
    if tensor.dtype != stored or not tensor.is_cpu:
        raise PlainPath(f"a parameter is {tensor.dtype} on {tensor.device}, not {stored} on cpu")


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


def norm_tensors(module: Any, stored: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """Return weight and bias of a LayerNorm, zeros for none; None for an identity.

    Raises:
        PlainPath: One is not of the dtype ``stored`` on the CPU.
    """
    if isinstance(module, nn.Identity):
        return None
    bias = torch.zeros_like(module.weight) if module.bias is None else module.bias
    require_stored(module.weight, stored)
    require_stored(bias, stored)
    return module.weight, bias


def bias_of(module: Any, stored: torch.dtype) -> Tensor | None:
    """Return the bias of a linear layer.

    Raises:
        PlainPath: It is not of the dtype ``stored`` on the CPU.
    """
    if module.bias is not None:
        require_stored(module.bias, stored)
    return module.bias


class Padding(NamedTuple):
    """The heads, (heads, width), whose rows or columns of a matrix are spread over whole row panels."""

    rows: Sequence[tuple[int, int]] = ()
    columns: Sequence[tuple[int, int]] = ()


UNPADDED = Padding()


def paddings_of(
    heads: Sequence[HeadGroup], form: NativeForm, *, joint: bool = False, gated: int = 0, rotary: bool = False
) -> list[Padding]:
    """Return the paddings of a layer's six matrices that its engine needs.

    Args:
        heads: The heads.
        form: The form of the layer.
        joint: Whether one matrix computes query, key and value.
        gated: Neurons of a gated feed-forward network; 0 for one without gates.
        rotary: Whether halves of query and key are rotated together.
    """
    paddings = [UNPADDED] * 6
    if form.engine != torch.bfloat16:
        return paddings
    if list(heads) != padded_heads(heads, rotary=rotary):
        halves = 2 if rotary else 1
        scores = [(group.heads * halves, group.score // halves) for group in heads]
        values = [(group.heads, group.value) for group in heads]
        query = Padding(rows=[*scores, *scores, *values] if joint else scores)
        paddings[:4] = [query, query, Padding(rows=values), Padding(columns=values)]
    if gated % 2:
        paddings[4:] = [Padding(rows=[(2, gated)]), Padding(columns=[(1, gated)])]
    return paddings


def packed_weight(module: Any, form: NativeForm, padding: Padding = UNPADDED) -> PackedWeight:
    """Return the layer's own packed weight if the engine of a form computes it, else one that it does."""
    if _own_weight(module, form, padding):
        packed: PackedWeight = module.packed
        return packed
    weight = module.weight
    if weight.dtype != form.stored or not weight.is_cpu or weight.is_meta:
        raise PlainPath(f"a weight is {weight.dtype} on {weight.device}, not {form.stored} on cpu")
    if form.engine == torch.bfloat16:
        return _row_panels(module, form, padding)
    if form.engine == torch.float16:
        return _in_fp16(module)
    if isinstance(module, RectangleLinear):
        live = module.whole(torch.ones_like(weight, dtype=torch.bool))
        return VectorSparse.from_dense(module.whole(weight.detach()), live)
    if isinstance(module, SparseLinear) and module.format == "compact":
        return VectorSparse.from_dense(weight)
    if isinstance(module, SparseLinear) and module.format != "dense":
        return ElementSparse.from_dense(weight, module.mask)
    return DensePanel.from_dense(weight)


def _own_weight(module: Any, form: NativeForm, padding: Padding) -> bool:
    """Whether the engine of a form reads the layer's own packed weight."""
    is_sparse = isinstance(module, SparseLinear) and padding == UNPADDED
    return is_sparse and kernels.supports(module.packed, form.engine)


def _in_fp16(module: Any) -> PackedWeight:
    packed = module.packed if isinstance(module, SparseLinear) else None
    try:
        if isinstance(packed, ElementSparse) and packed.dtype == torch.float32:
            return ElementFp16.from_fp32(packed)
        return ElementFp16.from_dense(*_weight_and_mask(module))
    except ValueError as error:
        raise kernels.BeyondFp16(str(error)) from None


def _row_panels(module: Any, form: NativeForm, padding: Padding) -> PackedWeight:
    weight, mask = _weight_and_mask(module)
    weight, mask = (pad_columns(pad_rows(each, padding.rows), padding.columns) for each in (weight, mask))
    if isinstance(module, SparseLinear):
        return pack_row_panels(weight, mask, torch.int8 if module.precision == "int8" else torch.bfloat16)
    return pack_row_panels(weight, mask, form.dense)


def _weight_and_mask(module: Any) -> tuple[Tensor, Tensor]:
    weight = module.weight.detach()
    # Zeros of a dense layer count as weights, as in fp32: sparsity is what `sparsify_` makes.
    mask = module.mask if isinstance(module, SparseLinear) else torch.ones_like(weight, dtype=torch.bool)
    if isinstance(module, RectangleLinear):
        weight, mask = module.whole(weight), module.whole(mask)
    return weight, mask


def copied_of_linear(module: Any, form: NativeForm, padding: Padding = UNPADDED) -> list[Tensor]:
    """Return the weight and bias that a linear layer's description holds copies of.

    Raises:
        PlainPath: In-place changes of the weight are not counted.
    """
    copied = []
    in_place = _own_weight(module, form, padding)
    weight = module.values if isinstance(module, SparseLinear) else module.weight
    # The values of a prepacked layer are opaque: they are replaced, not changed.
    if not in_place and weight.layout == torch.strided and weight.numel():
        if weight.is_inference():
            raise PlainPath(
                "a weight was made under torch.inference_mode(), which does not count changes; "
                "load the model outside it"
            )
        copied.append(weight)
    bias, rows = module.bias, kernels.rows_of(form.engine)
    if bias is not None and (bias.numel() % rows or padding.rows or is_copied(bias)):
        copied.append(bias)
    return copied


def is_copied(tensor: Tensor) -> bool:
    """Whether a description holds a copy, in float32, of a bias or a parameter of a LayerNorm."""
    return tensor.dtype != torch.float32 or not kernels.read_in_place(tensor)
