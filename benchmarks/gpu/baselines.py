"""Other implementations of a pruned layer on a GPU. None is a dependency; one that cannot run is noted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.comparison import Side
from benchmarks.gpu.device import Work

if TYPE_CHECKING:
    from benchmarks.gpu.layers import Problem

# The only block size that stk is used with.
STK_BLOCK = 128


def block_sparse(problem: Problem) -> dict[str, Side]:
    """Return the block-sparse kernels of torch, stk and blksprs."""
    return {
        "torch bsr": Side(lambda: _torch_bsr(problem)),
        "torch bsr linear": Side(lambda: _torch_bsr_linear(problem)),
        "stk": Side(lambda: _stk(problem)),
        "blksprs": Side(lambda: _blksprs(problem)),
    }


def any_sparsity(problem: Problem) -> dict[str, Side]:
    """Return baselines whose time does not depend on the sparsity: torch.compile's dense layer, and 2:4."""
    kept = two_of_four(problem.weight)
    x, weight, bias = (tensor.double() for tensor in (problem.x, problem.weight, problem.bias))
    exact = functional.linear(x, kept.double(), bias)
    gelu = functional.gelu(functional.linear(x, weight, bias))
    return {
        "torch.compile": Side(lambda: _compiled(problem)),
        "cublas + gelu": Side(lambda: _inference(lambda: functional.gelu(_linear(problem))), exact=[gelu]),
        "torch.compile + gelu": Side(lambda: _compiled(problem, lambda y: functional.gelu(y)), exact=[gelu]),
        "2:4": Side(lambda: _semi_structured(problem, kept), exact=[exact]),
    }


def two_of_four(weight: Tensor) -> Tensor:
    """Keep the two largest of every four neighbouring weights and zero the others."""
    groups = weight.view(-1, 4)
    kept = torch.zeros_like(groups, dtype=torch.bool)
    kept.scatter_(1, groups.abs().topk(2, dim=1).indices, True)
    return torch.where(kept, groups, 0).view_as(weight)


def _linear(problem: Problem) -> Tensor:
    return functional.linear(problem.x, problem.weight, problem.bias)


def _inference(work: Work) -> Work:
    # Sparse tensors created outside of inference_mode cannot be used inside.
    return torch.no_grad()(work)


def _torch_bsr(problem: Problem) -> Work:
    """Run torch's kernel without the checks of F.linear."""
    from torch.sparse._triton_ops import bsr_dense_addmm

    weight = problem.weight.to_sparse_bsr(problem.block)
    bias = problem.bias[:, None].expand(-1, problem.tokens)
    return _inference(lambda: bsr_dense_addmm(bias, weight, problem.x.t()).t())


def _torch_bsr_linear(problem: Problem) -> Work:
    weight = problem.weight.to_sparse_bsr(problem.block)
    return _inference(lambda: functional.linear(problem.x, weight, problem.bias))


def _stk(problem: Problem) -> Work:
    import stk

    if problem.block != (STK_BLOCK, STK_BLOCK):
        raise ValueError(f"stk supports blocks of {STK_BLOCK} x {STK_BLOCK} only, got {problem.block}")
    weight = stk.ops.to_sparse(problem.weight, STK_BLOCK)
    return _inference(lambda: stk.ops.dds(problem.x, weight.t()) + problem.bias)


def _blksprs(problem: Problem) -> Work:
    import blksprs as bs

    size = problem.block[0]
    rows, columns = problem.out_features // size, problem.in_features // size
    kept = problem.mask.view(rows, size, columns, size)[:, 0, :, 0].t()[None].contiguous()
    all_x = torch.ones(1, problem.tokens // size, columns, dtype=torch.bool, device=problem.x.device)
    all_y = torch.ones(1, problem.tokens // size, rows, dtype=torch.bool, device=problem.x.device)
    x = bs.ops.to_sparse(problem.x[None], all_x, size)
    weight = bs.ops.to_sparse(problem.weight.t()[None].contiguous(), kept, size)

    def work() -> Tensor:
        y = bs.ops.matmul(x, all_x, weight, kept, all_y, size)
        return bs.ops.to_dense(y, all_y, size)[0] + problem.bias

    return _inference(work)


def _compiled(problem: Problem, after: Callable[[Tensor], Tensor] = lambda y: y) -> Work:
    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return after(functional.linear(x, weight, bias))

    compiled = problem.device.compile(layer, fullgraph=True, dynamic=False)
    return _inference(lambda: compiled(problem.x, problem.weight, problem.bias))


def _semi_structured(problem: Problem, kept: Tensor) -> Work:
    from torch.sparse import to_sparse_semi_structured

    weight = to_sparse_semi_structured(kept)
    return _inference(lambda: functional.linear(problem.x, weight, problem.bias))
