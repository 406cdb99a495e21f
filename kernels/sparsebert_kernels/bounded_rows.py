"""Products whose code oneDNN compiles for every number of rows, computed in bounded memory.

oneDNN keeps 0.5 to 12 MB for each number of rows and each stride that it meets, up to 1,024 entries for the
process, so a server that meets texts of every length would grow by gigabytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

# Numbers of rows that a kind of layer computes without padding: a model that always meets the same few
# lengths loses no time.
EXACT_SIZES = 8
MAX_ROWS = 1024


def rounded_up(rows: int) -> int:
    """Return the number of rows that ``rows`` (1 to MAX_ROWS) is padded to, one of 51."""
    step = max(4, (1 << (rows - 1).bit_length()) // 16) if rows > 4 else 1
    return -(-rows // step) * step


_ROUND = frozenset(map(rounded_up, range(1, MAX_ROWS + 1)))
_EXACT: defaultdict[Hashable, set[int]] = defaultdict(set)


def linear(x: Tensor, out_features: int, kind: Hashable, product: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``product(x)`` [..., out_features] for a product of rows, with few numbers of rows.

    Round numbers of rows, and the first EXACT_SIZES others of a kind, are computed as they are. All others
    are rounded up with rows of zeros, in parts of at most MAX_ROWS rows. The rows of a product do not depend
    on each other, so the results are the same.

    Rounding costs up to 3 rows or 1/8 more, whichever is larger, and a copy, which small layers with few rows
    notice (``benchmarks.request_lengths`` times it).

    Args:
        x: [..., in_features].
        out_features: Width of the result.
        kind: All that the compiled code depends on, except the number of rows.
        product: Maps a contiguous [..., in_features] to [..., out_features].
    """
    if not x.numel():
        return x.new_empty((*x.shape[:-1], out_features))
    rows = x.numel() // x.shape[-1]
    if rows in _ROUND:
        return product(x.contiguous())
    exact = _EXACT[kind]
    if rows in exact or len(exact) < EXACT_SIZES:
        exact.add(rows)
        return product(x.contiguous())
    flat = x.reshape(rows, -1)
    if rows <= MAX_ROWS:
        y = _padded(flat, product)
    else:
        y = torch.cat([_padded(part, product) for part in flat.split(MAX_ROWS)])
    return y.view(*x.shape[:-1], out_features)


def _padded(part: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    rows = part.shape[0]
    padding = rounded_up(rows) - rows
    padded = torch.nn.functional.pad(part, (0, 0, 0, padding)) if padding else part.contiguous()
    return product(padded)[:rows]
