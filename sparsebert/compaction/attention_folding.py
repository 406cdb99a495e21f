"""Compact the four matrices of an attention: remove heads and dimensions, and fold constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sparsebert.compaction.heads import Head, HeadGroup, find_heads, group_heads, is_whole, slots
from sparsebert.compaction.masked_matrix import EMPTY, Matrix, exact, live_features


@dataclass(frozen=True, eq=False)
class Attention:
    """A compacted attention.

    Attributes:
        query: Query projection, with the rows of each head in the order of ``groups``.
        key: Key projection, in the same order.
        value: Value projection, in the same order.
        output: Output projection, with its columns in the same order.
        heads: The dimensions that each head computes.
        groups: Heads by width; empty if compaction removes nothing and the matrices are the original ones.
    """

    query: Matrix
    key: Matrix
    value: Matrix
    output: Matrix
    heads: tuple[Head, ...]
    groups: tuple[HeadGroup, ...]

    @property
    def matrices(self) -> tuple[Matrix, Matrix, Matrix, Matrix]:
        """Query, key, value and output projection."""
        return self.query, self.key, self.value, self.output


def compact_attention(
    query: Matrix,
    key: Matrix,
    value: Matrix,
    output: Matrix,
    count: int,
    round_to: int = 1,
    packed_for: int = 0,
) -> Attention:
    """Remove the heads and dimensions that do not affect the output.

    The constant dimensions of value add one vector u to the output: the sum of their ``output`` columns, each
    times its bias. u cannot move into the bias of ``output``, because a sequence of padding alone attends to
    nothing under sdpa and must not receive u. Instead, one head (the carrier) gets an extra value dimension
    that is 1 for every token and has u as its output column. Attention averages that dimension to 1, or to 0
    where it attends to nothing.

    Dimensions with a constant query become a single dimension: its query is 1, and its key is the sum of
    their keys, each times its constant.

    Padding has zero weights and biases on both sides, so training keeps it at zero.

    Args:
        query: [heads * size, in].
        key: [heads * size, in].
        value: [heads * size, in].
        output: [out, heads * size].
        count: Number of heads.
        round_to: Pad each width to a multiple of this.
        packed_for: As for ``group_heads``.
    """
    heads = tuple(find_heads(query, key, value, output, count))
    size = len(value.weight) // count
    groups = group_heads(heads, size, round_to, packed_for)
    if len(heads) == count and is_whole(groups, size):
        return Attention(query, key, value, output, heads, ())
    head_of = {head.index: head for head in heads}
    ordered = [head_of[index] for group in groups for index in group.heads]
    score_rows = _source_rows(ordered, groups, "score")
    value_rows = _source_rows(ordered, groups, "value")
    compact_query, compact_key = query.rows(score_rows), key.rows(score_rows)
    starts = slots(groups, "score")
    for head in ordered:
        if len(head.key_bias) > 1:
            slot = starts[head.index][0] + len(head.score)
            compact_query = compact_query.with_row(slot, None, bias=1)
            compact_key = compact_key.with_row(slot, _summed_keys(query, key, head), bias=0)
    compact_value, compact_output = value.rows(value_rows), output.columns(value_rows)
    for head in ordered:
        if head.carrier:
            slot = slots(groups, "value")[head.index][0] + len(head.value)
            _, constant = live_features(value.mask, output.mask)
            compact_value = compact_value.with_row(slot, None, bias=1)
            compact_output = compact_output.with_column(slot, output.times(constant, value.bias[constant]))
    return Attention(compact_query, compact_key, compact_value, compact_output, heads, groups)


def _source_rows(heads: Sequence[Head], groups: Sequence[HeadGroup], kind: str) -> list[int]:
    """Return the original row of each compacted row; ``EMPTY`` for padding and for rows of folded
    constants.
    """
    widths = slots(groups, kind)
    index: list[int] = []
    for head in heads:
        # A single constant query keeps its row: without a sum there is no rounding error.
        unsummed = head.key_bias if len(head.key_bias) == 1 else ()
        rows = (*head.score, *unsummed) if kind == "score" else head.value
        index += [*rows, *[EMPTY] * (widths[head.index][1] - len(rows))]
    return index


def _summed_keys(query: Matrix, key: Matrix, head: Head) -> Tensor:
    """Return the sum of keys with a constant query, each times its constant: float64 [in]."""
    return exact(query.rows(head.key_bias).bias) @ exact(key.rows(head.key_bias).kept())
