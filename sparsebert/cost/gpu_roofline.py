"""The cost model of GPUs, a roofline: the least time of a layer, computed from the device's figures.

A kernel takes at least as long as its arithmetic on the tensor cores, the traffic of its tiles through the L2
cache, the instructions that it issues, the traffic of its activations and weights through memory, and its
programs one after the other. The model takes the longest of these and adds the cost of a kernel launch. The
planner corrects it with timings.

A program waits for its index, loads, multiplies and finishes its outputs in turn. The fewer programs fit on a
multiprocessor at once, the less of this overlaps; a multiprocessor with a single program overlaps nothing.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass, replace

import torch

from sparsebert.cost.work import WorkEstimate
from sparsebert_kernels.cuda import epilogue_cost, hardware, tile_configs
from sparsebert_kernels.cuda.aot.targets import SCHEDULERS
from sparsebert_kernels.cuda.tile_rule import Configuration, Shape
from sparsebert_kernels.dtype_names import long_name
from sparsebert_kernels.formats.base import TILE_COLUMNS

# Panel height -> share of the tensor cores' rate that a product with as many columns can reach.
TENSOR_CORE_SHARE = {16: 0.40, 32: 0.67, 64: 0.95, 128: 1.0}
# Tile (tokens, columns) of a dense kernel -> share of the rate that it reaches.
DENSE_TILES = {(128, 256): 1.0, (128, 128): 1.0, (256, 128): 1.0, (64, 128): 0.8, (64, 64): 0.6}
# Products in plain fp32 run on the ordinary cores, where the Triton kernels reach this share of cuBLAS's
# rate.
FP32_SHARE = 0.5
# Seconds of each wave of a dense kernel beside its products.
WAVE_SECONDS = 0.35e-6
# A program begins with four loads that wait for each other: order, start, columns, and the first tile. Each
# neighbouring panel after the first needs three of them.
LOAD_SECONDS, FIRST_LOADS, LATER_LOADS = 0.35e-6, 4, 3
# Instructions of a warp before the main loop and for each of its steps, read off code compiled for sm_90.
PROLOGUE_INSTRUCTIONS, STEP_INSTRUCTIONS = 320, 99
# Bytes that a multiprocessor takes from the L2 cache in a cycle while the others take little.
L2_BYTES_PER_CYCLE = 64
# Registers, warps and programs of a multiprocessor, threads of a warp, and bytes of shared memory that the
# system reserves for each program; of all supported GPUs.
REGISTERS, WARPS, PROGRAMS, WARP, RESERVED = 65536, 64, 32, 32, 1024
# Registers of a thread, fitted to compiled code for sm_90: a few, and more for each of its output elements.
THREAD_REGISTERS, ELEMENT_REGISTERS, REGISTER_STEP = 32, 1.4, 8
# Narrowest groups of columns for which the kernels have configurations.
LEAST_GROUP = 8
# Kernels of the compact format: it fills y, gathers x and the bias, multiplies, adds the bias and scatters.
COMPACT_KERNELS = 6
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
        clock: Cycles/s of the multiprocessors under load.
        capability: Compute capability.
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
    clock: float
    capability: tuple[int, int]
    source: str = "built-in figures"

    @property
    def shared_memory(self) -> int:
        """Bytes of shared memory available to one program."""
        return hardware.shared_memory_of(self.capability)


KNOWN = {
    "h200": Device("NVIDIA H200", 790e12, 52e12, 4.3e12, 6.0e12, 60e6, 132, 2e-6, 1.755e9, (9, 0)),
    "h100": Device("NVIDIA H100", 700e12, 50e12, 2.9e12, 5.5e12, 50e6, 132, 2e-6, 1.755e9, (9, 0)),
    "a100": Device("NVIDIA A100", 270e12, 18e12, 1.7e12, 4.0e12, 40e6, 108, 2e-6, 1.41e9, (8, 0)),
}
REFERENCE = KNOWN["h100"]


@dataclass(frozen=True)
class Bounds:
    """The least seconds of a kernel, by what bounds it.

    Attributes:
        tensor_cores: Products at the rate of the tensor cores.
        l2: Tiles from the L2 cache.
        issue: Instructions, one a cycle from each scheduler.
        programs: Waves of programs, each of which waits, multiplies and finishes in turn.
        traffic: Activations, from the L2 cache if they fit, and weights, from memory.
    """

    tensor_cores: float
    l2: float
    issue: float
    programs: float
    traffic: float

    @property
    def tightest(self) -> str:
        """Name of the largest."""
        seconds = asdict(self)
        return max(seconds, key=lambda name: seconds[name])

    @property
    def seconds(self) -> float:
        """The largest."""
        return max(asdict(self).values())


class Roofline:
    """Predicts the seconds of a layer that sees ``tokens`` rows of x in ``dtype`` on a GPU.

    With an ``activation``, packed panels apply it in their epilogue; a kernel of its own follows the others.
    """

    def __init__(self, device: Device, dtype: torch.dtype, tokens: int, activation: str = "none") -> None:
        self.device, self.dtype, self.tokens, self.activation = device, dtype, tokens, activation
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
                return self._dense(*work.shape) + self._activating(work.shape[0])
            case "compact":
                return self._compact(work) + self._activating(work.shape[0])
            case "panel":
                return self._panel(work)
            case "column_panel":
                # A separate kernel transposes the activations first.
                moved = 2 * self.tokens * work.shape[1] * self.dtype.itemsize
                return self._panel(work) + moved / self.device.memory + self.device.kernel
            case "bitmap":
                # A separate kernel unpacks the matrix first, into the L2 cache.
                unpacking = max(work.nbytes / self.device.memory, self._matrix_bytes(work) / self.device.l2)
                dense = self._dense(*work.shape) + self._activating(work.shape[0])
                return dense + unpacking + self.device.kernel
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
        others = (COMPACT_KERNELS - 1) * self.device.kernel
        return self._dense(rows, columns) + moved / self.device.memory + others

    def pass_seconds(self, columns: int) -> float:
        """Predict the seconds of a kernel that reads and writes [tokens, columns], such as LayerNorm."""
        moved = 2 * self.tokens * columns * self.dtype.itemsize
        return moved / self._activation_rate(moved) + self.device.kernel

    def _activating(self, rows: int) -> float:
        """Predict the kernel that applies the activation to y."""
        return 0.0 if self.activation == "none" else self.pass_seconds(rows)

    def _panel(self, work: WorkEstimate) -> float:
        return self.panel_bounds(work).seconds + self.device.kernel

    def panel_bounds(self, work: WorkEstimate) -> Bounds:
        """Predict what bounds packed panels, without the launch of their kernel."""
        device, height, config = self.device, self._block(work)[0], self.configuration(work)
        panels, tokens = math.ceil(work.shape[0] / height), config.block_m
        tiles = work.stored / (height * TILE_COLUMNS)
        programs = math.ceil(self.tokens / tokens) * math.ceil(panels / config.neighbours)
        steps = tiles / panels * config.neighbours
        used = min(programs, device.processors)

        # Seconds of one program that has a multiprocessor for itself.
        share = FP32_SHARE if self.dtype == torch.float32 else TENSOR_CORE_SHARE[height]
        multiplying = 2 * tokens * height * TILE_COLUMNS * steps / (self._matmul * share / device.processors)
        loaded = (tokens + height) * TILE_COLUMNS * self.dtype.itemsize * steps
        loading = loaded / (L2_BYTES_PER_CYCLE * device.clock)
        # A cycle issues an instruction of one warp from each scheduler.
        issue_rate = SCHEDULERS / config.num_warps * device.clock
        elements = self._elements(work)  # of a thread
        instructions = epilogue_cost.instructions(self.activation, device.capability[0])
        special = epilogue_cost.SPECIAL[self.activation] / (epilogue_cost.SPECIAL_LANES * device.clock)
        outputs = elements * config.num_warps * WARP
        finishing = max(elements * instructions / issue_rate, outputs * special)
        starting = PROLOGUE_INSTRUCTIONS * config.neighbours / issue_rate
        stepping = steps * STEP_INSTRUCTIONS / issue_rate
        waiting = LOAD_SECONDS * (FIRST_LOADS + LATER_LOADS * (config.neighbours - 1))
        alone = waiting + max(multiplying, loading, stepping) + finishing

        waves = math.ceil(programs / (device.processors * self.programs_at_once(work)))
        return Bounds(
            tensor_cores=programs / used * multiplying,
            l2=programs * loaded * device.processors / (used * device.l2),
            issue=programs / used * (starting + stepping + finishing),
            programs=waves * alone,
            traffic=self._traffic(*work.shape, work.nbytes),
        )

    def configuration(self, work: WorkEstimate) -> Configuration:
        """Return the cut of packed panels into programs: measured on such a device, else by the rule."""
        height, group = self._block(work)
        tiles = max(1, round(work.stored / (height * TILE_COLUMNS)))
        panels, dtype = math.ceil(work.shape[0] / height), long_name(self.dtype)
        shape = Shape("panel forward", height, max(group, LEAST_GROUP), self.tokens, panels, tiles, dtype)
        return tile_configs.selected(shape, self.device.name, self.device.shared_memory)

    def programs_at_once(self, work: WorkEstimate) -> int:
        """Return the number of programs that a multiprocessor runs at once, for its memory and registers."""
        config, height = self.configuration(work), self._block(work)[0]
        buffers = config.num_stages * (config.block_m + height) * TILE_COLUMNS * self.dtype.itemsize
        of_memory = (self.device.shared_memory + RESERVED) // (buffers + RESERVED)
        registers = THREAD_REGISTERS + ELEMENT_REGISTERS * self._elements(work)
        registers = math.ceil(registers / REGISTER_STEP) * REGISTER_STEP
        of_registers = REGISTERS // (registers * config.num_warps * WARP)
        return max(1, int(min(of_memory, of_registers, WARPS // config.num_warps, PROGRAMS)))

    def _elements(self, work: WorkEstimate) -> float:
        """Return the outputs that a thread of packed panels holds in registers."""
        config = self.configuration(work)
        return config.block_m * self._block(work)[0] * config.neighbours / (config.num_warps * WARP)

    def _block(self, work: WorkEstimate) -> tuple[int, int]:
        assert work.block is not None
        return work.block

    def _traffic(self, rows: int, columns: int, weight_bytes: float) -> float:
        """Predict the traffic of activations and of weights."""
        activations = self.tokens * (rows + columns) * self.dtype.itemsize
        return activations / self._activation_rate(activations) + weight_bytes / self.device.memory

    def _activation_rate(self, moved: float) -> float:
        """Return the bytes/s at which activations move: those of the L2 cache if they fit, else of memory."""
        fits = moved < USABLE_L2 * self.device.l2_bytes
        return self.device.l2 if fits else self.device.memory


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
    return replace(
        figures,
        name=properties.name,
        processors=properties.multi_processor_count,
        capability=(properties.major, properties.minor),
    )
