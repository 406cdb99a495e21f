"""The four matrices of an attention with what it can do without left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sparsebert.compaction.heads import Head, HeadGroup, find_heads, group_heads, is_whole, slots
from sparsebert.compaction.masked_matrix import EMPTY, Matrix, exact, live_features


@dataclass(frozen=True, eq=False)
class Attention:
    """Matrices for heads in the order of ``groups``; ``heads`` says what each of them computes.

    ``groups`` is empty where nothing could go: the matrices are those given.
    """

    query: Matrix
    key: Matrix
    value: Matrix
    output: Matrix
    heads: tuple[Head, ...]
    groups: tuple[HeadGroup, ...]

    @property
    def matrices(self) -> tuple[Matrix, Matrix, Matrix, Matrix]:
        """query, key, value, output"""
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
    """Leave out the heads and dimensions of ``count`` heads that change nothing.

    What constant dimensions of value bring is ``output``'s columns times their biases, a vector u. It does
    not go into the bias of ``output``: a sequence of nothing but padding attends to nothing under sdpa, and
    gets no u. It becomes the output column of one more dimension of one head, the carrier, whose value is 1
    for every token: attention makes 1 of that, and 0 where there is nothing to attend to. Dimensions with a
    constant query become one: its query is 1, its key the sum of their keys, each times its constant.
    Padding, up to widths that are multiples of ``round_to``, has weights and biases of zero on both sides, so
    training leaves it there. ``packed_for`` is that of `group_heads`.
    """
    heads = tuple(find_heads(query, key, value, output, count))
    size = len(value.weight) // count
    groups = group_heads(heads, size, round_to, packed_for)
    if len(heads) == count and is_whole(groups, size):
        return Attention(query, key, value, output, heads, ())
    by_index = {head.index: head for head in heads}
    ordered = [by_index[index] for group in groups for index in group.heads]
    score_rows, value_rows = _rows(ordered, groups, "score"), _rows(ordered, groups, "value")
    small_query, small_key = query.rows(score_rows), key.rows(score_rows)
    starts = slots(groups, "score")
    for head in ordered:
        if len(head.key_bias) > 1:
            slot = starts[head.index][0] + len(head.score)
            small_query = small_query.with_row(slot, None, bias=1)
            small_key = small_key.with_row(slot, _key_bias(query, key, head), bias=0)
    small_value, small_output = value.rows(value_rows), output.columns(value_rows)
    for head in ordered:
        if head.carrier:
            slot = slots(groups, "value")[head.index][0] + len(head.value)
            _, constant = live_features(value.mask, output.mask)
            small_value = small_value.with_row(slot, None, bias=1)
            small_output = small_output.with_column(slot, output.times(constant, value.bias[constant]))
    return Attention(small_query, small_key, small_value, small_output, heads, groups)


def _rows(heads: Sequence[Head], groups: Sequence[HeadGroup], kind: str) -> list[int]:
    """Row of the old matrix for each row of the new one, `EMPTY` for padding and for what is set later."""
    widths = slots(groups, kind)
    index: list[int] = []
    for head in heads:
        # A single constant query keeps its row: nothing is to be summed, so nothing is rounded.
        alone = head.key_bias if len(head.key_bias) == 1 else ()
        rows = (*head.score, *alone) if kind == "score" else head.value
        index += [*rows, *[EMPTY] * (widths[head.index][1] - len(rows))]
    return index


def _key_bias(query: Matrix, key: Matrix, head: Head) -> Tensor:
    """The sum of the keys of dimensions with a constant query, each times that constant: float64 [in]."""
    return exact(query.rows(head.key_bias).bias) @ exact(key.rows(head.key_bias).kept())
