"""Column panels on the kernel, against what torch answers for the dense matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from sparsebert_kernels import ops, reference
from sparsebert_kernels.formats import ColumnPanelSparse
from tests.ops.problem import SHORT, gradient_of
from tests.triton.tolerance import assert_as_exact_as_torch

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Problem:
    """x [M, K] times an unstructured weight [N, K]; ``str`` names it."""

    M: int = 37
    N: int = 100
    K: int = 150
    h: int = 64
    density: float = 0.05
    dtype: torch.dtype = FP32
    bias: bool = True
    activation: str = "gelu"

    def __str__(self) -> str:
        sizes = f"M{self.M}-N{self.N}-K{self.K}-h{self.h}"
        bias = "bias" if self.bias else "no_bias"
        return f"{sizes}-{self.density}-{SHORT[self.dtype]}-{bias}-{self.activation}"

    def random(self, seed: int, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.dtype)

    def mask(self) -> Tensor:
        """Unless all is kept: first row and last column are empty."""
        mask = torch.rand(self.N, self.K, generator=torch.Generator().manual_seed(1)) < self.density
        if self.density < 1:
            mask[0], mask[:, -1] = False, False
        return mask

    def weight(self) -> Tensor:
        return torch.where(self.mask(), self.random(2, self.N, self.K), torch.nan).to(self.dtype)

    def packed(self, device: torch.device) -> ColumnPanelSparse:
        return ColumnPanelSparse.from_dense(
            self.weight().to(device), self.mask().to(device), panel_rows=self.h
        )

    def x(self) -> Tensor:
        return self.random(3, self.M, self.K)

    def bias_vector(self) -> Tensor | None:
        return self.random(4, self.N) if self.bias else None

    def torch_linear(self, dtype: torch.dtype) -> Tensor:
        kept = torch.where(self.mask(), self.weight(), 0).to(dtype)
        bias = self.bias_vector()
        return reference.linear(
            self.x().to(dtype), kept, None if bias is None else bias.to(dtype), self.activation
        )


PROBLEMS = [
    Problem(),
    Problem(h=128),
    Problem(M=130, N=192, K=256),
    Problem(M=1, N=1, K=1, density=1),
    Problem(density=0),
    Problem(density=1, bias=False, activation="none"),
    Problem(activation="relu"),
    Problem(activation="gelu_tanh"),
]
PROBLEMS += [replace(p, dtype=dtype) for p in PROBLEMS for dtype in (FP16, BF16)]


def _linear(problem: Problem, x: Tensor, device: torch.device, residual: Tensor | None = None) -> Tensor:
    bias = problem.bias_vector()
    bias = None if bias is None else bias.to(device)
    return ops.linear(x.to(device), problem.packed(device), bias, problem.activation, residual=residual)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_answers_are_as_exact_as_torchs(problem: Problem, device: torch.device) -> None:
    answer = _linear(problem, problem.x(), device).cpu()
    assert_as_exact_as_torch(answer, problem.torch_linear(problem.dtype), problem.torch_linear(torch.float64))


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=SHORT.get)
class TestInputs:
    def test_of_a_column_that_no_row_keeps_are_never_read(
        self, dtype: torch.dtype, device: torch.device
    ) -> None:
        problem = Problem(dtype=dtype)
        x = problem.x()
        expected = _linear(problem, x, device)
        x[:, ~problem.mask().any(0)] = torch.nan
        assert torch.equal(_linear(problem, x, device), expected)

    def test_of_any_shape_and_stride(self, dtype: torch.dtype, device: torch.device) -> None:
        problem = Problem(M=24, dtype=dtype)
        x = problem.x()
        expected = _linear(problem, x, device)
        for view in (x.view(2, 3, 4, -1), x.t().contiguous().t(), x.repeat_interleave(2, 1)[:, ::2]):
            assert torch.equal(_linear(problem, view, device).view(24, -1), expected)
        assert _linear(problem, x[:0], device).shape == (0, problem.N)

    def test_residual(self, dtype: torch.dtype, device: torch.device) -> None:
        problem = Problem(dtype=dtype)
        residual = problem.random(5, problem.M, problem.N).to(device)
        expected = _linear(problem, problem.x(), device) + residual
        assert torch.equal(_linear(problem, problem.x(), device, residual), expected)


def test_x_gets_its_gradient_through_the_dense_matrix(device: torch.device) -> None:
    problem = Problem(activation="none")
    x = problem.x().to(device).requires_grad_()
    ops.linear(x, problem.packed(device)).backward(problem.random(6, problem.M, problem.N).to(device))
    kept = torch.where(problem.mask(), problem.weight(), 0)
    exact = problem.random(6, problem.M, problem.N).double() @ kept.double()
    torch.testing.assert_close(gradient_of(x).cpu().double(), exact, rtol=1e-5, atol=1e-5)
