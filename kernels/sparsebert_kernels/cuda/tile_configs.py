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
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from .aot.targets import TARGETS
from .hardware import name_of, shared_memory
from .tile_rule import Configuration, Shape, by_rule

FOLDER = Path(__file__).parents[1] / "configs"
# Another object whenever `configuration` may answer otherwise, for callers that keep its answers.
state = object()
_forced: Configuration | None = None


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
    """Return the configuration for ``shape`` on ``device``, see ``selected``, or the one of ``forced``."""
    return _forced or selected(shape, name_of(device), shared_memory(device))


@contextmanager
def forced(config: Configuration) -> Iterator[None]:
    """Launch the panel kernels with this configuration, whatever the shape."""
    global _forced, state
    before = _forced
    _forced, state = config, object()
    try:
        yield
    finally:
        _forced, state = before, object()


def selected(shape: Shape, name: str, memory: int) -> Configuration:
    """Return the configuration for ``shape`` on a device: measured, else by the rule.

    Numbers of tokens up to the next power of two share one, so that batches of all lengths select quickly.

    Args:
        shape: The problem.
        name: The device's name.
        memory: Bytes of shared memory available to one of its programs.
    """
    return _selected(shape.bucket(), name, memory)


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
    """Return the distance in doublings.

    Tokens weigh most, then the steps of a panel, which decide the depth of the pipeline, then the number of
    panels and the width of a group.
    """

    def apart(name: str, least: float = 1) -> float:
        return abs(math.log2(max(getattr(shape, name), least) / max(getattr(other, name), least)))

    return 4 * apart("tokens") + 2 * apart("steps", 0.25) + apart("panels") + 0.25 * apart("group_columns")


def use_folder(folder: Path) -> None:
    """Read measured configurations of this process from ``folder`` from now on."""
    global FOLDER, state
    FOLDER, state = folder, object()
    for cached in (_content, _read, _selected):
        cached.cache_clear()


@functools.lru_cache(maxsize=4096)
def _selected(shape: Shape, name: str, memory: int) -> Configuration:
    return nearest(shape, measured(name)) or by_rule(shape, memory)


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
    # Files of older versions lack newer fields, which have defaults.
    present = [field.name for field in fields(cls) if field.name in row or field.default is MISSING]
    return cls(**{name: row[name] for name in present})


def _file_stem(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
