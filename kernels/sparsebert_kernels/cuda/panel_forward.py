"""y = activation(x @ W.T + bias) + residual for a weight in packed panels."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..formats.base import TILE_COLUMNS
from ..formats.panel import GROUP_COLUMNS, PANEL_ROWS, PanelSparse
from ..reference import ACTIVATIONS
from . import tile_configs
from .aot.compile_case import PRODUCTS, CompileCase, example, recorded_case
from .aot.targets import TARGETS
from .device_functions import WIDTH, grouped_program, operand, store_output
from .launch import (
    ALIGNED_BYTES,
    ALIGNED_ELEMENTS,
    aligned_rows,
    check_aligned,
    dtype_name,
    fp32_precision,
    upcast,
)
from .tile_configs import configuration, tuned
from .tile_rule import TOKEN_BUCKETS, Configuration, Shape, by_target

KERNEL = "panel forward"
# Short names of `aot.compile_case.PRODUCTS` by the dtype names of configurations.
SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "tensorfloat32": "tf32"}
# Panels of an example, and the tiles that they keep of 768 inputs at a sparsity of 90 % and of 70 %.
EXAMPLE_PANELS, EXAMPLE_TILES = 12, (14, 45)


@triton.jit
def panel_product(
    x_rows,  # [BLOCK_M, 1] pointers to rows of x
    values,
    columns,
    starts,
    panel,
    panels,
    H: tl.constexpr,
    G: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Return the rows of x times one panel, [BLOCK_M, H] fp32; zeros for a panel past the last."""
    SLOTS: tl.constexpr = WIDTH // G
    begin = tl.load(starts + tl.minimum(panel, panels))
    end = tl.load(starts + tl.minimum(panel + 1, panels))
    packed = tl.arange(0, WIDTH)  # [WIDTH], columns of a packed tile
    inner = tl.arange(0, H)  # [H], rows of the panel
    tile = values + begin.to(tl.int64) * (H * WIDTH) + inner[:, None] * WIDTH + packed[None, :]  # [H, WIDTH]

    # Group indices are loaded one tile ahead: the compiler does not double-buffer a loop that loads an index
    # and the data behind it in the same iteration.
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
    return accumulator


@triton.jit
def beside(left, right, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return [left, right], two blocks [ROWS, COLUMNS] side by side: [ROWS, 2 * COLUMNS]."""
    return tl.reshape(tl.permute(tl.join(left, right), (0, 2, 1)), (ROWS, 2 * COLUMNS))


@triton.jit(do_not_specialize=["M", "N", "panels"])
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
    NEIGHBOURS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """y[m, n] = activation(sum of x[m, k] W[n, k] over the columns k of n's panel + bias[n]) + residual[m, n]

    Grid: one program per tile of BLOCK_M tokens and NEIGHBOURS panels of H rows, 1, 2 or 4. WHOLE: N is a
    multiple of NEIGHBOURS * H.
    """
    token_tile, place = grouped_program(
        tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(panels, NEIGHBOURS), GROUP_M
    )
    # Neighbours differ less in their sum of tiles than single panels do: they need no order.
    panel = tl.load(order + place) if NEIGHBOURS == 1 else place * NEIGHBOURS
    rows = token_tile * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    # Rows past the end read the last row and are not stored, which is cheaper than masking every load.
    x_rows = x + tl.minimum(rows, M - 1).to(tl.int64)[:, None] * x_stride  # [BLOCK_M, 1]
    accumulator = panel_product(
        x_rows, values, columns, starts, panel, panels, H, G, BLOCK_M, PRECISION, UPCAST
    )
    if NEIGHBOURS > 1:
        second = panel_product(
            x_rows, values, columns, starts, panel + 1, panels, H, G, BLOCK_M, PRECISION, UPCAST
        )
        accumulator = beside(accumulator, second, BLOCK_M, H)
    if NEIGHBOURS > 2:
        third = panel_product(
            x_rows, values, columns, starts, panel + 2, panels, H, G, BLOCK_M, PRECISION, UPCAST
        )
        fourth = panel_product(
            x_rows, values, columns, starts, panel + 3, panels, H, G, BLOCK_M, PRECISION, UPCAST
        )
        accumulator = beside(accumulator, beside(third, fourth, BLOCK_M, H), BLOCK_M, 2 * H)
    features = panel * H + tl.arange(0, NEIGHBOURS * H)
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
    """Return ``activation(x @ W.T + bias) + residual`` for x [..., in], residual [..., out] in W's dtype."""
    out_features, in_features = packed.shape
    y = x.new_empty((*x.shape[:-1], out_features))
    if y.numel():
        check_aligned("the weight's values", packed.values)
        rows = aligned_rows(x if x.dim() == 2 else x.reshape(-1, in_features), packed.group_columns)
        if residual is not None:
            residual = residual.reshape(-1, out_features)
            if residual.stride(1) != 1:
                residual = residual.contiguous()
        bias = None if bias is None else bias.contiguous()
        precision = fp32_precision() if x.dtype == torch.float32 else "ieee"
        tokens, row = len(rows), rows.stride(0)
        config = _configuration(tokens, packed, precision)
        residual_row = None if residual is None else residual.stride(0)
        _launch(rows, packed, bias, activation, residual, y, config, precision, tokens, row, residual_row)
        if packed.quick_call is None and in_features % max(ALIGNED_ELEMENTS, packed.group_columns) == 0:
            packed.quick_call = QuickCall(packed)
    return y


class QuickCall:
    """``linear`` with one weight, for arguments that the kernel may read as they are.

    It holds neither the weight, which holds it, nor a bias: memory of a GPU would otherwise wait for the
    garbage collector, or for the next call.
    """

    def __init__(self, packed: PanelSparse) -> None:
        self._out_features, self._in_features = packed.shape
        self._dtype, self._device = packed.dtype, packed.device
        self._configurations: dict[tuple[int, str], Configuration] = {}
        self._state = tile_configs.state
        # The last bias that was looked at.
        self._bias: Callable[[], Tensor | None] = lambda: None
        self._bias_address = 0

    def fits(
        self, x: Tensor, packed: PanelSparse, bias: Tensor | None, activation: str, residual: Tensor | None
    ) -> bool:
        """Return whether the arguments can be read as they are; ``linear`` checks and copies others."""
        shape, address = x.shape, x.data_ptr()
        return (
            x.dtype is self._dtype
            and len(shape) > 1
            and shape[-1] == self._in_features
            and x.device == self._device
            and address > 0
            and address % ALIGNED_BYTES == 0
            and x.is_contiguous()
            and not x.is_neg()
            and x.numel() > 0
            and packed.values.data_ptr() % ALIGNED_BYTES == 0
            and activation in ACTIVATIONS
            and (bias is None or self._reads_bias(bias))
            and (
                residual is None
                or (
                    residual.dtype is self._dtype and self._reads(residual, (*shape[:-1], self._out_features))
                )
            )
        )

    def _reads_bias(self, bias: Tensor) -> bool:
        address = bias.data_ptr()
        if bias is self._bias() and address == self._bias_address:
            return True
        if not self._reads(bias, (self._out_features,)):
            return False
        self._bias, self._bias_address = weakref.ref(bias), address
        return True

    def _reads(self, tensor: Tensor, shape: tuple[int, ...]) -> bool:
        address = tensor.data_ptr()
        return (
            tensor.shape == shape
            and tensor.device == self._device
            and tensor.is_contiguous()
            and address > 0
            and address % tensor.itemsize == 0
            and not tensor.is_neg()
        )

    def __call__(
        self, x: Tensor, packed: PanelSparse, bias: Tensor | None, activation: str, residual: Tensor | None
    ) -> Tensor:
        """Return ``activation(x @ W.T + bias) + residual`` for arguments that fit."""
        if self._state is not tile_configs.state:
            self._state = tile_configs.state
            self._configurations.clear()
        tokens = x.numel() // self._in_features
        precision = fp32_precision() if self._dtype is torch.float32 else "ieee"
        key = (tokens - 1).bit_length(), precision  # of the power of two for which `selected` answers
        config = self._configurations.get(key)
        if config is None:
            config = self._configurations[key] = _configuration(tokens, packed, precision)
        row, out_row = self._in_features, self._out_features
        y = x.new_empty((*x.shape[:-1], out_row))
        residual_row = None if residual is None else out_row
        _launch(x, packed, bias, activation, residual, y, config, precision, tokens, row, residual_row)
        return y


def _configuration(tokens: int, packed: PanelSparse, precision: str) -> Configuration:
    dtype = "tensorfloat32" if precision == "tf32" else dtype_name(packed.dtype)
    height, group, tiles = packed.panel_rows, packed.group_columns, packed.values.shape[0]
    return configuration(Shape(KERNEL, height, group, tokens, packed.panels, tiles, dtype), packed.device)


def _launch(
    x: Tensor,
    packed: PanelSparse,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    y: Tensor,
    config: Configuration,
    precision: str,
    tokens: int,
    row: int,
    residual_row: int | None,
    kernel: Any = panel_forward,
) -> None:
    """Launch the kernel on rows of x and of the residual that are so many elements apart."""
    out_features = packed.shape[0]
    # `triton.cdiv` takes half a microsecond outside of kernels.
    programs = -(-tokens // config.block_m) * -(-packed.panels // config.neighbours)
    kernel[(programs,)](
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
        row,
        residual_row,
        out_features,
        H=packed.panel_rows,
        G=packed.group_columns,
        WHOLE=out_features % (packed.panel_rows * config.neighbours) == 0,
        ACTIVATION=activation,
        BLOCK_M=config.block_m,
        GROUP_M=config.group,
        NEIGHBOURS=config.neighbours,
        PRECISION=precision,
        UPCAST=upcast(x.dtype),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def compile_cases() -> Iterator[CompileCase]:
    """Yield every configuration of the rule and every measured one; bfloat16 by the rule is the default.

    All cases have the epilogue of an up-projection, bias and GELU; those of the least group width are
    compiled with that of an output or down projection as well, bias and residual.
    """
    compiled: dict[object, set[str]] = {}
    sizes = itertools.product(SHORT, PANEL_ROWS, GROUP_COLUMNS, TOKEN_BUCKETS, EXAMPLE_TILES)
    for dtype, height, group, tokens, tiles in sizes:
        shape = Shape(KERNEL, height, group, tokens, EXAMPLE_PANELS, tiles, dtype)
        for config, targets in by_target(shape).items():
            done = compiled.setdefault((dtype, height, group, config), set())
            targets = tuple(each for each in targets or TARGETS if each not in done)
            if not targets:
                continue
            done.update(targets)
            yield _compile_case(shape, config, targets)
            if group == GROUP_COLUMNS[0]:
                yield _compile_case(shape, config, targets, with_residual=True)
    for shape, config, targets in tuned(KERNEL):
        yield replace(_compile_case(shape, config, targets), default=False)


def _compile_case(
    shape: Shape, config: Configuration, targets: tuple[str, ...], with_residual: bool = False
) -> CompileCase:
    short = SHORT[shape.dtype]
    dtype, precision = PRODUCTS[short]
    height, group = shape.panel_rows, shape.group_columns
    packed = example_panels(shape, dtype)
    out_features, in_features = packed.shape
    x, bias = example(dtype, shape.tokens, in_features), example(dtype, out_features)
    y = example(dtype, shape.tokens, out_features)
    product = (config.block_m, height, TILE_COLUMNS)
    activation, variant = ("none", " residual") if with_residual else ("gelu", "")
    residual, residual_row = (y, out_features) if with_residual else (None, None)
    rows = shape.tokens, in_features, residual_row
    sizes = "x".join(map(str, product))
    stages = f"s{config.num_stages}" + f" n{config.neighbours}" * (config.neighbours > 1)
    return recorded_case(
        panel_forward,
        functools.partial(_launch, x, packed, bias, activation, residual, y, config, precision, *rows),
        family=KERNEL,
        label=f"h{height} g{group} {sizes} w{config.num_warps} {stages} {short}{variant}",
        product=product,
        steps=shape.steps,
        results=config.neighbours,
        default=shape.dtype == "bfloat16",
        targets=targets,
    )


def example_panels(shape: Shape, dtype: torch.dtype) -> PanelSparse:
    """Return a weight of this shape without storage, for a launch that is recorded."""
    slots = TILE_COLUMNS // shape.group_columns
    tensors = {
        "values": example(dtype, shape.tiles, shape.panel_rows, TILE_COLUMNS),
        "columns": example(torch.int32, (shape.tiles + 1) * slots),
        "starts": example(torch.int32, shape.panels + 1),
        "order": example(torch.int32, shape.panels),
    }
    geometry = {"group_columns": shape.group_columns, "aligned": True}
    return PanelSparse((shape.panels * shape.panel_rows, 768), tensors, geometry)
