"""Moments of the inputs of a stage, and the problem that they pose for each of its matrices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsebert.one_shot.layer_problem import LayerProblem

# Share of the mean diagonal that holds the least-squares weights to the dense ones, as SparseGPT's damping.
_DAMPING = 0.01
# Variance of inputs, as a share of their mean square, that rounding in float32 may feign.
_ROUNDING = 1e-6
# Columns of x whose products with those at their right are computed at once.
_COLUMNS = 256


@dataclass(frozen=True)
class Moments:
    """Mean and (co)variance of the inputs of a stage over all calibration tokens, in float64.

    x is the input in the pruned model, y the input in the dense model, and r what the residual connection
    around the matrix carries in the dense model beyond the pruned model's; 0 where there is none.

    Attributes:
        tokens: Number of tokens.
        second: E[x x^T], [in, in].
        mean: E[x], [in].
        dense_second: E[y x^T], [in, in]; None if only the matrix's own outputs are to be reproduced.
        dense_mean: E[y], [in].
        residual_second: E[r x^T], [out, in]; None without a residual connection.
        residual_mean: E[r], [out].
        output_second: E[z x^T], [out, in], where z is the dense model's output of the only matrix of the
            stage, bias included, plus r: what takes the place of the moments of y and r; or None.
        output_mean: E[z], [out].
    """

    tokens: int
    second: Tensor
    mean: Tensor
    dense_second: Tensor | None = None
    dense_mean: Tensor | None = None
    residual_second: Tensor | None = None
    residual_mean: Tensor | None = None
    output_second: Tensor | None = None
    output_mean: Tensor | None = None

    @classmethod
    def of(
        cls,
        inputs: Iterable[Tensor],
        dense: Iterable[Tensor] | None = None,
        residuals: Iterable[Tensor] | None = None,
        outputs: Iterable[Tensor] | None = None,
    ) -> Moments:
        """Compute the moments.

        Args:
            inputs: x of each batch, [tokens, in].
            dense: y of each batch, [tokens, in], or None.
            residuals: r of each batch, [tokens, out], or None.
            outputs: The dense model's outputs of each batch, [tokens, out], in place of y; or None.
        """
        if outputs is not None and residuals is not None:
            outputs, residuals = map(torch.add, outputs, residuals), None
        sums: dict[str, Tensor] = {}
        tokens = 0

        def add(name: str, value: Tensor) -> None:
            total = sums.setdefault(name, torch.zeros(value.shape, dtype=torch.float64))
            total += value.cpu()

        streams = [("", inputs), ("dense_", dense), ("residual_", residuals), ("output_", outputs)]
        present = [(name, stream) for name, stream in streams if stream is not None]
        for batch in zip(*(stream for _, stream in present), strict=True):
            x = batch[0].float()
            tokens += len(x)
            for begin in range(0, x.shape[1], _COLUMNS):
                # E[x x^T] is symmetric: its upper triangle is enough.
                add(str(begin), x[:, begin : begin + _COLUMNS].t() @ x[:, begin:])
            for (name, _), states in zip(present, batch, strict=True):
                add(f"{name}mean", states.float().sum(0))
                if name:
                    add(f"{name}second", states.float().t() @ x)
        means = {name: total.div_(tokens) for name, total in sums.items()}
        rows = [means.pop(str(begin)) for begin in range(0, x.shape[1], _COLUMNS)]
        return cls(tokens, second=_symmetric(rows), **means)

    def problem(self, key: str, weight: Tensor, has_bias: bool) -> LayerProblem:
        """Return the problem of a matrix.

        Without the dense model's inputs the matrix is to reproduce its own outputs, as published for
        SparseGPT and others. With them it is to reproduce the dense model's outputs, and to make up for what
        the residual connection has lost, from the pruned model's inputs: the weights to prune are then the
        least-squares solution, and where there is a bias to adjust, moments are taken about the mean.

        Args:
            key: Key of the matrix.
            weight: Dense weights, float64 [out, in].
            has_bias: Whether the matrix has a bias.
        """
        if self.dense_second is None and self.output_second is None:
            return LayerProblem(key, weight, 2 * self.second, self.tokens)
        mean = self.mean if has_bias else torch.zeros_like(self.mean)

        def about_mean(second: Tensor, first: Tensor | None) -> Tensor:
            assert first is not None
            return torch.addr(second, first, mean, alpha=-1)

        second = about_mean(self.second, self.mean)
        if second.diagonal().mean() <= _ROUNDING * self.second.diagonal().mean():
            # Inputs that do not vary, as behind values that are pruned out: the bias alone makes up for them.
            return LayerProblem(key, weight, torch.zeros_like(second), self.tokens)
        if self.dense_second is self.second:
            return LayerProblem(key, weight, second.mul_(2), self.tokens)  # which W itself solves
        if self.output_second is not None:
            wanted = about_mean(self.output_second, self.output_mean)
        else:
            assert self.dense_second is not None
            wanted = weight @ about_mean(self.dense_second, self.dense_mean)
        if self.residual_second is not None:
            wanted += about_mean(self.residual_second, self.residual_mean)
        diagonal = second.diagonal().clone()
        pull = _DAMPING * diagonal.mean() + torch.finfo(torch.float64).tiny
        wanted.add_(pull * weight)
        second.diagonal().add_(pull)
        lower, failed = torch.linalg.cholesky_ex(second)
        # Rounding errors may leave no factor.
        solution = (
            torch.linalg.solve(second, wanted.t()) if failed else torch.cholesky_solve(wanted.t(), lower)
        )
        second.diagonal().copy_(diagonal)
        return LayerProblem(key, solution.t().contiguous(), second.mul_(2), self.tokens)

    def bias(self, bias: Tensor, weight: Tensor, pruned: Tensor) -> Tensor:
        """Return the bias that keeps the mean of the outputs.

        Args:
            bias: Dense bias, float64 [out].
            weight: Dense weights, float64 [out, in].
            pruned: Weights after pruning, float64 [out, in].
        """
        if self.output_mean is not None:
            return self.output_mean - pruned @ self.mean
        if self.dense_mean is None:
            return bias
        bias = bias + weight @ self.dense_mean - pruned @ self.mean
        return bias if self.residual_mean is None else bias + self.residual_mean


def _symmetric(rows: list[Tensor]) -> Tensor:
    """Return a symmetric matrix of the upper triangle's rows of blocks, each from the diagonal on."""
    size = rows[0].shape[1]
    whole = rows[0].new_empty(size, size)
    for row in rows:
        begin, end = size - row.shape[1], size - row.shape[1] + row.shape[0]
        whole[begin:end, begin:] = row
        whole[end:, begin:end] = row[:, end - begin :].t()
    return whole
