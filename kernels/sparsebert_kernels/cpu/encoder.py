"""A whole encoder in one native call: its layers and what surrounds them, described once, and the call.

There are three engines. That for float32 computes in float32. That for bfloat16 holds activations in bfloat16
and computes weights in row panels, through the bf16 and int8 units of recent CPUs. That for float16 holds
activations in float16 and computes single weights, through AVX512-FP16. Residuals, LayerNorm and softmax stay
in float32 arithmetic in all of them.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..formats import ElementFp16, ElementSparse, PackedWeight, RowPanelSparse, VectorSparse
from ..formats.element_fp16 import LARGEST
from ..memory import readable
from . import fp16, native
from .encoder_parts import DensePanel, EncoderEnds, EncoderLayer

# The structs sb_layer, after its six weights, sb_ends, after its two, and sb_encoder_call of src/native.h,
# which asserts their sizes and offsets.
_LAYER = struct.Struct("=QQQQQiifffiQQqqqii")
_ENDS = struct.Struct("=QQQQQQQqqqqqffii")
_ENCODER_CALL = struct.Struct("=QQQQqqqiiQQQQiiiiQii")
_ENGINES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_FP16_EMULATED_ENGINE = 3
# Results of sb_encoder.
_BAD_ID, _PADDING_FIRST, _GAP, _OUT_OF_RANGE, _WEIGHTED = 2, 3, 4, 5, 6
# Rows that a kernel computes together: biases are padded to a multiple, and in bfloat16 the heads too.
ROWS = 8
PAIRED_ROWS = 32


class BadTokens(ValueError):
    """The native encoder does not take these ids or this mask; nothing was computed."""


class OutOfRange(BadTokens):
    """A token id, a token type or a position lies outside its embeddings."""


class BeyondFp16(ArithmeticError):
    """Values inside an encoder in float16 are out of its range, infinite or NaN; nothing was returned."""


class WeightedMask(BadTokens):
    """Vectors of sequences are asked for with a mask that has other values than 0 and 1."""


class Reduction(NamedTuple):
    """How the states of a sequence are reduced to one vector; see ``pooling.pool``."""

    mean: bool
    normalize: bool


class Encoded(NamedTuple):
    """The results of a call for token ids.

    Attributes:
        states: The last layer's output [batch, tokens, hidden], zero where the mask is.
        pooled: The pooler's output [batch, rows of the pooler]; None without a pooler.
        vectors: One vector for each sequence [batch, hidden], as asked for; else None.
    """

    states: Tensor
    pooled: Tensor | None
    vectors: Tensor | None


class NativeEnds:
    """``EncoderEnds`` described for the native library, which reads the tensors at each call.

    ``dtype`` is that of the encoder.

    Attributes:
        addresses: Those of the tensors that the library reads.
    """

    def __init__(self, ends: EncoderEnds, dtype: torch.dtype = torch.float32) -> None:
        self._alive: list[Tensor] = []
        multiple = rows_of(dtype)
        self.width = None if ends.words is None else ends.words.shape[1]
        self.pooled = 0 if ends.pooler is None else ends.pooler.shape[0]
        tables = (ends.words, ends.positions, ends.types)
        dtypes = {table.dtype for table in tables if table is not None}
        stored = torch.bfloat16 if dtypes == {torch.bfloat16} and dtype == torch.bfloat16 else torch.float32
        description = b"".join(
            _described(weight, bias, self._alive, multiple)
            for weight, bias in ((ends.projection, ends.projection_bias), (ends.pooler, ends.pooler_bias))
        )
        description += _ENDS.pack(
            *(_address(table, self._alive, stored) for table in tables),
            *(
                self._address(tensor)
                for norm in (ends.embedding_norm, ends.final_norm)
                for tensor in norm or (None, None)
            ),
            *(0 if table is None else table.shape[0] for table in (tables[0], tables[1], tables[2])),
            self.width or 0,
            -1 if ends.padding is None else ends.padding,
            *ends.epsilons,
            _ENGINES[stored],
            0,
        )
        self.description = ctypes.create_string_buffer(description, len(description))
        self.addresses = _addresses(self._alive)

    def _address(self, tensor: Tensor | None) -> int:
        return _address(tensor, self._alive)


class NativeEncoder:
    """Layers described for the native library.

    The packed weights are read at each call. So are the biases and the parameters of the LayerNorms, except
    those that are copied, once: biases that need padding, and tensors not ``read_in_place``.

    Attributes:
        weights: The packed weights of each layer, as in ``EncoderLayer``.
    """

    def __init__(self, layers: Sequence[EncoderLayer], dtype: torch.dtype = torch.float32) -> None:
        """Describe the layers.

        Args:
            layers: At least one layer.
            dtype: Of the activations between the layers: float32, bfloat16 or float16.
        """
        query = layers[0].weights[0]
        assert query is not None
        self.hidden = query.shape[1]
        self.dtype = dtype
        self._engine = _engine(dtype)
        self._count = len(layers)
        self.weights = [tuple(layer.weights) for layer in layers]
        self._alive: list[Tensor] = []
        description = b"".join(map(self._describe, layers))
        self._description = ctypes.create_string_buffer(description, len(description))
        self.addresses = _addresses(self._alive)

    def __call__(self, x: Tensor, mask: Tensor | None = None, ends: NativeEnds | None = None) -> Tensor:
        """Return the last layer's output for the tokens that ``mask`` keeps, and zeros for the others.

        Args:
            x: [batch, tokens, hidden] on the CPU, float32, or with ``dtype`` bfloat16 also bfloat16.
            mask: Bool [batch, tokens], True = keep. Tokens attend to the kept tokens of their sequence.
            ends: What runs after the layers; its embeddings and its pooler are not used.

        Raises:
            BadTokens: Padding lies between tokens in layers to which their distance matters.
            BeyondFp16: In float16, values that it cannot hold.
            ValueError: Shapes or dtypes do not fit.
        """
        dtypes = (torch.float32, *(torch.bfloat16,) * (self.dtype == torch.bfloat16))
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
        self._run(x.shape, y, x=x, mask=mask, ends=ends)
        return y

    def of_ids(
        self,
        ids: Tensor,
        mask: Tensor | None,
        types: Tensor | None,
        ends: NativeEnds,
        *,
        dtype: torch.dtype = torch.float32,
        reduction: Reduction | None = None,
    ) -> Encoded:
        """Run embeddings, layers and pooler for token ids, and reduce sequences to vectors.

        Args:
            ids: [batch, tokens], int64 on the CPU.
            mask: The same shape, bool or int64, not zero = keep; None keeps all.
            types: The token types, like ``ids``; None for the first type.
            ends: The embeddings and what runs after the layers.
            dtype: Of the results: float32, or that of the encoder.
            reduction: How each sequence becomes a vector, if at all.

        Raises:
            OutOfRange: An id, a type or a position has no embedding.
            WeightedMask: The mask has other values than 0 and 1, and there is a reduction.
            BadTokens: A sequence begins with padding, or padding lies between tokens in layers to which their
                distance matters.
            BeyondFp16: In float16, values that it cannot hold.
        """
        shape = (*ids.shape, self.hidden)
        ids = readable(ids.contiguous())
        mask = None if mask is None else readable(mask.contiguous())
        types = None if types is None else readable(types.contiguous())
        y = torch.empty(shape, dtype=dtype)
        pooled = torch.empty(shape[0], ends.pooled) if ends.pooled else None
        vectors = torch.empty(shape[0], self.hidden) if reduction else None
        if shape[0]:
            self._run(
                shape,
                y,
                mask=mask,
                ends=ends,
                ids=ids,
                types=types,
                pooled=pooled,
                vectors=vectors,
                reduction=reduction,
            )
        if dtype != torch.float32:
            pooled, vectors = (None if each is None else each.to(dtype) for each in (pooled, vectors))
        return Encoded(y, pooled, vectors)

    def _run(
        self,
        shape: Sequence[int],
        y: Tensor,
        *,
        x: Tensor | None = None,
        mask: Tensor | None = None,
        ends: NativeEnds | None = None,
        ids: Tensor | None = None,
        types: Tensor | None = None,
        pooled: Tensor | None = None,
        vectors: Tensor | None = None,
        reduction: Reduction | None = None,
    ) -> None:
        call = _ENCODER_CALL.pack(
            0 if x is None else x.data_ptr(),
            y.data_ptr(),
            0 if mask is None else mask.data_ptr(),
            ctypes.addressof(self._description),
            *shape,
            self._count,
            native.threads(),
            0 if ends is None else ctypes.addressof(ends.description),
            0 if ids is None else ids.data_ptr(),
            0 if types is None else types.data_ptr(),
            0 if pooled is None else pooled.data_ptr(),
            1 if mask is None else mask.element_size(),
            ids is not None,
            self._engine,
            _ENGINES[y.dtype],
            0 if vectors is None else vectors.data_ptr(),
            *(reduction or (0, 0)),
        )
        result = native.library().sb_encoder(call)
        if result == _BAD_ID:
            raise OutOfRange("a token id, a token type or a position is outside its embeddings")
        if result == _PADDING_FIRST:
            raise BadTokens("a row of the batch begins with padding, or holds nothing else; pad on the right")
        if result == _GAP:
            raise BadTokens("padding lies between the tokens of a row; pad on the right")
        if result == _OUT_OF_RANGE:
            raise BeyondFp16(f"values inside the encoder are beyond fp16's range ({LARGEST:g}) or not finite")
        if result == _WEIGHTED:
            raise WeightedMask("the attention mask has other values than 0 and 1")
        if result != 0:
            raise ValueError("the layers' weights do not fit together, or the library lacks their formats")

    def _describe(self, layer: EncoderLayer) -> bytes:
        """Return the bytes of a struct sb_layer."""
        weights = b"".join(
            _described(weight, bias, self._alive, rows_of(self.dtype))
            for weight, bias in zip(layer.weights, layer.biases, strict=True)
        )
        heads = torch.tensor(layer.heads, dtype=torch.int32)
        self._alive.append(heads)
        bias, rotary = layer.relative_bias, layer.rotary
        return weights + _LAYER.pack(
            *(
                _address(tensor, self._alive)
                for norm in (layer.attention_norm, layer.output_norm)
                for tensor in norm or (None, None)
            ),
            heads.data_ptr(),
            len(layer.heads),
            native.ACTIVATIONS[layer.activation],
            *layer.epsilons,
            layer.scale,
            layer.pre_norm,
            _address(bias, self._alive),
            _address(rotary, self._alive),
            0 if bias is None else bias.shape[1] // 2,
            0 if rotary is None else rotary.shape[0],
            -1 if layer.window is None else layer.window,
            layer.gated,
            0,
        )


def has_engine(dtype: torch.dtype) -> bool:
    """Return whether the library and this machine have the engine for activations of a dtype."""
    if dtype == torch.float16:
        return fp16.why_unavailable() is None
    return native.has_engine(_ENGINES[dtype])


def rows_of(dtype: torch.dtype) -> int:
    """Return the rows that the engine for a dtype computes together."""
    return PAIRED_ROWS if dtype == torch.bfloat16 else ROWS


def _engine(dtype: torch.dtype) -> int:
    return _FP16_EMULATED_ENGINE if dtype == torch.float16 and fp16.emulating() else _ENGINES[dtype]


def _described(
    weight: PackedWeight | None, bias: Tensor | None, alive: list[Tensor], multiple: int = ROWS
) -> bytes:
    """Return the bytes of a struct sb_weight, and keep its tensors alive; zeros for None."""
    if weight is None:
        return bytes(native.WEIGHT_BYTES)
    padded = _padded_bias(bias, weight.shape[0], multiple)
    alive += [*weight.tensors().values(), padded]
    if isinstance(weight, ElementFp16):
        return fp16.describe(weight, padded, None, None)
    return native.describe(weight, padded, None)


def _address(tensor: Tensor | None, alive: list[Tensor], dtype: torch.dtype = torch.float32) -> int:
    """Return where the native library reads a tensor in a dtype, which stays alive; 0 for None."""
    if tensor is None:
        return 0
    alive.append(readable(tensor.detach().to(dtype).contiguous()))
    return alive[-1].data_ptr()


def _addresses(tensors: Sequence[Tensor]) -> frozenset[int]:
    return frozenset(tensor.data_ptr() for tensor in tensors if tensor.numel())


def supports(weight: PackedWeight, dtype: torch.dtype = torch.float32) -> bool:
    """Return whether the engine for activations of a dtype computes a packed weight."""
    if dtype == torch.bfloat16:
        return isinstance(weight, RowPanelSparse) and read_in_place(weight.values)
    if dtype == torch.float16:
        return isinstance(weight, ElementFp16) and read_in_place(weight.values)
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
