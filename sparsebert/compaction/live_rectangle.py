"""A linear layer that computes the live rectangle of its matrix alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebert.compaction.masked_matrix import Matrix, live_columns, live_rows, round_up

# What copies cost for each token, in weights of the product: a column of x that is picked, and a row of the
# output that is put among the others. `python -m benchmarks.compaction_constants` finds 10 to 76
# and 53 to 149, for shapes of MiniLM and BERT-base and 128 or 1024 tokens on one thread of Zen 4 in fp32. Not
# measured on a GPU yet.
PICKED, PLACED = 32, 80


class RectangleLinear(nn.Module):
    """``x @ W.T + bias`` for a matrix W [out_features, in_features] that is zero outside live rows x columns.

    weight   [live rows, live columns]
    bias     [out_features]
    rows     int64 [live rows], persistent buffer
    columns  int64 [live columns], persistent buffer

    One dense product of the live columns of x with ``weight``; features of other rows are their bias.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, in_features: int, out_features: int, weight: nn.Parameter, bias: nn.Parameter) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight, self.bias = weight, bias
        rows, columns = weight.shape
        self.register_buffer("rows", torch.arange(rows, device=weight.device))
        self.register_buffer("columns", torch.arange(columns, device=weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]"""
        if self.weight.shape[1] < self.in_features:
            x = x.index_select(-1, self.columns)
        if self.weight.shape[0] == self.out_features:
            return F.linear(x, self.weight, self.bias)
        live = F.linear(x, self.weight, self.bias.index_select(0, self.rows))
        whole = self.bias.to(live.dtype).expand(*x.shape[:-1], self.out_features)
        return whole.index_copy(-1, self.rows, live)

    def is_sound(self) -> bool:
        """Whether rows and columns are indices of the whole matrix, in order and each once."""
        return all(
            bool((index[1:] > index[:-1]).all()) and int(index[0]) >= 0 and int(index[-1]) < size
            for index, size in ((self.rows, self.out_features), (self.columns, self.in_features))
        )

    def extra_repr(self) -> str:
        rows, columns = self.weight.shape
        return f"in_features={self.in_features}, out_features={self.out_features}, live={rows}x{columns}"

    def whole(self, live: Tensor) -> Tensor:
        """[live rows, live columns] -> [out_features, in_features], zero or False outside."""
        zeros = live.new_zeros(self.out_features, self.in_features)
        return zeros.index_put((self.rows[:, None], self.columns), live)

    def to_linear(self) -> nn.Linear:
        """A layer of the whole matrix, with this one's bias Parameter and flags."""
        linear = nn.Linear(self.in_features, self.out_features, device="meta", dtype=self.weight.dtype)
        weight = self.whole(self.weight.detach())
        linear.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        linear.bias = self.bias
        return linear.train(self.training)


def live_rectangle(matrix: Matrix, round_to: int = 1) -> tuple[list[int], list[int]] | None:
    """The rows and columns to compute with, in order; None where that is all of them.

    Dead rows, columns or both are left out where the product gets cheaper by more than copying costs.
    Both counts are rounded up to a multiple of ``round_to``, with dead rows and columns taken along.
    """
    out_features, in_features = matrix.mask.shape
    every_row, every_column = list(range(out_features)), list(range(in_features))
    rows = _rounded(live_rows(matrix.mask), round_to)
    columns = _rounded(live_columns(matrix.mask), round_to)

    def cost(live: tuple[list[int], list[int]]) -> int:
        kept, picked = map(len, live)
        placing = PLACED * out_features if kept < out_features else 0
        picking = PICKED * picked if picked < in_features else 0
        return kept * picked + placing + picking

    # Of equal ones the first.
    ways = [(every_row, every_column), (every_row, columns), (rows, every_column), (rows, columns)]
    best = min(ways, key=cost)
    return None if best == ways[0] else best


def exact_size(matrix: Matrix) -> int:
    """Weights of the smallest rectangle that holds all kept ones."""
    return int(live_rows(matrix.mask).sum()) * int(live_columns(matrix.mask).sum())


def rectangle_linear(matrix: Matrix, live: tuple[list[int], list[int]]) -> RectangleLinear:
    """The layer for a matrix and its live rectangle."""
    rows, columns = live
    out_features, in_features = matrix.weight.shape
    weight = matrix.rows(rows).columns(columns).kept()
    layer = RectangleLinear(in_features, out_features, nn.Parameter(weight), nn.Parameter(matrix.bias))
    layer.rows.copy_(torch.tensor(rows))
    layer.columns.copy_(torch.tensor(columns))
    return layer


def _rounded(live: Tensor, round_to: int) -> list[int]:
    dead = (~live).nonzero().flatten().tolist()
    kept = live.nonzero().flatten().tolist()
    missing = round_up(len(kept), round_to, len(live)) - len(kept)
    return sorted(kept + dead[:missing])
