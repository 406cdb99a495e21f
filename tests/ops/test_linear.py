"""``ops.linear``: answers and every gradient against float64, on every instruction set and with torch
alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from sparsebert_kernels import ops, reference
from sparsebert_kernels.reference import ACTIVATIONS
from tests.ops.backends import on_backends
from tests.ops.problem import Problem, assert_as_good_as_torch, gradient_of

T = TypeVar("T")

FP32, BF16 = torch.float32, torch.bfloat16
NATIVE = [Problem()] + [Problem(format="vector", options={"vector_rows": v}) for v in (2, 4, 8)]
TORCH = [Problem(format=name) for name in ("compact", "dense", "csr")]
DTYPES = [(FP32, FP32), (BF16, BF16), (FP32, BF16), (BF16, FP32)]  # of the values, of x
TOKENS = (0, 1, 7, 8, 16, 31, 32, 33, 64, 100, 129, 250)
# [N, K]: one weight, less than a vector, multiples of everything, of nothing, more than one row block
SHAPES = ((1, 1), (3, 5), (7, 33), (16, 16), (17, 129), (64, 256), (100, 257), (771, 40), (1, 770), (90, 1))
BLOCKS = [
    Problem(options={"block_rows": 8, "block_columns": 16}),
    Problem(options={"block_rows": 7, "block_columns": 5}),
    Problem(options={"block_rows": 1, "block_columns": 1}, K=30),
    Problem(options={"block_rows": 32767, "block_columns": 256}, K=513),
    Problem(format="vector", options={"vector_rows": 4, "block_rows": 8, "block_columns": 16}),
    Problem(format="vector", options={"vector_rows": 8, "block_rows": 8, "block_columns": 7}),
    Problem(format="vector", options={"vector_rows": 2, "block_rows": 2, "block_columns": 1}, K=30),
    Problem(format="vector", options={"vector_rows": 4, "block_rows": 1024, "block_columns": 65536}),
]


def _variations(bases: list[Problem]) -> list[Problem]:
    """Along every axis: dtypes, activations, densities, biases."""
    return [
        *(replace(p, dtype=dtype, x_dtype=x, activation="gelu") for p in bases for dtype, x in DTYPES),
        *(
            replace(p, activation=name, dtype=dtype)
            for p in bases
            for name in ACTIVATIONS
            for dtype in (FP32, BF16)
        ),
        *(
            replace(p, density=d, dtype=t)
            for p in bases
            for d in (0, "one weight", 0.5, 1)
            for t in (FP32, BF16)
        ),
        *(
            replace(p, bias=bias, dtype=t)
            for p in bases
            for bias in (None, BF16, torch.float64)
            for t in (FP32, BF16)
        ),
    ]


def _with_dtypes(bases: list[Problem], values: Sequence[T]) -> Iterator[tuple[Problem, T, torch.dtype]]:
    """Combine bases and values: in both dtypes for element weights, in alternating ones for vectors."""
    for (b, base), (v, value), (d, dtype) in itertools.product(
        enumerate(bases), enumerate(values), enumerate((FP32, BF16))
    ):
        if base.format == "element" or (b + v + d) % 2 == 0:
            yield base, value, dtype


def _unique(problems: list[Problem]) -> list[Problem]:
    return list({str(p): p for p in problems}.values())


NATIVE_PROBLEMS = _unique([
    *_variations(NATIVE),
    *(replace(p, M=m, dtype=dtype, bias=dtype) for p, m, dtype in _with_dtypes(NATIVE, TOKENS)),
    *(replace(p, N=n, K=k, dtype=t, density=0.5) for p, (n, k), t in _with_dtypes(NATIVE, SHAPES)),
    *(replace(p, dtype=dtype) for p in BLOCKS for dtype in (FP32, BF16)),
])  # fmt: skip
TORCH_PROBLEMS = _unique([
    *_variations(TORCH),
    *(replace(p, M=m) for p in TORCH for m in (0, 1, 7)),
    *(replace(p, N=n, K=k) for p in TORCH for n, k in SHAPES[:3]),
])  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """y and the gradients of x, of the weight (dense, [N, K]) and of the bias."""

    y: Tensor
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None


def _leaf(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return tensor.detach().to(dtype or tensor.dtype).clone().requires_grad_()


def ours(problem: Problem) -> Answers:
    packed, bias = problem.packed(), problem.bias_vector()
    trainable = isinstance(packed, ops.TRAINABLE)
    if trainable:
        packed = packed.replace(values=_leaf(packed.values))
    x, bias = _leaf(problem.x()), None if bias is None else _leaf(bias)
    y = ops.linear(x, packed, bias, problem.activation)
    y.backward(problem.gradient())
    weight = None
    if trainable:
        gradient = packed.replace(values=gradient_of(packed.values))
        weight = gradient.to_dense()
        # Slack, padding and rows past the last one are no weights: what is not zero belongs to a kept one.
        assert gradient.values.count_nonzero() == weight.count_nonzero()
    return Answers(y.detach(), gradient_of(x), weight, None if bias is None else gradient_of(bias))


def torchs(problem: Problem, dtype: torch.dtype | None = None) -> Answers:
    """torch's own op on the masked dense weight, all of it in ``dtype`` or each tensor in the problem's."""
    x, weight, bias = _leaf(problem.x(), dtype), _leaf(problem.kept_weight(), dtype), problem.bias_vector()
    bias = None if bias is None else _leaf(bias, dtype)
    y = reference.linear(x, weight, bias, problem.activation)
    y.backward(problem.gradient().to(y.dtype))
    kept = torch.where(problem.mask(), gradient_of(weight), 0)
    return Answers(y.detach(), gradient_of(x), kept, None if bias is None else gradient_of(bias))


def leave_nan_behind(problem: Problem) -> None:
    """Run it on NaN, so that a kernel that reads what another call left in its working memory shows."""
    packed, bias = problem.packed(), problem.bias_vector()
    if isinstance(packed, ops.TRAINABLE):
        packed = packed.replace(values=_leaf(packed.values))
    x = torch.full_like(problem.x(), torch.nan, requires_grad=True)
    y = ops.linear(x, packed, None if bias is None else bias * torch.nan, problem.activation)
    y.backward(torch.full_like(y, torch.nan))


def check(problem: Problem) -> None:
    leave_nan_behind(problem)
    answers, baseline, exact = ours(problem), torchs(problem), torchs(problem, torch.float64)
    assert_as_good_as_torch(answers.y, baseline.y, exact.y)
    assert_as_good_as_torch(answers.x, baseline.x, exact.x)
    if answers.weight is not None and baseline.weight is not None and exact.weight is not None:
        assert_as_good_as_torch(answers.weight, baseline.weight, exact.weight)
        assert not answers.weight[~problem.mask()].any()
    if answers.bias is not None and baseline.bias is not None and exact.bias is not None:
        assert_as_good_as_torch(answers.bias, baseline.bias, exact.bias)


@pytest.mark.parametrize(("problem", "backend"), on_backends(NATIVE_PROBLEMS), indirect=["backend"], ids=str)
def test_answers_and_gradients(problem: Problem, backend: str) -> None:
    check(problem)


@pytest.mark.parametrize("problem", TORCH_PROBLEMS, ids=str)
def test_answers_and_gradients_of_the_formats_without_native_kernel(problem: Problem) -> None:
    check(problem)
