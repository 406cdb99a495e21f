"""The problems that the panel tests run: one linear layer over packed panels, with what torch answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparsebert_kernels import ops, reference
from sparsebert_kernels.formats import PanelSparse
from tests.ops.problem import SHORT

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True)
class PanelProblem:
    """x [M, K] times a weight [N, K] of h x g blocks; ``str`` names it."""

    M: int = 37
    N: int = 96
    K: int = 144
    h: int = 32
    g: int = 16
    density: float | Literal["one block"] = 0.5
    dtype: torch.dtype = FP32
    bias: torch.dtype | None = FP32
    activation: str = "none"
    residual: bool = False

    def __str__(self) -> str:
        bias = "no_bias" if self.bias is None else f"bias_{SHORT[self.bias]}"
        residual = "-residual" if self.residual else ""
        sizes = f"M{self.M}-N{self.N}-K{self.K}-{self.h}x{self.g}"
        return f"{sizes}-{self.density}-{SHORT[self.dtype]}-{bias}-{self.activation}{residual}"

    def mask(self) -> Tensor:
        """Whole blocks, cut off at the edges; below density 1 the first panel and last column are empty."""
        generator = torch.Generator().manual_seed(1)
        blocks = torch.zeros(-(-self.N // self.h), -(-self.K // self.g), dtype=torch.bool)
        if self.density == "one block":
            blocks[blocks.shape[0] // 2, blocks.shape[1] // 2] = True
        else:
            blocks = torch.rand(blocks.shape, generator=generator) < self.density
            if self.density < 1 and min(blocks.shape) > 1:
                blocks[0], blocks[:, -1] = False, False
        return blocks.repeat_interleave(self.h, 0).repeat_interleave(self.g, 1)[: self.N, : self.K]

    def weight(self) -> Tensor:
        """[N, K], NaN where it is masked: no kernel may look there."""
        scale = max(1, int(self.mask().sum(1).max())) ** 0.5
        return torch.where(self.mask(), self._random(2, self.N, self.K) / scale, torch.nan).to(self.dtype)

    def kept_weight(self) -> Tensor:
        return torch.where(self.mask(), self.weight(), 0)

    def packed(self, device: torch.device) -> PanelSparse:
        weight, mask = self.weight().to(device), self.mask().to(device)
        return PanelSparse.from_dense(weight, mask, block_size=(self.h, self.g))

    def x(self) -> Tensor:
        return self._random(3, self.M, self.K).to(self.dtype)

    def gradient(self) -> Tensor:
        """dL/dy [M, N]."""
        return self._random(4, self.M, self.N).to(self.dtype)

    def bias_vector(self) -> Tensor | None:
        return None if self.bias is None else self._random(5, self.N).to(self.bias)

    def residual_matrix(self) -> Tensor | None:
        return self._random(6, self.M, self.N).to(self.dtype) if self.residual else None

    @staticmethod
    def _random(seed: int, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Answers:
    """y and the gradients of x, of the weight (dense, [N, K]), of bias and residual, on the CPU."""

    y: Tensor
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    residual: Tensor | None


def leaf(tensor: Tensor | None, device: torch.device, dtype: torch.dtype | None = None) -> Tensor | None:
    """A copy that asks for its gradient."""
    if tensor is None:
        return None
    return tensor.detach().to(device, dtype or tensor.dtype, copy=True).requires_grad_()


def ours(problem: PanelProblem, device: torch.device) -> Answers:
    packed = problem.packed(device)
    values, x, bias, residual = (
        leaf(tensor, device)
        for tensor in (packed.values, problem.x(), problem.bias_vector(), problem.residual_matrix())
    )
    assert values is not None
    assert x is not None
    packed = packed.replace(values=values)
    y = ops.block_sparse_linear(x, packed, bias, problem.activation, residual)
    y.backward(problem.gradient().to(device))
    gradient = packed.replace(values=_gradient(values))
    dense = gradient.to_dense()
    # What only fills up tiles, panels and groups is no weight: what is not zero belongs to a kept one.
    assert gradient.values.count_nonzero() == dense.count_nonzero()
    return _answers(y, x, dense, bias, residual)


def torchs(problem: PanelProblem, dtype: torch.dtype | None = None) -> Answers:
    """torch's own op on the masked dense weight, all of it in ``dtype`` or each tensor in the problem's."""
    cpu = torch.device("cpu")
    x, weight, bias, residual = (
        leaf(tensor, cpu, dtype)
        for tensor in (problem.x(), problem.kept_weight(), problem.bias_vector(), problem.residual_matrix())
    )
    assert x is not None
    assert weight is not None
    y = reference.linear(x, weight, bias, problem.activation)
    y = y if residual is None else y + residual
    y.backward(problem.gradient().to(y.dtype))
    kept = torch.where(problem.mask(), _gradient(weight), 0)
    return _answers(y, x, kept, bias, residual)


def _answers(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Answers:
    return Answers(
        y.detach().cpu(),
        _gradient(x).cpu(),
        weight.cpu(),
        None if bias is None else _gradient(bias).cpu(),
        None if residual is None else _gradient(residual).cpu(),
    )


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def assert_as_good_as_torch(answer: Tensor, baseline: Tensor, exact: Tensor) -> None:
    """The error against float64 is at most twice that of torch's own op in the same dtype, plus 1e-6.

    bfloat16 may be off by a unit in the last place instead: the interpreter cuts off what it cannot store.
    """
    assert (answer.shape, answer.dtype) == (baseline.shape, baseline.dtype)
    if not exact.numel():
        return
    wrong, theirs = (answer.double() - exact).abs(), (baseline.double() - exact).abs().max()
    allowed = 2 * theirs + 1e-6 * exact.abs().max().clamp(min=1)
    if answer.dtype == BF16:
        allowed = allowed + exact.abs() * 2**-7
    assert (wrong <= allowed).all(), f"error {wrong.max():.3g}, torch's {theirs:.3g}"
