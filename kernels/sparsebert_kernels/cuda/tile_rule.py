"""Block sizes of the panel kernels by a rule, for devices and shapes without measurements."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..formats.base import TILE_COLUMNS
from .aot.targets import TARGETS
from .hardware import DEFAULT_SHARED_MEMORY, multiprocessors

MAX_STAGES = 4
TOKEN_BUCKETS = (64, 512, 4096, 16384)
# Steps a panel below which a pipeline does not fill: several small programs on a multiprocessor hide the
# latency instead.
FEW_STEPS = 3
# Tiles a panel below which a chunk of two tiles would be mostly empty (values gradient).
FEW_TILES = 1.6
NEIGHBOURS = (1, 2, 4)  # panels that a program of panel forward may take
# Columns of the product of neighbouring panels in one program.
NEIGHBOURS_WIDTH = 64


@dataclass(frozen=True)
class Shape:
    """The problem that a configuration is selected for.

    Attributes:
        kernel: "panel forward" or "panel values gradient".
        panel_rows: h, rows of a panel.
        group_columns: g, columns of a group.
        tokens: M.
        panels: Panels of the weight.
        tiles: Stored tiles of 64 packed columns.
        dtype: "float32", "tensorfloat32" (panel forward only), "bfloat16" or "float16".
    """

    kernel: str
    panel_rows: int
    group_columns: int
    tokens: int
    panels: int
    tiles: int
    dtype: str

    @property
    def itemsize(self) -> int:
        return 2 if self.dtype in ("bfloat16", "float16") else 4

    @property
    def steps(self) -> float:
        """Tiles a panel, on average: the steps of the main loop of panel forward."""
        return self.tiles / max(self.panels, 1)

    def bucket(self) -> Shape:
        """Return the shape with its tokens rounded up to a power of two."""
        return replace(self, tokens=1 << max(self.tokens - 1, 0).bit_length())


@dataclass(frozen=True)
class Configuration:
    """The cut of a kernel into programs, and its compile options.

    Attributes:
        block_m: Tokens of a program (panel forward) or of one step (panel values gradient).
        group: Token tiles that pass all panels together (panel forward), or packed tiles of a program.
        num_warps: Warps of a program.
        num_stages: Depth of the software pipeline.
        neighbours: Neighbouring panels of a program (panel forward): 1, 2 or 4.
    """

    block_m: int
    group: int
    num_warps: int
    num_stages: int
    neighbours: int = 1


def by_rule(shape: Shape, shared_memory: int = DEFAULT_SHARED_MEMORY) -> Configuration:
    """Return the configuration of a device without measurements, for this much shared memory."""
    rule = _values_gradient if shape.kernel == "panel values gradient" else _forward
    return rule(shape, shared_memory)


def by_target(shape: Shape) -> dict[Configuration, tuple[str, ...]]:
    """Return the rule's configurations by the names of the targets that use each; () for all targets."""
    targets: dict[Configuration, tuple[str, ...]] = {}
    for target in TARGETS.values():
        config = by_rule(shape, target.shared_memory)
        targets[config] = (*targets.get(config, ()), target.name)
    return targets if len(targets) > 1 else dict.fromkeys(targets, ())


def _forward(shape: Shape, shared_memory: int) -> Configuration:
    if shape.itemsize == 4:
        # Exact fp32 products hold their operands in registers, which requires small blocks.
        block = 32 if shape.panel_rows >= 64 and shape.dtype == "float32" else 64
        warps = 4 if shape.panel_rows == 16 else 8
    elif shape.tokens <= TOKEN_BUCKETS[1] or shape.panel_rows == 16 or _is_short(shape):
        # With 8 warps, a packed tile of 16 rows would be copied 8 bytes at a time.
        block = 64 if shape.tokens <= TOKEN_BUCKETS[0] or shape.panel_rows > 64 else 128
        warps = 4 if shape.panel_rows <= 64 else 8
    else:
        block, warps = 256 if shape.panel_rows <= 64 else 128, 8
    line = TILE_COLUMNS * shape.itemsize
    while block > 64 and 2 * (block + shape.panel_rows) * line > shared_memory:
        block //= 2
    stages = _stages((block + shape.panel_rows) * line, shared_memory, most_stages(shape))
    return Configuration(block, 8, warps, stages, _neighbours(shape))


def _is_short(shape: Shape) -> bool:
    return shape.steps < FEW_STEPS and shape.panel_rows <= 64


def _neighbours(shape: Shape) -> int:
    """Return the neighbouring panels of a program, so that it stores whole lines of y."""
    if shape.itemsize == 4 or shape.tokens <= TOKEN_BUCKETS[1]:
        return 1
    return max(1, min(NEIGHBOURS_WIDTH // shape.panel_rows, 1 << (max(shape.panels, 1).bit_length() - 1)))


def _values_gradient(shape: Shape, shared_memory: int) -> Configuration:
    if shape.itemsize == 4:
        tiles, warps, block = 1, 4 if shape.panel_rows <= 32 else 8, 32 if shape.panel_rows <= 64 else 16
    else:
        # Two packed tiles are 128 rows of the product, which fill the tensor cores for every h.
        tiles, warps, block = 2, 4 if shape.panel_rows <= 64 else 8, 64
        if shape.steps < FEW_TILES:
            tiles, warps = 1, 4
    step = (tiles * TILE_COLUMNS + shape.panel_rows) * block * shape.itemsize
    return Configuration(block, tiles, warps, _stages(step, shared_memory))


def most_stages(shape: Shape) -> int:
    """Return the pipeline depth beyond which panel forward has no step to load: one more than its steps."""
    return max(2, int(shape.steps) + 1)


def _stages(step: int, shared_memory: int, most: int = MAX_STAGES) -> int:
    """Return the pipeline depth for steps of this many bytes; on AMD and Ampere, one buffer is fewer."""
    return max(2, min(MAX_STAGES, most, shared_memory // step))


def splits(programs: int, tokens: int, block_m: int, device: torch.device) -> int:
    """Return the number of parts of a sum over tokens that fills the device, at least 512 tokens a part."""
    full = -(-2 * multiprocessors(device) // max(programs, 1))
    return max(1, min(full, tokens // max(512, block_m)))
