"""One step of sparse layers under DistributedDataParallel; ``test_distributed`` starts two of these."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparsebert.nn.sparse_linear import SparseLinear

WIDTH = 32
TRAINABLE = {"element": {}, "vector": {}, "panel": {"block_size": (16, 16)}}
FROZEN = ("element", "vector", "bitmap", "column_panel", "csr", "compact", "dense")


def model() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(WIDTH, WIDTH)]
    for format in (*TRAINABLE, *FROZEN):
        options: dict[str, Any] = TRAINABLE[format] if len(layers) <= len(TRAINABLE) else {}
        mask = (torch.rand(2, 2) < 0.6).repeat_interleave(16, 0).repeat_interleave(16, 1)
        trainable = len(layers) <= len(TRAINABLE)
        weight, bias = torch.randn(WIDTH, WIDTH) / 4, torch.randn(WIDTH)
        layers += [SparseLinear(weight, mask, bias, format=format, trainable=trainable, **options)]
    return nn.Sequential(*layers)


def batch() -> Tensor:
    return torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))


def gradients(layers: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The gradients of one step of two forward passes, as contrastive training has them."""
    (layers(x) * layers(x.flip(0))).mean().backward()
    named = {name.removeprefix("module."): p.grad for name, p in layers.named_parameters()}
    return {name: gradient for name, gradient in named.items() if gradient is not None}


def main(out: Path, launcher: str) -> None:
    layers: nn.Module = model()
    if launcher == "accelerate":
        from accelerate import Accelerator

        layers = Accelerator(cpu=True).prepare(layers)
    else:
        dist.init_process_group("gloo")
        layers = nn.parallel.DistributedDataParallel(layers)
    rank = dist.get_rank()
    x = batch().view(4, 2, WIDTH).roll(rank, 1)[:, 0]  # every other row
    torch.save(gradients(layers, x), out / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
