"""The cost model of GPUs, a roofline: the least time of a layer, computed from the device's figures.

A kernel takes at least as long as its arithmetic on the tensor cores, the traffic of its tiles through the L2
cache, the traffic of its activations and weights through memory, and the steps of its longest program. The
model takes the longest of these and adds the cost of a kernel launch. The planner corrects it with timings.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass, replace

import torch

from sparsebert.cost.work import WorkEstimate
from sparsebert_kernels.cuda import tile_configs
from sparsebert_kernels.formats.base import TILE_COLUMNS

# Panel height -> share of the tensor cores' rate that a product with as many columns can reach.
TENSOR_CORE_SHARE = {16: 0.40, 32: 0.67, 64: 0.95, 128: 1.0}
# Tile (tokens, columns) of a dense kernel -> share of the rate that it reaches.
DENSE_TILES = {(128, 256): 1.0, (128, 128): 1.0, (256, 128): 1.0, (64, 128): 0.8, (64, 64): 0.6}
PANEL_TOKENS = (256, 128, 64)
# Products in plain fp32 run on the ordinary cores, where the Triton kernels reach this share of cuBLAS's
# rate.
FP32_SHARE = 0.5
WAVE_SECONDS = 0.35e-6
FIRST_STEP_SECONDS = 0.9e-6
STEP_SECONDS = 0.05e-6
# Share of the L2 cache that activations may fill without being evicted before the next kernel.
USABLE_L2 = 0.75


@dataclass(frozen=True)
class Device:
    """The figures of a GPU.

    Attributes:
        name: The device's name.
        matmul: FLOP/s of a large dense product in bf16 or fp16.
        matmul_fp32: FLOP/s of a large dense product in plain fp32.
        memory: Bytes/s of a copy (read + written).
        l2: Bytes/s from the L2 cache to the multiprocessors.
        l2_bytes: Size of the L2 cache.
        processors: Multiprocessors.
        kernel: Seconds that an empty kernel costs inside a CUDA graph.
        source: Source of the figures, as text.
    """

    name: str
    matmul: float
    matmul_fp32: float
    memory: float
    l2: float
    l2_bytes: float
    processors: int
    kernel: float
    source: str = "built-in figures"


KNOWN = {
    "h200": Device("NVIDIA H200", 790e12, 52e12, 4.3e12, 6.0e12, 60e6, 132, 2e-6),
    "h100": Device("NVIDIA H100", 700e12, 50e12, 2.9e12, 5.5e12, 50e6, 132, 2e-6),
    "a100": Device("NVIDIA A100", 270e12, 18e12, 1.7e12, 4.0e12, 40e6, 108, 2e-6),
}
REFERENCE = KNOWN["h100"]


class Roofline:
    """Predicts the seconds of a layer that sees ``tokens`` rows of x in ``dtype`` on a GPU."""

    def __init__(self, device: Device, dtype: torch.dtype, tokens: int) -> None:
        self.device, self.dtype, self.tokens = device, dtype, tokens
        self.source = device.source

    def supports(self, work: WorkEstimate) -> bool:
        """Whether the model knows this format."""
        return work.format in ("dense", "compact", "panel", "bitmap", "column_panel")

    def seconds(self, work: WorkEstimate) -> float:
        """Predict the seconds of a layer.

        Raises:
            KeyError: The format is not supported.
        """
        match work.format:
            case "dense":
                return self._dense(*work.shape)
            case "compact":
                return self._compact(work)
            case "panel":
                return self._panel(work)
            case "column_panel":
                # A separate kernel transposes the activations first.
                moved = 2 * self.tokens * work.shape[1] * self.dtype.itemsize
                return self._panel(work) + moved / self.device.memory + self.device.kernel
            case "bitmap":
                # A separate kernel unpacks the matrix first, into the L2 cache.
                unpacking = max(work.nbytes / self.device.memory, self._matrix_bytes(work) / self.device.l2)
                return self._dense(*work.shape) + unpacking + self.device.kernel
        raise KeyError(work.format)

    @property
    def _matmul(self) -> float:
        return self.device.matmul_fp32 if self.dtype == torch.float32 else self.device.matmul

    def _matrix_bytes(self, work: WorkEstimate) -> int:
        return math.prod(work.shape) * self.dtype.itemsize

    def _dense(self, rows: int, columns: int) -> float:
        device, tokens = self.device, self.tokens

        def waves(tile: tuple[int, int]) -> float:
            programs = math.ceil(tokens / tile[0]) * math.ceil(rows / tile[1])
            rate = self._matmul / device.processors * DENSE_TILES[tile]
            wave = 2 * tile[0] * tile[1] * columns / rate + WAVE_SECONDS
            return math.ceil(programs / device.processors) * wave

        busy = min(waves(tile) for tile in DENSE_TILES)
        return max(busy, self._traffic(rows, columns, rows * columns * self.dtype.itemsize)) + device.kernel

    def _compact(self, work: WorkEstimate) -> float:
        """Predict the dense product of the live rectangle, and the kernels that gather x and scatter y."""
        rows, columns = work.shape
        moved = 2 * self.tokens * (columns + rows) * self.dtype.itemsize
        if not rows or not columns:
            return self.device.kernel
        return self._dense(rows, columns) + moved / self.device.memory + 2 * self.device.kernel

    def _panel(self, work: WorkEstimate) -> float:
        assert work.block is not None
        device, (rows, columns), height = self.device, work.shape, work.block[0]
        panels = math.ceil(rows / height)
        tiles = work.stored / (height * TILE_COLUMNS)
        steps = tiles / panels
        share = FP32_SHARE if self.dtype == torch.float32 else TENSOR_CORE_SHARE[height]

        def busy(tokens: int) -> float:
            token_tiles = math.ceil(self.tokens / tokens)
            programs = token_tiles * panels
            used = min(1.0, programs / device.processors)
            flops = 2 * tokens * work.stored * token_tiles
            moved = (tokens + height) * TILE_COLUMNS * self.dtype.itemsize * tiles * token_tiles
            at_once = device.processors * (2 if tokens <= 128 else 1)
            chain = math.ceil(programs / at_once) * (FIRST_STEP_SECONDS + steps * STEP_SECONDS)
            return max(flops / (self._matmul * share * used), moved / (device.l2 * used), chain)

        fastest = min(busy(tokens) for tokens in PANEL_TOKENS if tokens * height <= 256 * 64)
        return max(fastest, self._traffic(rows, columns, work.nbytes)) + device.kernel

    def _traffic(self, rows: int, columns: int, weight_bytes: float) -> float:
        """Predict the traffic of activations, from the L2 cache if they fit, and of weights, from memory."""
        activations = self.tokens * (rows + columns) * self.dtype.itemsize
        fits = activations < USABLE_L2 * self.device.l2_bytes
        return (
            activations / (self.device.l2 if fits else self.device.memory) + weight_bytes / self.device.memory
        )


def named(name: str) -> Device:
    """Return the built-in figures of a GPU whose name contains one of ``KNOWN``, e.g. "NVIDIA H200".

    Raises:
        ValueError: There are no figures for this name.
    """
    if not isinstance(name, str):
        raise ValueError(f"device must be the name of a GPU ({', '.join(KNOWN)}), got {name!r}")
    for key, device in KNOWN.items():
        if key in name.lower():
            return device
    raise ValueError(
        f"no figures for device {name!r}; known: {', '.join(KNOWN)}. "
        "For a GPU of this machine, move the model there and omit device"
    )


@functools.cache
def present(device: torch.device) -> Device:
    """Return the figures of a GPU of this machine.

    ``make gpu`` measures the figures. Without measurements, the built-in figures of the GPU's name apply or,
    for an unknown name, the figures of an H100, scaled by the number of multiprocessors.
    """
    properties = torch.cuda.get_device_properties(device)
    try:
        figures = named(properties.name)
    except ValueError:
        scale = properties.multi_processor_count / REFERENCE.processors
        figures = replace(
            REFERENCE,
            matmul=REFERENCE.matmul * scale,
            matmul_fp32=REFERENCE.matmul_fp32 * scale,
            memory=REFERENCE.memory * scale,
            l2=REFERENCE.l2 * scale,
            source=f"figures scaled from {REFERENCE.name} by the number of multiprocessors",
        )
    if (limits := tile_configs.limits(properties.name)) is not None:
        # The L2 cache is measured by torch's reduction, which may not reach the built-in rate.
        measured = {**asdict(limits), "l2": max(limits.l2, figures.l2)}
        figures = replace(figures, **measured, source="figures measured on such a device")
    return replace(figures, name=properties.name, processors=properties.multi_processor_count)
