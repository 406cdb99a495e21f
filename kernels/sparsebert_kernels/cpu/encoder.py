"""A whole encoder in one native call: its layers, described once, and the call.

There are two engines. That for float32 computes in float32. That for bfloat16 holds activations in bfloat16
and computes weights in row panels, through the bf16 and int8 units of recent CPUs; residuals, LayerNorm and
softmax stay in float32 arithmetic.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..formats import ElementSparse, PackedWeight, RowPanelSparse, VectorSparse
from ..formats.base import SLACK_BYTES, refuse_options
from ..memory import readable
from . import native

# The structs sb_layer, after its six weights, and sb_encoder_call of src/native.h, which asserts their sizes
# and offsets.
_LAYER = struct.Struct("=QQQQQiifffi")
_ENCODER_CALL = struct.Struct("=QQQQqqqiiii")
_ENGINES = {torch.float32: 0, torch.bfloat16: 1}
# Rows that a kernel computes together: biases are padded to a multiple, and in bfloat16 the heads too.
ROWS = 8
PAIRED_ROWS = 32
DENSE_ROWS = 4


class DensePanel(PackedWeight):
    """A dense matrix for token panels: four rows side by side, column by column.

    Attributes:
        values: float32 [ceil(out / 4) * in * 4 + slack]; rows past the last are zero.
    """

    name = "dense token panel"
    TENSORS = ("values",)
    GEOMETRY = ("block_rows", "block_columns")

    block_rows: int
    block_columns: int

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor | None = None, **options: object) -> DensePanel:
        """See ``PackedWeight.from_dense``."""
        refuse_options(cls, options)
        weight = weight.detach() if mask is None else torch.where(mask, weight.detach(), 0)
        rows, columns = weight.shape
        groups = -(-rows // DENSE_ROWS)
        padded = torch.nn.functional.pad(weight, (0, 0, 0, groups * DENSE_ROWS - rows))
        packed = padded.view(groups, DENSE_ROWS, columns).transpose(1, 2).reshape(-1)
        values = torch.nn.functional.pad(packed, (0, SLACK_BYTES // weight.element_size()))
        return cls((rows, columns), {"values": values}, {"block_rows": 768, "block_columns": 128})

    def to_dense(self) -> Tensor:
        rows, columns = self.shape
        groups = -(-rows // DENSE_ROWS)
        values = self.values[: groups * columns * DENSE_ROWS].view(groups, columns, DENSE_ROWS)
        return values.transpose(1, 2).reshape(-1, columns)[:rows]

    def kept(self) -> Tensor:
        return self.to_dense() != 0


class HeadGroup(NamedTuple):
    """Heads of equal widths, which are neighbours in the projections' rows."""

    heads: int
    score: int  # rows of a head in query and key
    value: int  # rows of a head in value


@dataclass(frozen=True)
class EncoderLayer:
    """The tensors of one layer, on the CPU.

    Attributes:
        weights: Query, key, value, output, up, down: ``ElementSparse``, ``VectorSparse`` or ``DensePanel`` in
            float32, or for encoders in bfloat16 ``RowPanelSparse`` (``supports``).
        biases: Their biases; None for none.
        attention_norm: Weight and bias of the LayerNorm after the attention.
        output_norm: Those of the LayerNorm after the feed-forward network.
        epsilons: The two LayerNorms' epsilons.
        heads: The heads, in the order of the projections' rows. In bfloat16, widths are multiples of
            ``PAIRED_ROWS`` (``paired_layer``).
        scale: Factor of the scores.
        activation: "relu", "gelu" or "gelu_tanh".
    """

    weights: Sequence[PackedWeight]
    biases: Sequence[Tensor | None]
    attention_norm: tuple[Tensor, Tensor]
    output_norm: tuple[Tensor, Tensor]
    epsilons: tuple[float, float]
    heads: Sequence[HeadGroup]
    scale: float
    activation: str


class NativeEncoder:
    """Layers described for the native library.

    The packed weights are read at each call. So are the biases and the parameters of the LayerNorms, except
    those that are copied, once: biases that need padding, and tensors not ``read_in_place``.
    """

    def __init__(self, layers: Sequence[EncoderLayer], dtype: torch.dtype = torch.float32) -> None:
        """Describe the layers.

        Args:
            layers: At least one layer.
            dtype: Of the activations between the layers: float32 or bfloat16.
        """
        self.hidden = layers[0].weights[0].shape[1]
        self.dtype = dtype
        self._engine = _ENGINES[dtype]
        self._count = len(layers)
        self._alive: list[Tensor] = []
        description = b"".join(map(self._describe, layers))
        self._description = ctypes.create_string_buffer(description, len(description))

    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the last layer's output for the tokens that ``mask`` keeps, and zeros for the others.

        Args:
            x: [batch, tokens, hidden] on the CPU, float32, or with ``dtype`` bfloat16 also bfloat16.
            mask: Bool [batch, tokens], True = keep. Tokens attend to the kept tokens of their sequence.

        Raises:
            ValueError: Shapes or dtypes do not fit.
        """
        dtypes = {torch.float32: 0, self.dtype: _ENGINES[self.dtype]}
        if x.dim() != 3 or x.shape[2] != self.hidden or x.dtype not in dtypes or not x.is_cpu:
            raise ValueError(
                f"x is {list(x.shape)} of {x.dtype} on {x.device}; "
                f"it must be [batch, tokens, {self.hidden}] of {' or '.join(map(str, dtypes))} on cpu"
            )
        if mask is not None:
            if mask.shape != x.shape[:2] or mask.dtype != torch.bool:
                expected = f"{list(x.shape[:2])} of torch.bool"
                raise ValueError(f"mask is {list(mask.shape)} of {mask.dtype}; it must be {expected}")
            mask = readable(mask.contiguous())
        x = readable(x.contiguous())
        y = torch.empty_like(x)
        call = _ENCODER_CALL.pack(
            x.data_ptr(),
            y.data_ptr(),
            0 if mask is None else mask.data_ptr(),
            ctypes.addressof(self._description),
            *x.shape,
            self._count,
            torch.get_num_threads(),
            self._engine,
            dtypes[x.dtype],
        )
        if native.library().sb_encoder(call) != 0:
            raise ValueError("the layers' weights do not fit together, or the library lacks their formats")
        return y

    def _describe(self, layer: EncoderLayer) -> bytes:
        """Return the bytes of a struct sb_layer."""
        weights = b""
        for weight, bias in zip(layer.weights, layer.biases, strict=True):
            padded = _padded_bias(bias, weight.shape[0], PAIRED_ROWS if self._engine else ROWS)
            self._alive += [*weight.tensors().values(), padded]
            weights += native.describe(weight, padded, None)
        heads = torch.tensor(layer.heads, dtype=torch.int32)
        norms = [
            readable(tensor.detach().float().contiguous())
            for tensor in (*layer.attention_norm, *layer.output_norm)
        ]
        self._alive += [heads, *norms]
        return weights + _LAYER.pack(
            *(tensor.data_ptr() for tensor in norms),
            heads.data_ptr(),
            len(layer.heads),
            native.ACTIVATIONS[layer.activation],
            *layer.epsilons,
            layer.scale,
            0,
        )


def has_engine(dtype: torch.dtype) -> bool:
    """Return whether the library and this machine have the engine for activations of a dtype."""
    return native.available() and bool(native.library().sb_has_engine(_ENGINES[dtype]))


def supports(weight: PackedWeight, dtype: torch.dtype = torch.float32) -> bool:
    """Return whether the engine for activations of a dtype computes a packed weight."""
    if dtype == torch.bfloat16:
        return isinstance(weight, RowPanelSparse) and read_in_place(weight.values)
    return (
        isinstance(weight, ElementSparse | VectorSparse | DensePanel)
        and weight.dtype == torch.float32
        and read_in_place(weight.values)
    )


def read_in_place(tensor: Tensor) -> bool:
    """Return whether the native library can read a tensor's own memory, without a copy."""
    return readable(tensor.contiguous()) is tensor


def _padded_bias(bias: Tensor | None, rows: int, multiple: int) -> Tensor:
    padding = -rows % multiple
    if bias is None:
        return torch.zeros(rows + padding)
    bias = readable(bias.detach().float().contiguous())
    return torch.nn.functional.pad(bias, (0, padding)) if padding else bias
