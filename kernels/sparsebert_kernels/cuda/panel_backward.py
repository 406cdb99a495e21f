"""Gradients of a linear layer whose weight lies in packed panels.

    dL/dx = g @ W   the forward kernel over W.T, in panels of 64 features of x. ``transposed_index`` computes
                    the index of W.T once; each call fills the tiles of W.T from the values of W, in a scratch
                    that the call allocates and frees.
    dL/dvalues      at the kept blocks only: for each tile, (64 packed columns of x).T @ (h columns of g)

A panel of W.T is 64 features wide, whatever the width of a group. Narrower groups are padded with zeros where
their neighbours are pruned: scattered groups of 8 at 90 % sparsity cost as much as 43 %, and the scratch
grows in proportion. Groups in runs of 64 need no padding. Panels as narrow as a group of 8 would not be
faster: they would read g eight times as often, and their products would be too narrow to fill the tensor
cores.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..formats.base import TILE_COLUMNS
from ..formats.panel import GROUP_COLUMNS, PANEL_ROWS, PanelSparse
from ..formats.panel_transpose import TRANSPOSED_ROWS, transposed_panels
from . import panel_forward
from .aot.compile_case import PRODUCTS, CompileCase, example, recorded_case
from .device_functions import WIDTH, operand
from .launch import aligned_rows, check_aligned, dtype_name, fp32_precision, upcast
from .tile_configs import configuration, tuned
from .tile_rule import TOKEN_BUCKETS, Configuration, Shape, by_target, splits

KERNEL = "panel values gradient"
REDUCTION_BLOCK = 1024  # values that a program of `sum_splits` adds


@triton.jit
def panel_transpose(
    values,  # (tiles, H, 64)
    source,  # (transposed tiles, 64 / UNIT, 64 / G) int32
    out,  # (transposed tiles, 64, 64)
    H: tl.constexpr,
    G: tl.constexpr,
    UNIT: tl.constexpr,
):
    """out[t, k, n] = the weights of W.T, block by block from the positions in ``source``; 0 where it is -1.

    Grid: one program per transposed tile. A block is UNIT = min(H, 64) rows by G columns of W.
    """
    tile = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, WIDTH)[:, None]
    k = tl.arange(0, WIDTH)[None, :]
    place = (n // UNIT) * (WIDTH // G) + k // G
    block = tl.load(source + tile * ((WIDTH // UNIT) * (WIDTH // G)) + place)  # [WIDTH n, WIDTH k]
    slot = block // (H // UNIT)
    row = block % (H // UNIT) * UNIT + n % UNIT
    address = (
        (slot // (WIDTH // G)).to(tl.int64) * (H * WIDTH) + row * WIDTH + slot % (WIDTH // G) * G + k % G
    )
    weights = tl.load(values + address, mask=block >= 0, other=0.0)
    tl.store(out + tile * (WIDTH * WIDTH) + k * WIDTH + n, weights)


@triton.jit(do_not_specialize=["M", "panels", "tiles", "split_tokens"])
def panel_values_gradient(
    gradient,  # (M, N up to a whole panel)
    x,  # (M, K up to a whole group)
    columns,  # ((tiles + 1) * 64 / G,) int32
    starts,  # (panels + 1,) int32
    order,  # (panels,) int32
    out,  # (splits, tiles, H, 64)
    M,
    panels,
    tiles,
    split_tokens,
    gradient_stride,
    x_stride,
    H: tl.constexpr,
    G: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILES: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """out[s, t, n, k] = sum over the tokens of split s of gradient[m, n] x[m, k], at the blocks of tile t.

    Grid: (panels * the largest number of chunks of TILES tiles in a panel, splits); chunks past the end are
    empty. x is the left operand: 64 * TILES packed columns fill the tensor cores for any number of rows in a
    panel.
    """
    SLOTS: tl.constexpr = WIDTH // G
    panel = tl.load(order + tl.program_id(0) % panels)
    first = tl.load(starts + panel)
    end = tl.load(starts + panel + 1)
    begin = first + tl.program_id(0) // panels * TILES
    if begin < end:
        packed = tl.arange(0, TILES * WIDTH)  # [TILES * WIDTH]
        inner = tl.arange(0, H)  # [H]
        step = tl.arange(0, BLOCK_M)  # [BLOCK_M]
        slot = begin * SLOTS + packed // G
        # A chunk may extend past the last tile of its panel; that part is computed but not stored.
        slot = tl.minimum(slot, end * SLOTS - 1)
        group = tl.load(columns + slot)
        offsets = tl.max_contiguous(tl.multiple_of(group * G + packed % G, G), G)
        features = panel * H + inner

        token = tl.program_id(1) * split_tokens
        last = tl.minimum(token + split_tokens, M)
        tokens = (token + step).to(tl.int64)
        # x is loaded transposed, as the product uses it: otherwise the compiler emits no asynchronous copies
        # on Ampere.
        x_tile = x + offsets[:, None] + tokens[None, :] * x_stride  # [TILES * WIDTH, BLOCK_M]
        gradient_tile = gradient + tokens[:, None] * gradient_stride + features[None, :]  # [BLOCK_M, H]
        accumulator = tl.zeros((TILES * WIDTH, H), tl.float32)
        steps = (last - token) // BLOCK_M
        for _ in range(steps):
            activations = operand(tl.load(x_tile), UPCAST)
            upstream = operand(tl.load(gradient_tile), UPCAST)
            accumulator = tl.dot(activations, upstream, accumulator, input_precision=PRECISION)
            x_tile += BLOCK_M * x_stride
            gradient_tile += BLOCK_M * gradient_stride
        inside = token + steps * BLOCK_M + step < last
        if token + steps * BLOCK_M < last:
            activations = operand(tl.load(x_tile, mask=inside[None, :], other=0.0), UPCAST)
            upstream = operand(tl.load(gradient_tile, mask=inside[:, None], other=0.0), UPCAST)
            accumulator = tl.dot(activations, upstream, accumulator, input_precision=PRECISION)
        # A slot that repeats the previous group is padding.
        previous = tl.load(columns + tl.maximum(slot - 1, first * SLOTS))
        padding = (group == previous) & (slot > first * SLOTS)
        accumulator = tl.where(padding[:, None], 0.0, accumulator)
        tile = begin + packed // WIDTH
        address = (tl.program_id(1).to(tl.int64) * tiles + tile) * (H * WIDTH) + packed % WIDTH
        tl.store(
            out + address[:, None] + inner[None, :] * WIDTH,
            accumulator.to(out.dtype.element_ty),
            mask=(tile < end)[:, None],
        )


@triton.jit(do_not_specialize=["splits"])
def sum_splits(
    partial,  # (splits, size) fp32
    out,  # (size,)
    size,
    splits,
    BLOCK: tl.constexpr,
):
    """out = partial.sum(0), in the order of the splits. Grid: one program per BLOCK of values."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(splits):
        total += tl.load(partial + place, mask=inside, other=0.0)
        partial += size
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


def input_gradient(gradient: Tensor, packed: PanelSparse, transposed: Sequence[Tensor]) -> Tensor:
    """Return gradient @ W in the dtype of W.

    Args:
        gradient: dL/dy [..., out].
        packed: W.
        transposed: ``transposed_index(packed)``, or empty to compute it here.
    """
    source, columns, starts, order = transposed or transposed_panels(packed)
    check_aligned("the weight's values", packed.values)
    unit = min(packed.panel_rows, TILE_COLUMNS)
    values = packed.values.new_empty(source.shape[0], TRANSPOSED_ROWS, TILE_COLUMNS)
    _launch_transpose(packed, source, values)
    tensors = {"values": values, "columns": columns, "starts": starts, "order": order}
    shape = packed.shape[1], packed.shape[0]
    flipped = PanelSparse(shape, tensors, {"group_columns": unit, "aligned": False})
    return panel_forward.linear(gradient, flipped, None, "none")


def values_gradient(gradient: Tensor, x: Tensor, packed: PanelSparse) -> Tensor:
    """Return dL/dvalues in the layout and dtype of ``packed.values``, zero in all padding.

    With few tiles, the sum over tokens is split over programs and added in a fixed order, so that the bits
    are reproducible.

    Args:
        gradient: dL/dy [..., out].
        x: [..., in].
        packed: W.
    """
    x, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    if not x.shape[0]:
        return torch.zeros_like(packed.values)
    gradient, x = aligned_rows(gradient, packed.panel_rows), aligned_rows(x, packed.group_columns)
    tokens, tiles = x.shape[0], packed.values.shape[0]
    height, group = packed.panel_rows, packed.group_columns
    shape = Shape(KERNEL, height, group, tokens, packed.panels, tiles, dtype_name(x.dtype))
    config = configuration(shape, x.device)
    parts = splits(triton.cdiv(tiles, config.group), tokens, config.block_m, x.device)
    split_tokens = triton.cdiv(triton.cdiv(tokens, parts), config.block_m) * config.block_m
    parts = triton.cdiv(tokens, split_tokens)
    # A single tile may belong to a weight that keeps nothing; no program writes that tile.
    empty = torch.zeros if tiles == 1 else torch.empty
    dtype = torch.float32 if parts > 1 else packed.dtype
    partial = empty((parts, *packed.values.shape), device=x.device, dtype=dtype)
    _launch_values_gradient(gradient, x, packed, partial, split_tokens, config, fp32_precision())
    if parts == 1:
        return partial[0]
    out = torch.empty_like(packed.values)
    _launch_sum(partial, out)
    return out


def _launch_transpose(
    packed: PanelSparse, source: Tensor, out: Tensor, kernel: Any = panel_transpose
) -> None:
    height, group = packed.panel_rows, packed.group_columns
    unit = min(height, TILE_COLUMNS)
    kernel[(source.shape[0],)](packed.values, source, out, H=height, G=group, UNIT=unit, num_warps=4)


def _launch_values_gradient(
    gradient: Tensor,
    x: Tensor,
    packed: PanelSparse,
    partial: Tensor,
    split_tokens: int,
    config: Configuration,
    precision: str,
    kernel: Any = panel_values_gradient,
) -> None:
    height, group = packed.panel_rows, packed.group_columns
    most_tiles = triton.cdiv(triton.cdiv(packed.shape[1], group), TILE_COLUMNS // group)
    kernel[(packed.panels * triton.cdiv(most_tiles, config.group), partial.shape[0])](
        gradient,
        x,
        packed.columns,
        packed.starts,
        packed.order,
        partial,
        x.shape[0],
        packed.panels,
        packed.values.shape[0],
        split_tokens,
        gradient.stride(0),
        x.stride(0),
        H=height,
        G=group,
        BLOCK_M=config.block_m,
        TILES=config.group,
        PRECISION=precision,
        UPCAST=upcast(x.dtype),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _launch_sum(partial: Tensor, out: Tensor, kernel: Any = sum_splits) -> None:
    size = out.numel()
    grid = (triton.cdiv(size, REDUCTION_BLOCK),)
    kernel[grid](partial, out, size, partial.shape[0], BLOCK=REDUCTION_BLOCK, num_warps=4)


def compile_cases() -> Iterator[CompileCase]:
    """Yield every configuration of the rule and every measured one; bfloat16 by the rule is the default."""
    for shape, config, targets in tuned(KERNEL):
        for short in (short for short, (dtype, _) in PRODUCTS.items() if dtype_name(dtype) == shape.dtype):
            yield replace(_values_gradient_case(shape, short, config, targets), default=False)
    for short, (dtype, _) in PRODUCTS.items():
        for height, group in itertools.product(PANEL_ROWS, GROUP_COLUMNS):
            panels, tiles = panel_forward.EXAMPLE_PANELS, panel_forward.EXAMPLE_TILES
            size = KERNEL, height, group, TOKEN_BUCKETS[-1], panels
            shapes = [Shape(*size, each, dtype_name(dtype)) for each in tiles]
            # In float32, one configuration serves all.
            cases = {each: shape for shape in shapes for each in by_target(shape).items()}
            for (config, targets), shape in cases.items():
                yield _values_gradient_case(shape, short, config, targets)
            if short != "tf32":  # copies and sums have no products
                yield _transpose_case(shapes[-1], short)
        if short != "tf32":
            partial, out = (
                example(torch.float32, 3, 45, 64, TILE_COLUMNS),
                example(dtype, 45, 64, TILE_COLUMNS),
            )
            yield recorded_case(
                sum_splits,
                functools.partial(_launch_sum, partial, out),
                family="sum of splits",
                label=f"{REDUCTION_BLOCK} w4 {short}",
                default=short == "bf16",
            )


def _values_gradient_case(
    shape: Shape, short: str, config: Configuration, targets: tuple[str, ...]
) -> CompileCase:
    dtype, precision = PRODUCTS[short]
    height, group = shape.panel_rows, shape.group_columns
    packed = panel_forward.example_panels(shape, dtype)
    out_features, in_features = packed.shape
    gradient, x = example(dtype, shape.tokens, out_features), example(dtype, shape.tokens, in_features)
    partial = example(dtype, 1, *packed.values.shape)
    product = (config.group * TILE_COLUMNS, height, config.block_m)
    sizes = "x".join(map(str, product))
    return recorded_case(
        panel_values_gradient,
        functools.partial(
            _launch_values_gradient, gradient, x, packed, partial, shape.tokens, config, precision
        ),
        family=KERNEL,
        label=f"h{height} g{group} {sizes} w{config.num_warps} s{config.num_stages} {short}",
        product=product,
        default=short == "bf16",
        targets=targets,
    )


def _transpose_case(shape: Shape, short: str) -> CompileCase:
    dtype, _ = PRODUCTS[short]
    packed = panel_forward.example_panels(shape, dtype)
    unit = min(shape.panel_rows, TILE_COLUMNS)
    pieces = TRANSPOSED_ROWS // shape.group_columns
    source = example(torch.int32, shape.tiles, TILE_COLUMNS // unit, pieces)
    out = example(dtype, shape.tiles, TRANSPOSED_ROWS, TILE_COLUMNS)
    return recorded_case(
        panel_transpose,
        functools.partial(_launch_transpose, packed, source, out),
        family="panel transpose",
        label=f"h{shape.panel_rows} g{shape.group_columns} w4 {short}",
        default=short == "bf16",
    )
