"""Block sizes of the panel kernels: measured per device if a file exists, else computed by a rule.

Measured configurations are JSON files in ``configs/``, one per device name. Nothing is tuned at import or in
a call: a shape missing from the device's file uses the nearest measured shape, and a device without a file
uses the rule.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..formats.base import TILE_COLUMNS
from .aot.targets import TARGETS

FOLDER = Path(__file__).parents[1] / "configs"
# Bytes of shared memory available to one program, by compute capability; others have LEAST_SHARED_MEMORY.
SHARED_MEMORY = {(8, 0): 163 * 1024, (9, 0): 227 * 1024, (10, 0): 227 * 1024, (10, 3): 227 * 1024}
LEAST_SHARED_MEMORY = 99 * 1024
SHARED_MEMORY_AMD = 64 * 1024
DEFAULT_SHARED_MEMORY = 163 * 1024
MAX_STAGES = 4
TOKEN_BUCKETS = (64, 512, 4096, 16384)


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


@dataclass(frozen=True)
class Configuration:
    """The cut of a kernel into programs, and its compile options.

    Attributes:
        block_m: Tokens of a program (panel forward) or of one step (panel values gradient).
        group: Token tiles that pass all panels together (panel forward), or packed tiles of a program.
        num_warps: Warps of a program.
        num_stages: Depth of the software pipeline.
    """

    block_m: int
    group: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Limits:
    """Measured limits of a device.

    Attributes:
        matmul: FLOP/s of a large dense product in bfloat16.
        matmul_fp32: FLOP/s of a large dense product in float32 without TensorFloat-32.
        memory: Bytes/s of a copy, read plus written.
        l2: Bytes/s of a read that stays in the L2 cache.
        kernel: Seconds of the smallest kernel inside a CUDA graph.
    """

    matmul: float
    matmul_fp32: float
    memory: float
    l2: float
    kernel: float


def configuration(shape: Shape, device: torch.device) -> Configuration:
    """Return the configuration for ``shape`` on ``device``: measured, else by the rule."""
    name, shared_memory = _device(device)
    return _selected(shape, name, shared_memory)


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
    elif shape.tokens <= TOKEN_BUCKETS[1] or shape.panel_rows == 16:
        # With 8 warps, a packed tile of 16 rows would be copied 8 bytes at a time.
        block = 64 if shape.tokens <= TOKEN_BUCKETS[0] or shape.panel_rows > 64 else 128
        warps = 4 if shape.panel_rows <= 64 else 8
    else:
        block, warps = 256 if shape.panel_rows <= 64 else 128, 8
    line = TILE_COLUMNS * shape.itemsize
    while block > 64 and 2 * (block + shape.panel_rows) * line > shared_memory:
        block //= 2
    return Configuration(block, 8, warps, _stages((block + shape.panel_rows) * line, shared_memory))


def _values_gradient(shape: Shape, shared_memory: int) -> Configuration:
    if shape.itemsize == 4:
        tiles, warps, block = 1, 4 if shape.panel_rows <= 32 else 8, 32 if shape.panel_rows <= 64 else 16
    else:
        # Two packed tiles are 128 rows of the product, which fill the tensor cores for every h.
        tiles, warps, block = 2, 4 if shape.panel_rows <= 64 else 8, 64
    step = (tiles * TILE_COLUMNS + shape.panel_rows) * block * shape.itemsize
    return Configuration(block, tiles, warps, _stages(step, shared_memory))


def _stages(step: int, shared_memory: int) -> int:
    """Return the pipeline depth for steps of this many bytes; on AMD, a depth of two needs one buffer."""
    return max(2, min(MAX_STAGES, shared_memory // step))


def splits(programs: int, tokens: int, block_m: int, device: torch.device) -> int:
    """Return the number of parts of a sum over tokens that fills the device, at least 512 tokens a part."""
    full = -(-2 * multiprocessors(device) // max(programs, 1))
    return max(1, min(full, tokens // max(512, block_m)))


def measured(name: str) -> tuple[tuple[Shape, Configuration], ...]:
    """Return the measured configurations of a device by its name; empty for a device without a file.

    Raises:
        ValueError: The file was not written by ``record``.
    """
    return _read(FOLDER / f"{_file_stem(name)}.json")


def limits(name: str) -> Limits | None:
    """Return the measured limits of a device by its name, None if they have not been measured.

    Raises:
        ValueError: The file was not written by ``record``.
    """
    path = FOLDER / f"{_file_stem(name)}.json"
    entry = _content(path).get("limits")
    if entry is None:
        return None
    try:
        return Limits(**{field.name: float(entry[field.name]) for field in fields(Limits)})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} does not hold measured limits: {error!r}") from None


def tuned(kernel: str) -> Iterator[tuple[Shape, Configuration, tuple[str, ...]]]:
    """Yield every measured configuration of ``kernel`` with the targets to compile it for ahead of time."""
    for path in sorted(FOLDER.glob("*.json")):
        backend = "hip" if path.stem.startswith("amd") else "cuda"
        targets = tuple(target.name for target in TARGETS.values() if target.backend == backend)
        for shape, config in _read(path):
            if shape.kernel == kernel:
                yield shape, config, targets


def record(
    name: str, entries: Iterable[tuple[Shape, Configuration]], measured_limits: Limits | None = None
) -> str:
    """Return the text of a device's file."""
    rows = [{**asdict(shape), **asdict(config)} for shape, config in entries]
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    limits_line = "" if measured_limits is None else f' "limits": {json.dumps(asdict(measured_limits))},\n'
    return f'{{"device": {json.dumps(name)},\n{limits_line} "configurations": [\n{lines}\n]}}\n'


def nearest(shape: Shape, entries: tuple[tuple[Shape, Configuration], ...]) -> Configuration | None:
    """Return the configuration of the nearest entry with the same kernel, h and dtype, None without one."""
    comparable = [
        (_distance(shape, other), config)
        for other, config in entries
        if (other.kernel, other.panel_rows, other.dtype) == (shape.kernel, shape.panel_rows, shape.dtype)
    ]
    return min(comparable, key=lambda pair: pair[0])[1] if comparable else None


def _distance(shape: Shape, other: Shape) -> float:
    """Return the distance in doublings; tokens weigh most, then the weight's size, then its group width."""

    def apart(name: str) -> float:
        return abs(math.log2(max(getattr(shape, name), 1) / max(getattr(other, name), 1)))

    return 4 * apart("tokens") + apart("panels") + apart("tiles") + 0.25 * apart("group_columns")


def use_folder(folder: Path) -> None:
    """Read measured configurations of this process from ``folder`` from now on."""
    global FOLDER
    FOLDER = folder
    for cached in (_content, _read, _selected):
        cached.cache_clear()


@functools.lru_cache(maxsize=4096)
def _selected(shape: Shape, name: str, shared_memory: int) -> Configuration:
    return nearest(shape, measured(name)) or by_rule(shape, shared_memory)


@functools.cache
def _content(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"configurations": []}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path.name} does not hold measured configurations: {error!r}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} does not hold measured configurations: it is not a JSON object")
    return content


@functools.cache
def _read(path: Path) -> tuple[tuple[Shape, Configuration], ...]:
    try:
        rows: list[dict[str, Any]] = _content(path)["configurations"]
        return tuple((_part(Shape, row), _part(Configuration, row)) for row in rows)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} does not hold measured configurations: {error!r}") from None


def _part(cls: type[Any], row: dict[str, Any]) -> Any:
    return cls(**{field.name: row[field.name] for field in fields(cls)})


def _file_stem(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


@functools.cache
def _device(device: torch.device) -> tuple[str, int]:
    """Return the name of a device and the bytes of shared memory available to one program."""
    if device.type != "cuda":
        return device.type, DEFAULT_SHARED_MEMORY
    if torch.version.hip:
        return torch.cuda.get_device_name(device), SHARED_MEMORY_AMD
    capability = torch.cuda.get_device_capability(device)
    return torch.cuda.get_device_name(device), SHARED_MEMORY.get(capability, LEAST_SHARED_MEMORY)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Return the number of multiprocessors of a GPU; 8 for a CPU, on which the interpreter runs."""
    if device.type != "cuda":
        return 8
    return torch.cuda.get_device_properties(device).multi_processor_count
