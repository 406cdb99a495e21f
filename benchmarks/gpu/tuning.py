"""The tuning sweep: every plausible configuration of a kernel for a shape, and the file of the best ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from benchmarks.gpu.comparison import Side, compare
from benchmarks.gpu.device import Device
from benchmarks.gpu.layers import Problem
from sparsebert.atomic import write_text
from sparsebert.results import Record
from sparsebert_kernels import ops
from sparsebert_kernels.cuda import hardware, tile_configs
from sparsebert_kernels.cuda.tile_rule import (
    MAX_STAGES,
    NEIGHBOURS,
    NEIGHBOURS_WIDTH,
    Configuration,
    Shape,
    by_rule,
    most_stages,
)
from sparsebert_kernels.formats.base import TILE_COLUMNS

FORWARD, VALUES_GRADIENT = "panel forward", "panel values gradient"
WARP = 32
# Accumulators per thread above which the compiler spills registers.
MAX_ACCUMULATORS = 128
# Tokens of a program with its warps, each with 1, 2 and 4 buffers of its operands in shared memory.
OCCUPANCY = tuple(
    Configuration(block_m, 8, warps, stages)
    for (block_m, warps), stages in itertools.product(((128, 4), (256, 8)), (1, 2, 4))
)
LEAST_GAIN = 1.01  # speed-up over the rule's configuration that justifies another one


def candidates(shape: Shape, shared_memory: int, *, few: bool = False) -> list[Configuration]:
    """Return the configurations to try, the rule's first.

    No pipeline is deeper than a panel has steps and one more. Neighbouring panels are tried with the rule's
    other choices only.
    """
    tried = [by_rule(shape, shared_memory)]
    if shape.kernel == FORWARD:
        depths = range(1, min(MAX_STAGES, most_stages(shape)) + 1)
        cuts: tuple[Sequence[int], ...] = (64, 128, 256), (8,), (4, 8), depths
        counts = [count for count in NEIGHBOURS if count * shape.panel_rows <= NEIGHBOURS_WIDTH]
        tried += [replace(tried[0], neighbours=count) for count in counts]
    else:
        cuts = (32, 64, 128), (1, 2), (4, 8), (2, 3, 4)
    panels = tried[0].neighbours
    for block, group, warps, stages in itertools.product(*cuts):
        if shape.kernel == FORWARD:
            rows, step = block * panels, block + shape.panel_rows
            step *= TILE_COLUMNS
        else:
            rows = group * TILE_COLUMNS
            step = (rows + shape.panel_rows) * block
        accumulators = rows * shape.panel_rows / (warps * WARP)
        fits = stages * step * shape.itemsize <= shared_memory
        if fits and 2 <= accumulators <= MAX_ACCUMULATORS:
            tried.append(Configuration(block, group, warps, stages, panels))
    return list(dict.fromkeys(tried))[: 3 if few else None]


def measure_tuning(
    device: Device, *, kernel: str, shape: Sequence[int], tokens: int, block: Sequence[int], sparsity: float
) -> dict[str, Any]:
    """Measure every candidate; those with wrong outputs are excluded."""
    from sparsebert_kernels.cuda import panel_backward

    problem = Problem(device, shape, tokens, block, sparsity)
    packed = problem.pack()
    dtype = str(problem.x.dtype).removeprefix("torch.")
    size = packed.panel_rows, packed.group_columns, tokens, packed.panels, packed.values.shape[0]
    launch = Shape(kernel, *size, dtype)
    tried = candidates(launch, hardware.shared_memory(device.device), few=device.dry_run)

    def ours() -> Any:
        if kernel == FORWARD:
            return ops.linear(problem.x, packed, problem.bias)
        return panel_backward.values_gradient(problem.upstream, problem.x, packed)

    def dense() -> Any:
        if kernel == FORWARD:
            return functional.linear(problem.x, problem.weight, problem.bias)
        return torch.where(problem.mask, problem.upstream.t() @ problem.x, 0)

    def with_configuration(config: Configuration) -> Side:
        def work() -> Any:
            with tile_configs.forced(config):
                return ours()

        def answers(returned: Any) -> Any:
            return [returned if kernel == FORWARD else packed.replace(values=returned).to_dense()]

        return Side(lambda: torch.inference_mode()(work), answers)

    exact = problem.exact("forward" if kernel == FORWARD else "backward")
    sides = {"cublas": Side(lambda: torch.inference_mode()(dense), required=True)}
    sides |= {_name(each): with_configuration(each) for each in tried}
    exact = exact[:1] if kernel == FORWARD else exact[1:2]
    fields = compare(device, sides, exact, baseline="cublas", budget=0.5)
    times = {
        _name(each): fields["us"][_name(each)]["median"] for each in tried if _name(each) in fields["us"]
    }
    if not times:
        raise RuntimeError(f"no configuration runs: {fields['notes']}")
    best = min(times, key=lambda name: times[name])
    rule = _name(tried[0])
    if rule in times and times[rule] <= LEAST_GAIN * times[best]:
        best = rule
    fastest = next(each for each in tried if _name(each) == best)
    return {
        **fields,
        "known": asdict(launch),
        "chosen": asdict(fastest),
        "rule": rule,
        "best": best,
        "gain": times[rule] / times[best] if rule in times else None,
    }


def measure_occupancy(
    device: Device, *, shape: Sequence[int], tokens: int, block: Sequence[int], sparsity: float
) -> dict[str, Any]:
    """Measure the forward kernel with few and many programs on a multiprocessor, against F.linear.

    The fewer stages a program has, the less shared memory it takes, and the more programs overlap their
    loads, products and epilogues.
    """
    problem = Problem(device, shape, tokens, block, sparsity)
    packed = problem.pack()

    def side(config: Configuration) -> Side:
        def work() -> Any:
            with tile_configs.forced(config):
                return ops.linear(problem.x, packed, problem.bias)

        return Side(lambda: torch.inference_mode()(work))

    def dense() -> Any:
        return functional.linear(problem.x, problem.weight, problem.bias)

    sides = {"cublas": Side(lambda: torch.inference_mode()(dense), required=True)}
    sides |= {_name(each): side(each) for each in OCCUPANCY}
    fields = compare(device, sides, problem.exact("forward"), baseline="cublas", budget=0.5)
    times = {name: each["median"] for name, each in fields["us"].items() if name != "cublas"}
    if not times:
        raise RuntimeError(f"no configuration runs: {fields['notes']}")
    best = min(times, key=lambda name: times[name])
    return {**fields, "side": best, "best": best, "steps": packed.values.shape[0] / packed.panels}


def write_configurations(records: Iterable[Record], device_name: str, folder: Path) -> Path | None:
    """Add measured limits and configurations to the device's file and return it; None without any."""
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
    configurations = {**dict(tile_configs.measured(device_name)), **swept}
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{tile_configs._file_stem(device_name)}.json"
    write_text(target, tile_configs.record(device_name, configurations.items(), limits))
    return target


def _name(config: Configuration) -> str:
    neighbours = f" n{config.neighbours}" * (config.neighbours > 1)
    return f"{config.block_m} g{config.group} w{config.num_warps} s{config.num_stages}{neighbours}"
