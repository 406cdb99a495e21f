"""The tuning sweep: every plausible configuration of a kernel at one shape, and the file of the best ones."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.nn import functional

from benchmarks.gpu.comparison import Side, compare
from benchmarks.gpu.device import Device
from benchmarks.gpu.layers import Problem
from sparsebert.results import Record
from sparsebert_kernels import ops
from sparsebert_kernels.cuda import tile_configs
from sparsebert_kernels.cuda.tile_configs import Configuration, Shape
from sparsebert_kernels.formats.base import TILE_COLUMNS

SPARSITY = 0.9
FORWARD, VALUES_GRADIENT = "panel forward", "panel values gradient"
WARP = 32
# Accumulators of a thread beyond which the compiler begins to spill, with an epilogue beside them.
MAX_ACCUMULATORS = 128
LEAST_GAIN = 1.01  # a configuration must be this much faster than the rule's to be written down


def candidates(shape: Shape, shared_memory: int, *, few: bool = False) -> list[Configuration]:
    """What is tried beside the rule's own choice, which comes first."""
    chosen = [tile_configs.by_rule(shape, shared_memory)]
    tokens, groups = ((64, 128, 256), (8,)) if shape.kernel == FORWARD else ((32, 64, 128), (1, 2))
    for block, group, warps, stages in itertools.product(tokens, groups, (4, 8), (2, 3, 4, 5)):
        if shape.kernel == FORWARD:
            rows, step = block, block + shape.panel_rows
            step *= TILE_COLUMNS
        else:
            rows = group * TILE_COLUMNS
            step = (rows + shape.panel_rows) * block
        accumulators = rows * shape.panel_rows / (warps * WARP)
        fits = stages * step * shape.itemsize <= shared_memory
        if fits and 2 <= accumulators <= MAX_ACCUMULATORS and (stages > 2 or few):
            chosen.append(Configuration(block, group, warps, stages))
    return list(dict.fromkeys(chosen))[: 3 if few else None]


def measure_tuning(
    device: Device, *, kernel: str, shape: Sequence[int], tokens: int, block: Sequence[int]
) -> dict[str, Any]:
    """Microseconds of every candidate at a sparsity of 90 %; ones that give wrong answers are left out."""
    from sparsebert_kernels.cuda import panel_backward, panel_forward

    problem = Problem(device, shape, tokens, block, SPARSITY)
    packed = problem.pack()
    dtype = str(problem.x.dtype).removeprefix("torch.")
    size = packed.panel_rows, packed.group_columns, tokens, packed.panels, packed.values.shape[0]
    known = Shape(kernel, *size, dtype)
    tried = candidates(known, _shared_memory(device), few=device.dry_run)
    module = panel_forward if kernel == FORWARD else panel_backward

    def ours() -> Any:
        if kernel == FORWARD:
            return ops.linear(problem.x, packed, problem.bias)
        return panel_backward.values_gradient(problem.upstream, problem.x, packed)

    def dense() -> Any:
        if kernel == FORWARD:
            return functional.linear(problem.x, problem.weight, problem.bias)
        return torch.where(problem.mask, problem.upstream.t() @ problem.x, 0)

    def with_configuration(chosen: Configuration) -> Side:
        def work() -> Any:
            with forced(module, chosen):
                return ours()

        def answers(returned: Any) -> Any:
            return [returned if kernel == FORWARD else packed.replace(values=returned).to_dense()]

        return Side(lambda: torch.inference_mode()(work), answers)

    exact = problem.exact("forward" if kernel == FORWARD else "backward")
    sides = {"cublas": Side(lambda: torch.inference_mode()(dense), required=True)}
    sides |= {_name(each): with_configuration(each) for each in tried}
    exact = exact[:1] if kernel == FORWARD else exact[1:2]
    found = compare(device, sides, exact, baseline="cublas", budget=0.5)
    times = {_name(each): found["us"][_name(each)]["median"] for each in tried if _name(each) in found["us"]}
    if not times:
        raise RuntimeError(f"no configuration runs: {found['notes']}")
    best = min(times, key=lambda name: times[name])
    rule = _name(tried[0])
    if rule in times and times[rule] <= LEAST_GAIN * times[best]:
        best = rule
    chosen = next(each for each in tried if _name(each) == best)
    return {
        **found,
        "known": asdict(known),
        "chosen": asdict(chosen),
        "rule": rule,
        "best": best,
        "gain": times[rule] / times[best] if rule in times else None,
    }


@contextlib.contextmanager
def forced(module: ModuleType, chosen: Configuration) -> Iterator[None]:
    """Kernels of that module are launched in this configuration, whatever is written down."""
    before = module.configuration
    module.configuration = lambda shape, device: chosen  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.configuration = before  # type: ignore[attr-defined]


def write_configurations(records: Iterable[Record], device_name: str, folder: Path) -> Path | None:
    """Write limits and what the sweeps found, over what is known of that device; None where nothing was."""
    mine = [row for row in records if row["kind"] == "gpu" and row["device"]["name"] == device_name]
    swept = {
        Shape(**row["known"]): Configuration(**row["chosen"])
        for row in mine
        if row["point"]["kind"] == "tuning"
    }
    limits = tile_configs.limits(device_name)
    for row in mine:
        if row["point"]["kind"] == "limits":
            rates = row["matmul"]["bfloat16"], row["matmul"]["float32"]
            limits = tile_configs.Limits(*rates, row["memory"], row["l2"], row["kernel"])
    if not swept and limits is None:
        return None
    known = {**dict(tile_configs.measured(device_name)), **swept}
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{tile_configs._file_stem(device_name)}.json"
    target.write_text(tile_configs.record(device_name, known.items(), limits))
    return target


def use_configurations(folder: Path) -> None:
    """Kernels of this process read their configurations from there from now on."""
    tile_configs.FOLDER = folder
    tile_configs._content.cache_clear()
    tile_configs._read.cache_clear()
    tile_configs._chosen.cache_clear()


def _shared_memory(device: Device) -> int:
    return tile_configs._device(device.device)[1]


def _name(chosen: Configuration) -> str:
    return f"{chosen.block_m} g{chosen.group} w{chosen.num_warps} s{chosen.num_stages}"
