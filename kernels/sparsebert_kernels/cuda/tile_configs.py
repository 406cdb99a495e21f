"""Tile sizes of the kernels: measured ones per device where there are any, else a rule by shape.

Measured configurations are JSON files in ``configs/``, one a device name. Nothing is tuned at import or in a
call: a shape that no file knows takes the nearest that it does, a device without a file takes the rule.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parents[1] / "configs"
# Shared memory that one program may have, by compute capability; what is not listed has the least.
SHARED_MEMORY = {(8, 0): 163 * 1024, (9, 0): 227 * 1024, (10, 0): 227 * 1024, (10, 3): 227 * 1024}
LEAST_SHARED_MEMORY = 99 * 1024
SHARED_MEMORY_AMD = 64 * 1024
DEFAULT_SHARED_MEMORY = 163 * 1024
MAX_STAGES = 4
# Targets of `aot` that have that much shared memory for a program.
TARGETS = {
    SHARED_MEMORY[8, 0]: ("sm_80",),
    SHARED_MEMORY[9, 0]: ("sm_90", "sm_100"),
    SHARED_MEMORY_AMD: ("gfx942",),
}
TILE_COLUMNS = 64
TOKEN_BUCKETS = (64, 512, 4096, 16384)


@dataclass(frozen=True)
class Shape:
    """What a configuration is chosen by.

    kernel         "panel forward" or "panel values gradient"
    panel_rows     h
    group_columns  g
    tokens         M
    panels         panels of the weight
    tiles          stored tiles of 64 columns
    dtype          "float32", "tensorfloat32" (panel forward), "bfloat16" or "float16"
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
    """How a kernel is cut into programs and compiled.

    block_m  panel forward: tokens of a program; panel values gradient: tokens of one step
    group    panel forward: token tiles that pass all panels together; else tiles of a program
    """

    block_m: int
    group: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Limits:
    """What a device can do at most, measured.

    matmul, matmul_fp32  FLOP/s of a large dense product, in bfloat16 and in plain float32
    memory, l2           bytes/s of a copy (read + written), and of a read that stays in the L2 cache
    kernel               seconds that the smallest kernel costs inside a CUDA graph
    """

    matmul: float
    matmul_fp32: float
    memory: float
    l2: float
    kernel: float


def configuration(shape: Shape, device: torch.device) -> Configuration:
    """The configuration for ``shape`` on ``device``: measured, else by rule."""
    name, shared_memory = _device(device)
    return _chosen(shape, name, shared_memory)


def by_rule(shape: Shape, shared_memory: int = DEFAULT_SHARED_MEMORY) -> Configuration:
    """The configuration where nothing was measured, within that much shared memory."""
    rule = _values_gradient if shape.kernel == "panel values gradient" else _forward
    return rule(shape, shared_memory)


def by_target(shape: Shape) -> dict[Configuration, tuple[str, ...]]:
    """What the rule gives to compile ahead of time, with the targets that get it; () stands for all."""
    chosen: dict[Configuration, tuple[str, ...]] = {}
    for memory, names in TARGETS.items():
        found = by_rule(shape, memory)
        chosen[found] = (*chosen.get(found, ()), *names)
    return chosen if len(chosen) > 1 else dict.fromkeys(chosen, ())


def _forward(shape: Shape, shared_memory: int) -> Configuration:
    if shape.itemsize == 4:
        # Products in plain fp32 hold their operands in registers: small tiles.
        block = 32 if shape.panel_rows >= 64 and shape.dtype == "float32" else 64
        warps = 4 if shape.panel_rows == 16 else 8
    elif shape.tokens <= TOKEN_BUCKETS[1] or shape.panel_rows == 16:
        # With 8 warps a weight tile of 16 rows would be copied 8 bytes at a time.
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
        # Two tiles of packed columns are 128 rows of the product, enough for its tensor cores at every h.
        tiles, warps, block = 2, 4 if shape.panel_rows <= 64 else 8, 64
    step = (tiles * TILE_COLUMNS + shape.panel_rows) * block * shape.itemsize
    return Configuration(block, tiles, warps, _stages(step, shared_memory))


def _stages(step: int, shared_memory: int) -> int:
    """How many steps of that many bytes are under way at once; for two, AMD needs one buffer."""
    return max(2, min(MAX_STAGES, shared_memory // step))


def splits(programs: int, tokens: int, block_m: int, device: torch.device) -> int:
    """Into how many parts a sum over tokens is cut so that the device is full, at least 512 tokens a part."""
    wanted = -(-2 * _processors(device) // max(programs, 1))
    return max(1, min(wanted, tokens // max(512, block_m)))


def measured(name: str) -> tuple[tuple[Shape, Configuration], ...]:
    """The measured configurations for the device of that name; none where it has no file.

    Raises ValueError for a file that does not hold what `record` writes.
    """
    return _read(FOLDER / f"{_file_stem(name)}.json")


def limits(name: str) -> Limits | None:
    """The measured limits of the device of that name, None where nobody has measured them.

    Raises ValueError for a file that does not hold what `record` writes.
    """
    path = FOLDER / f"{_file_stem(name)}.json"
    found = _content(path).get("limits")
    if found is None:
        return None
    try:
        return Limits(**{field.name: float(found[field.name]) for field in fields(Limits)})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} is no file of measured limits: {error!r}") from None


def tuned(kernel: str) -> Iterator[tuple[Shape, Configuration, tuple[str, ...]]]:
    """Every measured configuration of ``kernel``, with the targets to compile it for ahead of time."""
    for path in sorted(FOLDER.glob("*.json")):
        amd = path.stem.startswith("amd")
        targets = [names for memory, names in TARGETS.items() if (memory == SHARED_MEMORY_AMD) == amd]
        for shape, chosen in _read(path):
            if shape.kernel == kernel:
                yield shape, chosen, tuple(itertools.chain(*targets))


def record(
    name: str, entries: Iterable[tuple[Shape, Configuration]], measured_limits: Limits | None = None
) -> str:
    """The text of the file for the device of that name."""
    rows = [{**asdict(shape), **asdict(chosen)} for shape, chosen in entries]
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    found = "" if measured_limits is None else f' "limits": {json.dumps(asdict(measured_limits))},\n'
    return f'{{"device": {json.dumps(name)},\n{found} "configurations": [\n{lines}\n]}}\n'


def nearest(shape: Shape, known: tuple[tuple[Shape, Configuration], ...]) -> Configuration | None:
    """The configuration of the known shape that is most like ``shape``; kernel, h and dtype have to agree."""
    alike = [
        (_distance(shape, other), chosen)
        for other, chosen in known
        if (other.kernel, other.panel_rows, other.dtype) == (shape.kernel, shape.panel_rows, shape.dtype)
    ]
    return min(alike, key=lambda pair: pair[0])[1] if alike else None


def _distance(shape: Shape, other: Shape) -> float:
    """In doublings; the number of tokens decides, then the size of the weight, then its groups."""

    def apart(name: str) -> float:
        return abs(math.log2(max(getattr(shape, name), 1) / max(getattr(other, name), 1)))

    return 4 * apart("tokens") + apart("panels") + apart("tiles") + 0.25 * apart("group_columns")


@functools.lru_cache(maxsize=4096)
def _chosen(shape: Shape, name: str, shared_memory: int) -> Configuration:
    return nearest(shape, measured(name)) or by_rule(shape, shared_memory)


@functools.cache
def _content(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"configurations": []}
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path.name} is no file of measured configurations: {error!r}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is no file of measured configurations: it holds no object")
    return found


@functools.cache
def _read(path: Path) -> tuple[tuple[Shape, Configuration], ...]:
    try:
        rows: list[dict[str, Any]] = _content(path)["configurations"]
        return tuple((_part(Shape, row), _part(Configuration, row)) for row in rows)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} is no file of measured configurations: {error!r}") from None


def _part(cls: type[Any], row: dict[str, Any]) -> Any:
    return cls(**{field.name: row[field.name] for field in fields(cls)})


def _file_stem(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


@functools.cache
def _device(device: torch.device) -> tuple[str, int]:
    """Name, and the shared memory that a program may have."""
    if device.type != "cuda":
        return device.type, DEFAULT_SHARED_MEMORY
    if torch.version.hip:
        return torch.cuda.get_device_name(device), SHARED_MEMORY_AMD
    capability = torch.cuda.get_device_capability(device)
    return torch.cuda.get_device_name(device), SHARED_MEMORY.get(capability, LEAST_SHARED_MEMORY)


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
