"""The panel kernel with each of its epilogues, to count their instructions ahead of time."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from sparsebert_kernels.cuda import panel_forward
from sparsebert_kernels.cuda.aot.compile_case import CompileCase, example, recorded_case
from sparsebert_kernels.cuda.tile_rule import Configuration, Shape
from sparsebert_kernels.reference import ACTIVATIONS

CONFIGURATION = Configuration(block_m=128, group=8, num_warps=4, num_stages=2)
DTYPE = torch.bfloat16


def epilogue_case(activation: str, with_residual: bool) -> CompileCase:
    """128 tokens times a panel of 64 rows."""
    packed = panel_forward.example_panels(Shape(panel_forward.KERNEL, 64, 64, 4096, 12, 14, "bf16"), DTYPE)
    out_features, in_features = packed.shape
    x, y = example(DTYPE, 4096, in_features), example(DTYPE, 4096, out_features)
    bias = example(DTYPE, out_features)
    residual, residual_row = (y, out_features) if with_residual else (None, None)
    rows = 4096, in_features, residual_row
    return recorded_case(
        panel_forward.panel_forward,
        functools.partial(
            panel_forward._launch, x, packed, bias, activation, residual, y, CONFIGURATION, "ieee", *rows
        ),
        family="epilogue",
        label=f"{activation}{' residual' if with_residual else ''}",
        product=(CONFIGURATION.block_m, 64, 64),
    )


def compile_cases() -> Iterator[CompileCase]:
    """Yield every activation without a residual, and none with one."""
    for activation in ACTIVATIONS:
        yield epilogue_case(activation, with_residual=False)
    yield epilogue_case("none", with_residual=True)
