"""Select the live rows and columns of a matrix, and compute a linear layer with them alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebert.compaction.masked_matrix import Matrix, live_columns, live_rows, round_up

# Cost of copying per token, in multiplied weights: of a gathered column of x (PICKED) and of a row of the
# scattered output (PLACED). `python -m benchmarks.compaction_constants` measures 10 to 76 and 53 to 149 on
# one thread of Zen 4, for shapes of MiniLM and BERT-base with 128 or 1024 tokens in fp32. No GPU has been
# measured.
PICKED, PLACED = 32, 80


class RectangleLinear(nn.Module):
    """``x @ W.T + bias`` for a matrix W [out_features, in_features] that is zero outside its live rectangle.

    The forward pass multiplies the live columns of x with ``weight``; the output of a dead row is its bias.

    Attributes:
        weight: The live rectangle [live rows, live columns].
        bias: [out_features].
        rows: Indices of the live rows, int64, a persistent buffer.
        columns: Indices of the live columns, int64, a persistent buffer.
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
        """Map x [..., in_features] to [..., out_features]."""
        if self.weight.shape[1] < self.in_features:
            x = x.index_select(-1, self.columns)
        if self.weight.shape[0] == self.out_features:
            return F.linear(x, self.weight, self.bias)
        live = F.linear(x, self.weight, self.bias.index_select(0, self.rows))
        whole = self.bias.to(live.dtype).expand(*x.shape[:-1], self.out_features)
        return whole.index_copy(-1, self.rows, live)

    def is_sound(self) -> bool:
        """Whether ``rows`` and ``columns`` are strictly increasing indices within the whole matrix."""
        return all(
            bool((index[1:] > index[:-1]).all()) and int(index[0]) >= 0 and int(index[-1]) < size
            for index, size in ((self.rows, self.out_features), (self.columns, self.in_features))
        )

    def extra_repr(self) -> str:
        rows, columns = self.weight.shape
        return f"in_features={self.in_features}, out_features={self.out_features}, live={rows}x{columns}"

    def whole(self, live: Tensor) -> Tensor:
        """Extend a live rectangle to [out_features, in_features], with zero or False outside."""
        zeros = live.new_zeros(self.out_features, self.in_features)
        return zeros.index_put((self.rows[:, None], self.columns), live)

    def to_linear(self) -> nn.Linear:
        """Return a dense layer of the whole matrix, with this layer's bias Parameter and flags."""
        linear = nn.Linear(self.in_features, self.out_features, device="meta", dtype=self.weight.dtype)
        weight = self.whole(self.weight.detach())
        linear.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        linear.bias = self.bias
        return linear.train(self.training)


def live_rectangle(matrix: Matrix, round_to: int = 1) -> tuple[list[int], list[int]] | None:
    """Select the rows and columns to compute with.

    Dead rows, dead columns or both are skipped if that saves more than the copies cost.

    Args:
        matrix: The matrix.
        round_to: Round both numbers up to a multiple of this by keeping dead rows and columns.

    Returns:
        The rows and the columns, in order; None to compute with all of them.
    """
    out_features, in_features = matrix.mask.shape
    every_row, every_column = list(range(out_features)), list(range(in_features))
    rows = _rounded(live_rows(matrix.mask), round_to)
    columns = _rounded(live_columns(matrix.mask), round_to)

    def cost(live: tuple[list[int], list[int]]) -> int:
        row_count, column_count = map(len, live)
        scatter = PLACED * out_features if row_count < out_features else 0
        gather = PICKED * column_count if column_count < in_features else 0
        return row_count * column_count + scatter + gather

    # At equal cost, min returns the first: the candidate with fewer copies.
    candidates = [(every_row, every_column), (every_row, columns), (rows, every_column), (rows, columns)]
    best = min(candidates, key=cost)
    return None if best == candidates[0] else best


def exact_size(matrix: Matrix) -> int:
    """Return the number of weights in the live rows and columns, without rounding up."""
    return int(live_rows(matrix.mask).sum()) * int(live_columns(matrix.mask).sum())


def rectangle_linear(matrix: Matrix, live: tuple[list[int], list[int]]) -> RectangleLinear:
    """Build the layer of a matrix and its live rows and columns."""
    rows, columns = live
    out_features, in_features = matrix.weight.shape
    weight = matrix.rows(rows).columns(columns).kept()
    layer = RectangleLinear(in_features, out_features, nn.Parameter(weight), nn.Parameter(matrix.bias))
    layer.rows.copy_(torch.tensor(rows))
    layer.columns.copy_(torch.tensor(columns))
    return layer


def _rounded(live: Tensor, round_to: int) -> list[int]:
    """Return the indices of live features (bool), with dead ones up to a multiple of ``round_to``."""
    dead = (~live).nonzero().flatten().tolist()
    kept = live.nonzero().flatten().tolist()
    missing = round_up(len(kept), round_to, len(live)) - len(kept)
    return sorted(kept + dead[:missing])
