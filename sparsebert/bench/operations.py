"""Useful FLOP and compulsory bytes of the parts of a model, by part, precision and format.

Useful are the products of kept weights with tokens that are not padding, two FLOP for each, and those of
attention's scores and values. Compulsory bytes are weights as they are stored, with their index, once a
batch, and the inputs and outputs of each operation. Biases, activation functions, softmax, LayerNorm,
residuals and embeddings count neither FLOP nor bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from sparsebert.bench.providers.onednn import PrepackedLinear
from sparsebert.bench.workload import Workload
from sparsebert.cost.work import moved_bytes, useful_flops
from sparsebert.nn.encoder_layers import EncoderLayer, encoder_layers
from sparsebert.nn.fused_modules import encoders_of
from sparsebert.nn.native_layers import NativeLayers, heads_of
from sparsebert.nn.native_weights import stored_dtype_of
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert_kernels.dtype_names import short_name
from sparsebert_kernels.formats import PackedWeight

# The parts of a layer's six matrices.
LINEARS = ("qkv", "qkv", "qkv", "output", "up", "down")
ATTENTION = "attention"


@dataclass(frozen=True)
class Operation:
    """The matrices of one part, precision and format, or the attentions, of all layers.

    Attributes:
        part: "qkv", "output", "up", "down" or "attention".
        precision: The precision of the products: "fp32", "bf16", "int8", ...
        format: The packed format; "" for attention.
        count: Matrices, or attentions.
        flops: Useful FLOP of a batch.
        bytes: Compulsory bytes of a batch.
        weight_bytes: Those of the weights.
    """

    part: str
    precision: str
    format: str
    count: int
    flops: float
    bytes: float
    weight_bytes: int

    def record(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)


def model_operations(model: nn.Module, workload: Workload) -> list[Operation]:
    """Return the operations of a model on a CPU, per batch of the workload.

    A fused model must have run before: its engine's own weights count.
    """
    batches = len(workload.shapes)
    sums: defaultdict[tuple[str, str, str], list[_Amount]] = defaultdict(list)
    for encoder, family in encoders_of(model):
        engine: NativeLayers | None = vars(encoder).get("_native")
        held = engine.form.engine if engine else stored_dtype_of(encoder)
        for number, layer in enumerate(encoder_layers(encoder, family)):
            weights = engine.encoder.weights[number] if engine else (None,) * len(LINEARS)
            for key, amount in _linears(layer, weights, workload, held):
                sums[key].append(amount)
            heads, _ = heads_of(layer, family)
            widths = sum(group.heads * (group.score + group.value) for group in heads)
            window = _window(encoder, layer)
            pairs = sum(attended_pairs(length, window) for length in workload.lengths)
            amount = _Amount(
                useful_flops(widths, pairs),
                moved_bytes(0, 2 * widths, workload.real_tokens, held.itemsize),
                0,
            )
            sums[ATTENTION, _precision(held), ""].append(amount)
    return [
        Operation(
            *key,
            count=len(amounts),
            flops=sum(each.flops for each in amounts) / batches,
            bytes=sum(each.activations for each in amounts) / batches
            + sum(each.weight_bytes for each in amounts),
            weight_bytes=sum(each.weight_bytes for each in amounts),
        )
        for key, amounts in sums.items()
    ]


@dataclass(frozen=True)
class _Amount:
    """FLOP and bytes of activations over all batches, and the bytes of a weight."""

    flops: int
    activations: int
    weight_bytes: int


def _linears(
    layer: EncoderLayer, weights: Sequence[PackedWeight | None], workload: Workload, held: torch.dtype
) -> Iterator[tuple[tuple[str, str, str], _Amount]]:
    """Yield part, precision and format of each matrix of a layer, with what it computes and moves.

    Args:
        layer: The layer.
        weights: The engine's weight of each matrix; None where the module's own counts.
        workload: The batches.
        held: Dtype of the activations between the operations.
    """
    read: set[str] = set()
    linears: Sequence[Any] = layer.linears
    for module, weight, part in zip(linears, weights, LINEARS, strict=True):
        if module is None:
            continue
        format, stored, nbytes = _stored(module) if weight is None else _packed(weight)
        # Query, key and value read the same input.
        features = module.out_features + (module.in_features if part not in read else 0)
        read.add(part)
        yield (
            (part, _precision(stored), format),
            _Amount(
                useful_flops(_kept(module), workload.real_tokens),
                moved_bytes(0, features, workload.real_tokens, held.itemsize),
                nbytes,
            ),
        )


def _precision(dtype: torch.dtype) -> str:
    return "int8" if dtype == torch.int8 else short_name(dtype)


def _packed(weight: PackedWeight) -> tuple[str, torch.dtype, int]:
    return weight.name, weight.dtype, weight.nbytes


def _stored(module: Any) -> tuple[str, torch.dtype, int]:
    """Return format, dtype and bytes of the weight that a module multiplies with."""
    if isinstance(module, SparseLinear):
        return _packed(module.packed)
    weight = module.packed if isinstance(module, PrepackedLinear) else module.weight
    return "dense", weight.dtype, weight.numel() * weight.dtype.itemsize


def _kept(module: Any) -> int:
    """Return the number of kept weights; all of a dense layer's count."""
    if isinstance(module, SparseLinear):
        return int(module.mask.sum())
    return (module.packed if isinstance(module, PrepackedLinear) else module.weight).numel()


def _window(encoder: Any, layer: EncoderLayer) -> int | None:
    """Return how far away tokens attend to others; None for all."""
    local = getattr(layer.layer, "attention_type", None) == "sliding_attention"
    return encoder.config.sliding_window if local else None


def attended_pairs(length: int, window: int | None = None) -> int:
    """Return the pairs of a query and a key at most ``window`` tokens away, in a sequence of ``length``."""
    reach = length - 1 if window is None else min(window, length - 1)
    return length * (2 * reach + 1) - reach * (reach + 1)
