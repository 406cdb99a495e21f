"""Find the heads and head dimensions that an attention must compute, and group them by width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sparsebert.compaction.masked_matrix import Matrix, live_features, live_rows, round_up

# Another group of heads is another call of attention on smaller tensors. It costs as much as this many padded
# dimensions, over all heads: `python -m benchmarks.compaction_constants` finds 16 and 32 even and 64 to gain
# 1 to 8 %, for hidden sizes of 384 and 768 and 32 to 1024 tokens on one thread of Zen 4 in fp32. Not measured
# on a GPU yet.
DIMENSIONS_OF_A_GROUP = 32
# The same where padding is not multiplied, times the tokens of a call: some 40 us against 0.9 ns a dimension
# and token on a Zen 4 core.
DIMENSIONS_OF_A_PACKED_GROUP = 45_000


@dataclass(frozen=True)
class Head:
    """What one head must compute; rows are those of the layer's matrices.

    index     its place in the model as configured
    score     rows of query and key that both matter
    key_bias  rows whose query is constant while the key is live: together one more dimension
    value     rows of value, columns of the output
    carrier   has one more dimension of value, always one: see `compact_attention`
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
    """Heads that run as one call: all ``score`` wide in query and key, all ``value`` wide in value."""

    heads: tuple[int, ...]
    score: int
    value: int


def live_scores(query: Tensor, key: Tensor, query_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Of masks [dimensions, in] and the query's bias: those of query and key, and those of a key bias.

    A dimension whose key is constant adds the same to all scores of a query, which softmax ignores. One whose
    query alone is constant weighs the keys, but for a bias of zero.
    """
    live, fed = live_rows(key), live_rows(query)
    return live & fed, live & ~fed & (query_bias != 0)


def find_heads(query: Matrix, key: Matrix, value: Matrix, output: Matrix, count: int) -> list[Head]:
    """The heads that matter, in order; at least one where constants need a head to carry them.

    ``count`` heads of equal size as configured. The carrier is the head with the fewest dimensions of value:
    where heads are padded to a common width it has room.
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
            # All heads that run are whole: a constant one runs beside them for its constant alone.
            least = next(head for head in heads if head not in live)
            return sorted([*live, Head(least.index, (), (), (), carrier=True)], key=lambda head: head.index)
        live[live.index(least)] = Head(least.index, least.score, least.key_bias, least.value, carrier=True)
    return live


def group_heads(
    heads: Sequence[Head], size: int, round_to: int = 1, packed_for: int = 0
) -> tuple[HeadGroup, ...]:
    """The heads in groups of one width each, chosen so that padding and calls cost least together.

    size        the head's size as configured: no group is wider
    packed_for  tokens of a call, where projections are stored without their zeros: padding is then worth more
                calls, and value gets the width of query and key, as fused attention wants it. 0: dense ones
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

    # best[n]: the cheapest way to group the first n heads.
    best: list[tuple[int, tuple[HeadGroup, ...]]] = [(0, ())]
    for stop in range(1, len(ordered) + 1):
        ways = []
        for start in range(stop):
            last = group(start, stop)
            cost = len(last.heads) * (last.score + last.value) + call
            ways.append((best[start][0] + cost, (*best[start][1], last)))
        best.append(min(ways, key=lambda way: way[0]))
    return tuple(sorted(best[-1][1], key=lambda group: group.heads))


def is_whole(groups: Sequence[HeadGroup], size: int) -> bool:
    """Whether all heads are as wide as configured: the model's own attention can run them."""
    return all(group.score == group.value == size for group in groups)


def slots(groups: Sequence[HeadGroup], kind: str) -> dict[int, tuple[int, int]]:
    """Head -> (first row, rows) of its part of a projection; ``kind`` is "score" or "value"."""
    places: dict[int, tuple[int, int]] = {}
    start = 0
    for group in groups:
        width = getattr(group, kind)
        for head in group.heads:
            places[head] = start, width
            start += width
    return places


def total(groups: Sequence[HeadGroup], kind: str) -> int:
    """Rows of a projection; ``kind`` is "score" or "value"."""
    return sum(len(group.heads) * getattr(group, kind) for group in groups)
