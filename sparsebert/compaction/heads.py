"""Find the heads and head dimensions that an attention must compute, and group them by width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sparsebert.compaction.masked_matrix import Matrix, live_features, live_rows, round_up

# Each group of heads is a separate call of attention. An additional call costs as much as this many padded
# dimensions, over all heads. In `python -m benchmarks.compaction_constants`, splitting off a group breaks
# even if it saves 16 or 32 dimensions and gains 1 to 8 % if it saves 64 (hidden sizes of 384 and 768, 32 to
# 1024 tokens, one thread of Zen 4, fp32). No GPU has been measured.
DIMENSIONS_OF_A_GROUP = 32
# The same for packed projections, which do not multiply padding, times the tokens of a call: on a Zen 4 core,
# a call takes about 40 us and a padded dimension 0.9 ns per token.
DIMENSIONS_OF_A_PACKED_GROUP = 45_000


@dataclass(frozen=True)
class Head:
    """The dimensions that one head must compute, as rows of the layer's matrices.

    Attributes:
        index: Position of the head in the configured model.
        score: Rows of query and key to compute.
        key_bias: Rows with a constant query and a live key; together they take one more score dimension.
        value: Rows of value and columns of output to compute.
        carrier: Whether the head has an extra value dimension of constant 1
            (``sparsebert.compaction.attention_folding.compact_attention``).
    """

    index: int
    score: tuple[int, ...]
    key_bias: tuple[int, ...]
    value: tuple[int, ...]
    carrier: bool = False

    @property
    def score_width(self) -> int:
        return len(self.score) + bool(self.key_bias)

    @property
    def value_width(self) -> int:
        return len(self.value) + self.carrier


@dataclass(frozen=True)
class HeadGroup:
    """Heads of equal width, which run as one call.

    Attributes:
        heads: Positions of the heads in the configured model.
        score: Width of each head in query and key.
        value: Width of each head in value.
    """

    heads: tuple[int, ...]
    score: int
    value: int


def live_scores(query: Tensor, key: Tensor, query_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Find the score dimensions to compute.

    A dimension with a constant key adds the same amount to all scores of a query, and softmax cancels it. A
    dimension with a constant query adds its key times the constant, unless the constant is zero.

    Args:
        query: Mask [dimensions, in].
        key: Mask [dimensions, in].
        query_bias: [dimensions].

    Returns:
        The dimensions with a live query and key, and those with a live key and a constant, nonzero query:
        bool [dimensions] each.
    """
    live_query, live_key = live_rows(query), live_rows(key)
    return live_key & live_query, live_key & ~live_query & (query_bias != 0)


def find_heads(query: Matrix, key: Matrix, value: Matrix, output: Matrix, count: int) -> list[Head]:
    """Find the heads to compute.

    Constants are carried by the head with the fewest value dimensions, which probably has padding to spare.

    Args:
        query: [heads * size, in].
        key: [heads * size, in].
        value: [heads * size, in].
        output: [out, heads * size].
        count: Number of heads.

    Returns:
        The heads in order, at least one.
    """
    values, constant = live_features(value.mask, output.mask)
    scores, key_bias = live_scores(query.mask, key.mask, query.bias)
    size = len(values) // count

    def rows(which: Tensor, head: int) -> tuple[int, ...]:
        indices = which[head * size : (head + 1) * size].nonzero().flatten()
        return tuple((indices + head * size).tolist())

    heads = [Head(i, rows(scores, i), rows(key_bias, i), rows(values, i)) for i in range(count)]
    live = [head for head in heads if head.value]
    carried = bool((constant & (value.bias != 0)).any())
    if not live:
        return [Head(0, (), (), (), carrier=carried)]
    if carried:
        least = min(live, key=lambda head: head.value_width)
        if least.value_width == size:
            # No live head has room for the constants, so a head that is otherwise removed carries them.
            least = next(head for head in heads if head not in live)
            return sorted([*live, Head(least.index, (), (), (), carrier=True)], key=lambda head: head.index)
        live[live.index(least)] = Head(least.index, least.score, least.key_bias, least.value, carrier=True)
    return live


def group_heads(
    heads: Sequence[Head], size: int, round_to: int = 1, packed_for: int = 0
) -> tuple[HeadGroup, ...]:
    """Group the heads by width so that padding and calls together cost the least.

    Args:
        heads: The heads.
        size: The configured head size, which limits the width of a group.
        round_to: Round the widths up to a multiple of this.
        packed_for: Tokens of a call if the projections will be packed, 0 if they stay dense. Packed
            projections do not compute padding, so groups are larger, and value gets the width of query and
            key, which fused attention requires.

    Returns:
        The groups, ordered by their first head.
    """
    call = DIMENSIONS_OF_A_PACKED_GROUP // packed_for if packed_for else DIMENSIONS_OF_A_GROUP

    def widths(members: Sequence[Head]) -> tuple[int, int]:
        score = max(head.score_width for head in members)
        value = max(head.value_width for head in members)
        return (max(score, value),) * 2 if packed_for else (score, value)

    ordered = sorted(heads, key=lambda head: (sum(widths([head])), head.index))

    def group(start: int, stop: int) -> HeadGroup:
        members = ordered[start:stop]
        score, value = (round_up(width, round_to, size) for width in widths(members))
        return HeadGroup(tuple(sorted(head.index for head in members)), score, value)

    # best[n]: the cost and the groups of the cheapest grouping of the first n heads.
    best: list[tuple[int, tuple[HeadGroup, ...]]] = [(0, ())]
    for stop in range(1, len(ordered) + 1):
        candidates = []
        for start in range(stop):
            last = group(start, stop)
            cost = len(last.heads) * (last.score + last.value) + call
            candidates.append((best[start][0] + cost, (*best[start][1], last)))
        best.append(min(candidates, key=lambda candidate: candidate[0]))
    return tuple(sorted(best[-1][1], key=lambda group: group.heads))


def is_whole(groups: Sequence[HeadGroup], size: int) -> bool:
    """Whether all heads have the configured size, so that the model's own attention can run them."""
    return all(group.score == group.value == size for group in groups)


def slots(groups: Sequence[HeadGroup], kind: str) -> dict[int, tuple[int, int]]:
    """Return the first row and the number of rows of each head in a projection.

    ``kind`` is "score" for query and key, "value" for value and output.
    """
    rows: dict[int, tuple[int, int]] = {}
    start = 0
    for group in groups:
        width = getattr(group, kind)
        for head in group.heads:
            rows[head] = start, width
            start += width
    return rows


def total(groups: Sequence[HeadGroup], kind: str) -> int:
    """Return the number of rows of a projection; ``kind`` is "score" or "value"."""
    return sum(len(group.heads) * getattr(group, kind) for group in groups)
