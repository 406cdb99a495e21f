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
    """

    tokens: int
    second: Tensor
    mean: Tensor
    dense_second: Tensor | None = None
    dense_mean: Tensor | None = None
    residual_second: Tensor | None = None
    residual_mean: Tensor | None = None

    @classmethod
    def of(
        cls,
        inputs: Iterable[Tensor],
        dense: Iterable[Tensor] | None = None,
        residuals: Iterable[Tensor] | None = None,
    ) -> Moments:
        """Compute the moments.

        Args:
            inputs: x of each batch, [tokens, in].
            dense: y of each batch, [tokens, in], or None.
            residuals: r of each batch, [tokens, out], or None.
        """
        sums: dict[str, Tensor] = {}
        tokens = 0
        streams = [("", inputs), ("dense_", dense), ("residual_", residuals)]
        present = [(name, stream) for name, stream in streams if stream is not None]
        for batch in zip(*(stream for _, stream in present), strict=True):
            x = batch[0].float()
            tokens += len(x)
            for (name, _), states in zip(present, batch, strict=True):
                for moment, value in (("second", states.float().t() @ x), ("mean", states.float().sum(0))):
                    total = sums.setdefault(name + moment, torch.zeros(value.shape, dtype=torch.float64))
                    total += value.cpu()
        return cls(tokens, **{name: total / tokens for name, total in sums.items()})

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
        if self.dense_second is None:
            return LayerProblem(key, weight, 2 * self.second, self.tokens)
        mean = self.mean if has_bias else torch.zeros_like(self.mean)

        def about_mean(second: Tensor, first: Tensor | None) -> Tensor:
            assert first is not None
            return second - torch.outer(first, mean)

        second = about_mean(self.second, self.mean)
        if second.diagonal().mean() <= _ROUNDING * self.second.diagonal().mean():
            # Inputs that do not vary, as behind values that are pruned out: the bias alone makes up for them.
            return LayerProblem(key, weight, torch.zeros_like(second), self.tokens)
        wanted = weight @ about_mean(self.dense_second, self.dense_mean)
        if self.residual_second is not None:
            wanted += about_mean(self.residual_second, self.residual_mean)
        pull = _DAMPING * second.diagonal().mean() + torch.finfo(torch.float64).tiny
        ridge = second + pull * torch.eye(len(second), dtype=second.dtype)
        solution = torch.linalg.solve(ridge, (wanted + pull * weight).t()).t().contiguous()
        return LayerProblem(key, solution, 2 * second, self.tokens)

    def bias(self, bias: Tensor, weight: Tensor, pruned: Tensor) -> Tensor:
        """Return the bias that keeps the mean of the outputs.

        Args:
            bias: Dense bias, float64 [out].
            weight: Dense weights, float64 [out, in].
            pruned: Weights after pruning, float64 [out, in].
        """
        if self.dense_mean is None:
            return bias
        bias = bias + weight @ self.dense_mean - pruned @ self.mean
        return bias if self.residual_mean is None else bias + self.residual_mean
