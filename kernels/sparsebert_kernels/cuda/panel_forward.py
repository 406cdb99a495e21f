"""y = activation(x @ W.T + bias) + residual for a weight in packed panels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from sparsebert_kernels.cuda.tile_configs import (
    TOKEN_BUCKETS,
    Configuration,
    Shape,
    by_target,
    configuration,
    tuned,
)

from ..formats.panel import GROUP_COLUMNS, PANEL_ROWS, TILE_COLUMNS, PanelSparse
from .compile_case import CompileCase
from .tiles import (
    aligned_rows,
    check_aligned,
    dtype_name,
    grouped_program,
    operand,
    precision,
    store_output,
    upcast,
)

KERNEL = "panel forward"
SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "tensorfloat32": "tf32"}


@triton.jit(do_not_specialize=["M"])
def panel_forward(
    x,  # (M, K up to a whole group)
    values,  # (tiles, H, 64)
    columns,  # ((tiles + 1) * 64 / G,) int32
    starts,  # (panels + 1,) int32
    order,  # (panels,) int32
    bias,  # (N,) or None
    residual,  # (M, N) or None
    y,  # (M, N)
    M,
    N,
    panels,
    x_stride,
    residual_stride,
    y_stride,
    H: tl.constexpr,
    G: tl.constexpr,
    WHOLE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    GROUP_M: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """y[m, n] = activation(sum of x[m, k] W[n, k] over the columns k of n's panel + bias[n]) + residual[m, n]

    Grid: one program a tile of BLOCK_M tokens and panel of H rows. WHOLE: N is a multiple of H.
    """
    WIDTH: tl.constexpr = 64
    SLOTS: tl.constexpr = WIDTH // G
    token_tile, place = grouped_program(tl.program_id(0), tl.cdiv(M, BLOCK_M), panels, GROUP_M)
    panel = tl.load(order + place)
    begin = tl.load(starts + panel)
    end = tl.load(starts + panel + 1)

    rows = token_tile * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    packed = tl.arange(0, WIDTH)  # [WIDTH], columns of a tile
    inner = tl.arange(0, H)  # [H], rows of the panel
    # Rows past the last one read it again: cheaper than a mask in every load, and never stored.
    x_rows = x + tl.minimum(rows, M - 1).to(tl.int64)[:, None] * x_stride  # [BLOCK_M, 1]
    tile = values + begin.to(tl.int64) * (H * WIDTH) + inner[:, None] * WIDTH + packed[None, :]  # [H, WIDTH]

    # The groups of a tile are read one tile ahead: with the index and what it points to in one iteration the
    # compiler gives up double buffering.
    index = columns + begin if G == WIDTH else columns + begin * SLOTS + packed // G
    group = tl.load(index)
    accumulator = tl.zeros((BLOCK_M, H), tl.float32)
    for _ in range(begin, end):
        offsets = tl.max_contiguous(tl.multiple_of(group * G + packed % G, G), G)  # [WIDTH]
        activations = tl.load(x_rows + offsets[None, :])  # [BLOCK_M, WIDTH]
        weights = tl.load(tile)  # [H, WIDTH]
        index += SLOTS
        group = tl.load(index)
        tile += H * WIDTH
        accumulator = tl.dot(
            operand(activations, UPCAST),
            tl.trans(operand(weights, UPCAST)),
            accumulator,
            input_precision=PRECISION,
        )
    features = panel * H + inner
    store_output(
        accumulator,
        rows,
        features,
        bias,
        residual,
        y,
        M,
        N,
        residual_stride,
        y_stride,
        ACTIVATION,
        WHOLE,
        UPCAST,
    )


def linear(
    x: Tensor, packed: PanelSparse, bias: Tensor | None, activation: str, residual: Tensor | None = None
) -> Tensor:
    """``activation(x @ W.T + bias) + residual`` for x [..., in] and residual [..., out] in the dtype of W."""
    rows = x.reshape(-1, x.shape[-1])
    y = x.new_empty(rows.shape[0], packed.shape[0])
    if y.numel():
        check_aligned("the weight's values", packed.values)
        rows = aligned_rows(rows, packed.group_columns)
        if residual is not None:
            residual = residual.reshape(y.shape)
            if residual.stride(1) != 1:
                residual = residual.contiguous()
        bias = None if bias is None else bias.contiguous()
        _launch_forward(rows, packed, bias, activation, residual, y)
    return y.view(*x.shape[:-1], packed.shape[0])


def _launch_forward(
    x: Tensor, packed: PanelSparse, bias: Tensor | None, activation: str, residual: Tensor | None, y: Tensor
) -> None:
    tokens, out_features = y.shape
    height, group = packed.panel_rows, packed.group_columns
    tiles = packed.values.shape[0]
    dtype = "tensorfloat32" if precision() == "tf32" and x.element_size() == 4 else dtype_name(x.dtype)
    shape = Shape(KERNEL, height, group, tokens, packed.panels, tiles, dtype)
    chosen = configuration(shape, x.device)
    grid = (triton.cdiv(tokens, chosen.block_m) * packed.panels,)
    panel_forward[grid](
        x,
        packed.values,
        packed.columns,
        packed.starts,
        packed.order,
        bias,
        residual,
        y,
        tokens,
        out_features,
        packed.panels,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        y.stride(0),
        H=height,
        G=group,
        WHOLE=out_features % height == 0,
        ACTIVATION=activation,
        BLOCK_M=chosen.block_m,
        GROUP_M=chosen.group,
        PRECISION=precision(),
        UPCAST=upcast(x.dtype),
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
    )


def compile_cases() -> Iterator[CompileCase]:
    """Every configuration of the rule, and every measured one; the default ones are bfloat16 by the rule.

    With the epilogue of an up-projection, bias and GELU; one width of groups also with a residual to add.
    """
    seen = set()
    for dtype in SHORT:
        for height in PANEL_ROWS:
            for group in GROUP_COLUMNS:
                for tokens in TOKEN_BUCKETS:
                    shape = Shape(KERNEL, height, group, tokens, 12, 48, dtype)
                    for chosen, targets in by_target(shape).items():
                        if (shape.dtype, height, group, chosen, targets) in seen:
                            continue
                        seen.add((shape.dtype, height, group, chosen, targets))
                        yield _compile_case(shape, chosen, targets)
                        if group == GROUP_COLUMNS[0]:
                            yield _compile_case(shape, chosen, targets, residual=True)
    for shape, chosen, targets in tuned(KERNEL):
        yield replace(_compile_case(shape, chosen, targets), default=False)


def _compile_case(
    shape: Shape,
    chosen: Configuration,
    targets: tuple[str, ...],
    residual: bool = False,
) -> CompileCase:
    short = SHORT[shape.dtype]
    height, group = shape.panel_rows, shape.group_columns
    tile = (chosen.block_m, height, TILE_COLUMNS)
    pointer = "*fp32" if short == "tf32" else f"*{short}"
    arguments = {"x": pointer, "values": pointer, "columns": "*i32", "starts": "*i32", "order": "*i32"}
    arguments |= {"bias": pointer, "y": pointer, "M": "i32", "N": "i32", "panels": "i32"}
    arguments |= {"x_stride": "i32", "y_stride": "i32"}
    constants: dict[str, Any] = {"H": height, "G": group, "WHOLE": True}
    if residual:
        arguments |= {"residual": pointer, "residual_stride": "i32"}
    else:
        constants |= {"residual": None, "residual_stride": 0}
    constants |= {"ACTIVATION": "gelu", "BLOCK_M": chosen.block_m, "GROUP_M": chosen.group}
    constants |= {"PRECISION": "tf32" if short == "tf32" else "ieee", "UPCAST": False}
    sizes = "x".join(map(str, tile))
    variant = " residual" if residual else ""
    return CompileCase(
        family=KERNEL,
        label=f"h{height} g{group} {sizes} w{chosen.num_warps} s{chosen.num_stages} {short}{variant}",
        kernel=panel_forward,
        arguments=arguments,
        constants=constants,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
        aligned=("N", "x_stride", "y_stride", *(("residual_stride",) if residual else ())),
        tile=tile,
        default=shape.dtype == "bfloat16",
        targets=targets,
    )
