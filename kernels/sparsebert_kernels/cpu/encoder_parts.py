"""The parts of an encoder, as ``encoder.NativeEncoder`` takes them: layers, heads, ends, dense matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..formats import PackedWeight
from ..formats.base import SLACK_BYTES, refuse_options

# Rows that a ``DensePanel`` stores side by side.
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
            float32; for encoders in bfloat16 ``RowPanelSparse``, in float16 ``ElementFp16`` (``supports``). A
            query of all the rows of query, key and value leaves the next two None.
        biases: Their biases; None for none.
        attention_norm: Weight and bias of the LayerNorm after the attention, or before it with ``pre_norm``;
            None for none.
        output_norm: Those of the LayerNorm after the feed-forward network, or before it with ``pre_norm``.
        epsilons: The two LayerNorms' epsilons.
        heads: The heads, in the order of the projections' rows. In bfloat16, widths are multiples of
            ``PAIRED_ROWS``, of twice as many with ``rotary`` (``padded_heads``).
        scale: Factor of the scores.
        activation: "relu", "gelu" or "gelu_tanh".
        pre_norm: Whether the LayerNorms stand before attention and feed-forward network, inside the residual.
        gated: Whether up has twice as many rows: neurons = activation(first half) * second half. In bfloat16,
            a half has an even number.
        window: Tokens attend to those at most so far away; None for all.
        relative_bias: Added to the scaled scores, [heads, 2 * reach + 1]: column reach + d for a query d
            tokens after its key, and the outer columns for all beyond; None for none.
        rotary: Cosines, then sines, of the angles that rotate the pairs (i, i + width / 2) of a head's rows
            in query and key, [positions, score width]; None for none.
    """

    weights: Sequence[PackedWeight | None]
    biases: Sequence[Tensor | None]
    attention_norm: tuple[Tensor, Tensor] | None
    output_norm: tuple[Tensor, Tensor]
    epsilons: tuple[float, float]
    heads: Sequence[HeadGroup]
    scale: float
    activation: str
    pre_norm: bool = False
    gated: bool = False
    window: int | None = None
    relative_bias: Tensor | None = None
    rotary: Tensor | None = None


@dataclass(frozen=True)
class EncoderEnds:
    """What runs before the first layer and after the last; all tensors on the CPU.

    Embeddings are float32, or for encoders in bfloat16 all of them bfloat16.

    Attributes:
        words: Embeddings of the token ids, [vocabulary, width]; None without embeddings.
        positions: Embeddings of the positions; None for none.
        types: Embeddings of the token types; None for none.
        embedding_norm: Weight and bias of the LayerNorm of their sum; None for none.
        padding: The position of tokens with this id; the position of the n-th other token of a sequence is
            ``padding + n``. None: positions count from 0.
        projection: From the embeddings' width to that of the layers; None for none.
        projection_bias: Its bias.
        final_norm: The LayerNorm after the last layer; None for none.
        pooler: Weight of the pooler, ``tanh(pooler(first token))``; None for none.
        pooler_bias: Its bias.
        epsilons: Those of ``embedding_norm`` and ``final_norm``.
    """

    words: Tensor | None = None
    positions: Tensor | None = None
    types: Tensor | None = None
    embedding_norm: tuple[Tensor, Tensor] | None = None
    padding: int | None = None
    projection: PackedWeight | None = None
    projection_bias: Tensor | None = None
    final_norm: tuple[Tensor, Tensor] | None = None
    pooler: PackedWeight | None = None
    pooler_bias: Tensor | None = None
    epsilons: tuple[float, float] = (0.0, 0.0)
