"""The problems that the operator tests run, and the rule by which an answer passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsebert_kernels import formats, ops, reference
from sparsebert_kernels.dtype_names import short_name

SHORT = {d: short_name(d) for d in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}


@dataclass(frozen=True)
class Problem:
    """One call of ``ops.linear``: x [M, K] times a packed weight [N, K]; ``str`` names it."""

    M: int = 33
    N: int = 45
    K: int = 300
    format: str = "element"
    density: float | Literal["one weight"] = 0.3
    dtype: torch.dtype = torch.float32  # of the values
    x_dtype: torch.dtype | None = None  # None: as dtype
    bias: torch.dtype | None = torch.float32
    activation: str = "none"
    options: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        options = "".join(f"-{name}{value}" for name, value in self.options.items())
        dtypes = f"{SHORT[self.dtype]}" + (f"-x_{SHORT[self.x_dtype]}" if self.x_dtype else "")
        bias = "no_bias" if self.bias is None else f"bias_{SHORT[self.bias]}"
        sizes = f"M{self.M}-N{self.N}-K{self.K}"
        return f"{sizes}-{self.format}{options}-{self.density}-{dtypes}-{bias}-{self.activation}"

    def mask(self) -> Tensor:
        """Random, of whole vectors where the format has them; first row and last column are empty."""
        generator = torch.Generator().manual_seed(1)
        height = self.options.get("vector_rows", 4) if self.format == "vector" else 1
        mask = torch.zeros(-(-self.N // height), self.K, dtype=torch.bool)
        if self.density == "one weight":
            mask[mask.shape[0] // 2, self.K // 2] = True
        else:
            mask = torch.rand(mask.shape, generator=generator) < self.density
            if self.density < 1 and min(mask.shape) > 1:
                mask[0], mask[:, -1] = False, False
        return mask.repeat_interleave(height, 0)[: self.N]

    def weight(self) -> Tensor:
        """[N, K] in ``dtype``, NaN where it is masked: no kernel may look there."""
        generator = torch.Generator().manual_seed(2)
        dense = (
            torch.randn(self.N, self.K, generator=generator) / max(1, int(self.mask().sum(1).max())) ** 0.5
        )
        return torch.where(self.mask(), dense, torch.nan).to(self.dtype)

    def kept_weight(self) -> Tensor:
        return torch.where(self.mask(), self.weight(), 0)

    def packed(self) -> formats.PackedWeight:
        return formats.pack(self.weight(), self.mask(), format=self.format, **self.options)

    def x(self) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return torch.randn(self.M, self.K, generator=generator).to(self.x_dtype or self.dtype)

    def gradient(self) -> Tensor:
        """dL/dy [M, N], in the dtype of x."""
        generator = torch.Generator().manual_seed(4)
        return torch.randn(self.M, self.N, generator=generator).to(self.x_dtype or self.dtype)

    def bias_vector(self) -> Tensor | None:
        generator = torch.Generator().manual_seed(5)
        return None if self.bias is None else torch.randn(self.N, generator=generator).to(self.bias)

    def linear(self) -> Tensor:
        return ops.linear(self.x(), self.packed(), self.bias_vector(), self.activation)

    def torch_linear(self, dtype: torch.dtype) -> Tensor:
        """What torch answers for the masked dense weight, computed in ``dtype``."""
        bias = self.bias_vector()
        bias = None if bias is None else bias.to(dtype)
        return reference.linear(self.x().to(dtype), self.kept_weight().to(dtype), bias, self.activation)


def assert_as_good_as_torch(answer: Tensor, torchs: Tensor, exact: Tensor) -> None:
    """The error against float64 is at most twice that of torch's own op in the same dtype, plus 1e-6."""
    assert answer.shape == exact.shape
    assert answer.dtype == torchs.dtype
    if not exact.numel():
        return
    error, baseline = ((t.double() - exact).abs().max().item() for t in (answer, torchs))
    assert error <= 2 * baseline + 1e-6 * max(1.0, exact.abs().max().item()), (
        f"error {error:.3g}, torch's {baseline:.3g}"
    )


def gradient_of(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


class Layer(nn.Module):
    """The least module around ``ops.linear``: what compilers and exporters see of a sparse layer."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        packed = problem.packed()
        self.cls, self.shape, self.geometry = type(packed), packed.shape, packed.geometry()
        self.activation = problem.activation
        for name, tensor in packed.tensors().items():
            self.register_buffer(name, tensor)
        bias = problem.bias_vector()
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        tensors: dict[str, Any] = {name: getattr(self, name) for name in self.cls.TENSORS}
        packed = self.cls(self.shape, tensors, self.geometry)
        return ops.linear(x, packed, self.bias, self.activation)
