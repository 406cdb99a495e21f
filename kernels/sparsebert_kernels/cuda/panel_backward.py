"""Gradients of a linear layer whose weight lies in packed panels.

    dL/dx = g @ W   the forward kernel, over W.T in panels of 64 of x's features. The index of W.T is made
                    once (`transposed_index`); its tiles are filled from the values of W at each call, into a
                    scratch that lives no longer than the call.
    dL/dvalues      at the kept blocks alone: for each tile, (64 packed columns of x).T @ (h columns of g)

A panel of W.T is 64 features wide whatever the width of a group is. Narrower groups are filled up with zeros
where their neighbours are pruned: scattered groups of 8 at a sparsity of 90 % cost what 43 % would, and the
scratch is as much larger. Groups in runs of 64 cost nothing extra. Panels as narrow as the groups would do no
better: they read g eight times as often, for products too narrow to fill the tensor cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsebert_kernels.cuda.tile_configs import (
    TOKEN_BUCKETS,
    Configuration,
    Shape,
    by_target,
    configuration,
    splits,
    tuned,
)

from ..formats.panel import GROUP_COLUMNS, PANEL_ROWS, TILE_COLUMNS, PanelSparse
from ..formats.panel_transpose import TRANSPOSED_ROWS, transposed_panels
from . import panel_forward
from .compile_case import CompileCase
from .tiles import aligned_rows, check_aligned, dtype_name, operand, precision, upcast

KERNEL = "panel values gradient"
REDUCED_AT_ONCE = 1024
# Of values and activations, with the word for how their products are taken.
COMPILED = (("bfloat16", "bf16"), ("float16", "fp16"), ("float32", "fp32"), ("float32", "tf32"))


@triton.jit
def panel_transpose(
    values,  # (tiles, H, 64)
    source,  # (transposed tiles, 64 / UNIT, 64 / G) int32
    out,  # (transposed tiles, 64, 64)
    H: tl.constexpr,
    G: tl.constexpr,
    UNIT: tl.constexpr,
):
    """out[t, k, n]: the weights of W.T, block by block from where ``source`` says; 0 where it says -1.

    Grid: one program a transposed tile. A block is UNIT = min(H, 64) rows by G columns of W.
    """
    WIDTH: tl.constexpr = 64
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


@triton.jit(do_not_specialize=["M", "split_tokens"])
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

    Grid: (panels * the most chunks of TILES tiles a panel may have, splits); chunks past the end are empty.
    x is the left operand: 64 * TILES packed columns fill the tensor cores however few rows a panel has.
    """
    WIDTH: tl.constexpr = 64
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
        # A chunk may reach past the last tile of its panel; that part is computed, and not stored.
        slot = tl.minimum(slot, end * SLOTS - 1)
        group = tl.load(columns + slot)
        offsets = tl.max_contiguous(tl.multiple_of(group * G + packed % G, G), G)
        features = panel * H + inner

        token = tl.program_id(1) * split_tokens
        last = tl.minimum(token + split_tokens, M)
        tokens = (token + step).to(tl.int64)
        # Loaded as the transpose it is used as: else the compiler makes no asynchronous copies on Ampere.
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
        # A slot that repeats the group before it only fills up the tile.
        before = tl.load(columns + tl.maximum(slot - 1, first * SLOTS))
        filler = (group == before) & (slot > first * SLOTS)
        accumulator = tl.where(filler[:, None], 0.0, accumulator)
        tile = begin + packed // WIDTH
        address = (tl.program_id(1).to(tl.int64) * tiles + tile) * (H * WIDTH) + packed % WIDTH
        tl.store(
            out + address[:, None] + inner[None, :] * WIDTH,
            accumulator.to(out.dtype.element_ty),
            mask=(tile < end)[:, None],
        )


@triton.jit
def sum_splits(
    partial,  # (splits, size) fp32
    out,  # (size,)
    size,
    splits,
    BLOCK: tl.constexpr,
):
    """out = partial.sum(0), in the order of the splits. Grid: one program a BLOCK of values."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(splits):
        total += tl.load(partial + place, mask=inside, other=0.0)
        partial += size
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


def input_gradient(gradient: Tensor, packed: PanelSparse, transposed: Sequence[Tensor]) -> Tensor:
    """gradient [..., out] @ W, in the dtype of W; ``transposed`` is `transposed_index(packed)` or empty."""
    source, columns, starts, order = transposed or transposed_panels(packed)
    check_aligned("the weight's values", packed.values)
    unit = min(packed.panel_rows, TILE_COLUMNS)
    values = packed.values.new_empty(source.shape[0], TRANSPOSED_ROWS, TILE_COLUMNS)
    _launch_transpose(packed, source, unit, values)
    tensors = {"values": values, "columns": columns, "starts": starts, "order": order}
    shape = packed.shape[1], packed.shape[0]
    flipped = PanelSparse(shape, tensors, {"group_columns": unit, "aligned": False})
    return panel_forward.linear(gradient, flipped, None, "none")


def values_gradient(gradient: Tensor, x: Tensor, packed: PanelSparse) -> Tensor:
    """dL/dvalues in the layout and dtype of ``packed.values``, for gradient [..., out] and x [..., in].

    Zero in what only fills up tiles, panels and groups. The sum over tokens is split over programs where
    there are few tiles, and added up in a fixed order: the same bits every time.
    """
    x, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    if not x.shape[0]:
        return torch.zeros_like(packed.values)
    gradient, x = aligned_rows(gradient, packed.panel_rows), aligned_rows(x, packed.group_columns)
    return _launch_values_gradient(gradient, x, packed)


def _launch_transpose(packed: PanelSparse, source: Tensor, unit: int, out: Tensor) -> None:
    grid = (source.shape[0],)
    panel_transpose[grid](
        packed.values, source, out, H=packed.panel_rows, G=packed.group_columns, UNIT=unit, num_warps=4
    )


def _launch_values_gradient(gradient: Tensor, x: Tensor, packed: PanelSparse) -> Tensor:
    tokens, tiles = x.shape[0], packed.values.shape[0]
    height, group = packed.panel_rows, packed.group_columns
    shape = Shape(KERNEL, height, group, tokens, packed.panels, tiles, dtype_name(x.dtype))
    chosen = configuration(shape, x.device)
    parts = splits(triton.cdiv(tiles, chosen.group), tokens, chosen.block_m, x.device)
    split_tokens = triton.cdiv(triton.cdiv(tokens, parts), chosen.block_m) * chosen.block_m
    parts = triton.cdiv(tokens, split_tokens)
    most_tiles = triton.cdiv(triton.cdiv(packed.shape[1], group), TILE_COLUMNS // group)
    grid = (packed.panels * triton.cdiv(most_tiles, chosen.group), parts)
    # A single tile may be the one that stands for none, which no program writes.
    empty = torch.zeros if tiles == 1 else torch.empty
    dtype = torch.float32 if parts > 1 else packed.dtype
    partial = empty((parts, *packed.values.shape), device=x.device, dtype=dtype)
    panel_values_gradient[grid](
        gradient,
        x,
        packed.columns,
        packed.starts,
        packed.order,
        partial,
        tokens,
        packed.panels,
        tiles,
        split_tokens,
        gradient.stride(0),
        x.stride(0),
        H=height,
        G=group,
        BLOCK_M=chosen.block_m,
        TILES=chosen.group,
        PRECISION=precision(),
        UPCAST=upcast(x.dtype),
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
    )
    if parts == 1:
        return partial[0]
    out = torch.empty_like(packed.values)
    blocks = triton.cdiv(out.numel(), REDUCED_AT_ONCE)
    sum_splits[(blocks,)](partial, out, out.numel(), parts, BLOCK=REDUCED_AT_ONCE, num_warps=4)
    return out


def compile_cases() -> Iterator[CompileCase]:
    """Every configuration of the rule, and every measured one; the default ones are bfloat16 by the rule."""
    for shape, chosen, targets in tuned(KERNEL):
        for short in (short for dtype, short in COMPILED if dtype == shape.dtype):
            yield replace(_values_gradient_case(shape, short, chosen, targets), default=False)
    for dtype, short in COMPILED:
        for height in PANEL_ROWS:
            for group in GROUP_COLUMNS:
                shape = Shape(KERNEL, height, group, TOKEN_BUCKETS[-1], 12, 48, dtype)
                for chosen, targets in by_target(shape).items():
                    yield _values_gradient_case(shape, short, chosen, targets)
                if short != "tf32":
                    yield _transpose_case(shape, short)
        if short == "tf32":
            continue  # sums have no products
        yield CompileCase(
            family="sum of splits",
            label=f"{REDUCED_AT_ONCE} w4 {short}",
            kernel=sum_splits,
            arguments={"partial": "*fp32", "out": f"*{short}", "size": "i32", "splits": "i32"},
            constants={"BLOCK": REDUCED_AT_ONCE},
            num_warps=4,
            num_stages=3,
            aligned=("size",),
            default=dtype == "bfloat16",
        )


def _values_gradient_case(
    shape: Shape, short: str, chosen: Configuration, targets: tuple[str, ...]
) -> CompileCase:
    height = shape.panel_rows
    tile = (chosen.group * TILE_COLUMNS, height, chosen.block_m)
    pointer = "*fp32" if short == "tf32" else f"*{short}"
    arguments = {"gradient": pointer, "x": pointer, "out": pointer}
    arguments |= dict.fromkeys(("columns", "starts", "order"), "*i32")
    integers = ("M", "panels", "tiles", "split_tokens", "gradient_stride", "x_stride")
    arguments |= dict.fromkeys(integers, "i32")
    constants: dict[str, Any] = {"H": height, "G": shape.group_columns}
    constants |= {"BLOCK_M": chosen.block_m, "TILES": chosen.group}
    constants |= {"PRECISION": "tf32" if short == "tf32" else "ieee", "UPCAST": False}
    sizes = "x".join(map(str, tile))
    return CompileCase(
        family=KERNEL,
        label=f"h{height} g{shape.group_columns} {sizes} w{chosen.num_warps} s{chosen.num_stages} {short}",
        kernel=panel_values_gradient,
        arguments=arguments,
        constants=constants,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
        aligned=("gradient_stride", "x_stride"),
        tile=tile,
        default=short == "bf16",
        targets=targets,
    )


def _transpose_case(shape: Shape, short: str) -> CompileCase:
    height, group = shape.panel_rows, shape.group_columns
    return CompileCase(
        family="panel transpose",
        label=f"h{height} g{group} w4 {short}",
        kernel=panel_transpose,
        arguments={"values": f"*{short}", "source": "*i32", "out": f"*{short}"},
        constants={"H": height, "G": group, "UNIT": min(height, TILE_COLUMNS)},
        num_warps=4,
        num_stages=3,
        default=short == "bf16",
    )
