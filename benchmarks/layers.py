"""Single layers against oneDNN prepacked: `python -m benchmarks.layers [--quick] [--out FILE]`.

A cell is a weight shape and a number of tokens. It times the packed sparse layer and the prepacked dense one
in paired rounds, with the same dtype and one thread. The sparse time includes transposing input and output;
both sides allocate their output. The figure of a case is the geometric mean of its cells, none of which may
be below 0.85 of the case's limit. Cases for another instruction set run in a child process that is capped to
it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.output import add_out_option, append, show
from benchmarks.random_mask import random_mask, random_panel_mask
from sparsebert import results
from sparsebert.bench import environment, output_check
from sparsebert.bench.contention import load_average
from sparsebert.bench.providers.onednn import PrepackedLinear
from sparsebert.bench.runner import quantiles
from sparsebert.bench.timer import Run, Timings, alternate, on_wall, repeated
from sparsebert.report.layer_tables import layer_tables
from sparsebert_kernels import cpu, formats, ops
from sparsebert_kernels.cpu import native, paired

SHAPES = ((768, 768), (3072, 768), (768, 3072), (2304, 768))  # (out, in)
TOKENS = (128, 512, 2048)
WORST_SHARE = 0.85
RETRIES = 3
METHOD = (
    "Ratio: geometric mean over the shapes 768x768, 3072x768, 768x3072, 2304x768 and 128, 512, 2048 tokens "
    "(unless the case names its own), paired medians, transposes included, same dtype on both sides; "
    f"reached: mean at least must, and no cell below {WORST_SHARE} of it. Equal turns: the same, but the "
    "sparse layer is called as often as fits into the time of one dense call; with single calls, each sparse "
    "call starts with the caches that the longer dense call left."
)


@dataclass(frozen=True)
class Case:
    """A packed format at a sparsity, with the speed-up that it must reach (None: no limit) and aims at."""

    name: str
    format: str
    sparsity: float
    dtype: torch.dtype
    must: float | None
    aim: float | None
    tokens: tuple[int, ...] = TOKENS
    isa: str | None = None
    paired: bool = False  # activations in paired panels, as inside an encoder: nothing is transposed


CASES = (
    Case("element fp32 70 %", "element", 0.70, torch.float32, 2.0, 2.3),
    Case("element fp32 90 %", "element", 0.90, torch.float32, 4.6, 5.5),
    Case("element fp32 95 %", "element", 0.95, torch.float32, 6.9, 8.5),
    Case("4x1 fp32 90 %", "vector", 0.90, torch.float32, 7.3, 8.5),
    Case("4x1 fp32 95 %", "vector", 0.95, torch.float32, 12.0, 15.0),
    Case("element bf16 90 %", "element", 0.90, torch.bfloat16, 3.7, 4.3),
    Case("element bf16 95 %", "element", 0.95, torch.bfloat16, 5.6, 7.0),
    Case("4x1 bf16 90 %", "vector", 0.90, torch.bfloat16, None, 8.0),
    Case("4x1 bf16 95 %", "vector", 0.95, torch.bfloat16, None, 13.0),
    Case("element fp32 90 %, M = 8", "element", 0.90, torch.float32, 1.8, 3.0, (8,)),
    Case("element fp32 90 %, M = 32", "element", 0.90, torch.float32, 4.3, 5.0, (32,)),
    Case("element fp32 90 %, M = 100", "element", 0.90, torch.float32, 4.2, 5.0, (100,)),
    Case("element fp32 90 %, M = 250", "element", 0.90, torch.float32, 4.4, 5.3, (250,)),
    Case("element fp32 90 %, both capped to AVX2", "element", 0.90, torch.float32, 4.0, 5.0, isa="avx2"),
    # The aims are those of CPUs with AMX.
    Case("32x2 bf16 90 %, M = 128", "row_panel", 0.90, torch.bfloat16, None, None, (128,)),
    Case("32x2 bf16 90 %, M = 512", "row_panel", 0.90, torch.bfloat16, None, None, (512,)),
    Case(
        "32x2 bf16 90 %, paired panels, M = 128",
        "row_panel",
        0.90,
        torch.bfloat16,
        None,
        8.0,
        (128,),
        paired=True,
    ),
    Case(
        "32x2 bf16 90 %, paired panels, M = 512",
        "row_panel",
        0.90,
        torch.bfloat16,
        None,
        6.0,
        (512,),
        paired=True,
    ),
)
PANEL_BLOCK, PANEL_STEP = (32, 2), 32  # of row panels in bf16


def packed_layer(
    shape: tuple[int, int], sparsity: float, format: str, dtype: torch.dtype, seed: int = 0
) -> tuple[nn.Linear, Any]:
    """Return a linear layer with masked random weights, and the same weight packed."""
    generator = torch.Generator().manual_seed(seed)
    if format == "row_panel":
        mask = random_panel_mask(shape, PANEL_BLOCK, PANEL_STEP, sparsity, generator)
    else:
        mask = random_mask(shape, (4, 1) if format == "vector" else (1, 1), sparsity, generator)
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(shape[1], shape[0])
    with torch.no_grad():
        linear.weight.copy_((torch.randn(shape, generator=generator) * 0.02).where(mask, 0))
        linear.bias.copy_(torch.randn(shape[0], generator=generator) * 0.02)
    linear = linear.to(dtype).requires_grad_(False)
    return linear, formats.pack(linear.weight.detach(), mask, format=format)


@torch.inference_mode()
def measure(case: Case, shape: tuple[int, int], tokens: int, budget: float) -> dict[str, Any]:
    """Measure a cell: check the outputs, then time paired rounds, again if the machine was busy.

    Raises:
        OutputMismatchError: An output is wrong.
    """
    linear, packed = packed_layer(shape, case.sparsity, case.format, case.dtype)
    dense = PrepackedLinear(linear, tokens)
    x = torch.randn(tokens, shape[1], generator=torch.Generator().manual_seed(1)).to(case.dtype)
    exact = nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double())
    precision = str(case.dtype).removeprefix("torch.")
    everywhere = [torch.ones(1, tokens)]
    sides = {"onednn": lambda: dense(x), "sparse": lambda: ops.linear(x, packed, linear.bias)}
    answers = {"onednn": dense(x)}
    if case.paired:
        panels, bias = paired.pair(x), linear.bias.float()
        sides["sparse"] = lambda: paired.linear(panels, packed, bias)
        answers["sparse"] = paired.unpair(sides["sparse"](), tokens, shape[0])
    else:
        answers["sparse"] = sides["sparse"]()
    checks = [
        output_check.compare(name, [answer[None]], [exact[None]], everywhere, precision=precision)
        for name, answer in answers.items()
    ]
    output_check.require(checks)
    runs = {name: on_wall(side) for name, side in sides.items()}
    timings = _timed(runs, budget)
    calls = max(1, round(timings.ratio("onednn", "sparse").median))
    turns = alternate(runs | {"sparse": repeated(runs["sparse"], calls)}, budget=budget, max_rounds=600)
    return {
        "case": case.name,
        "format": case.format,
        "sparsity": case.sparsity,
        "dtype": precision,
        "shape": list(shape),
        "tokens": tokens,
        "threads": torch.get_num_threads(),
        "rounds": timings.rounds,
        "ratio": quantiles(timings.ratio("onednn", "sparse")),
        "equal_turns": quantiles(turns.ratio("onednn", "sparse")),
        "dense_us": quantiles(timings.latency("onednn"), 1e6),
        "sparse_us": quantiles(timings.latency("sparse"), 1e6),
        "weight_bytes": packed.nbytes,
        "dense_weight_bytes": linear.weight.numel() * linear.weight.element_size(),
        "gate": checks[-1].record(),
        "load": load_average(),
        "busy": bool(timings.busy()),
        "busy_reasons": list(timings.busy()),
    }


def summarise(case: Case, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the geometric mean, the worst cell and the verdict of a case."""
    ratios = [cell["ratio"]["median"] for cell in cells]
    worst = min(cells, key=lambda cell: cell["ratio"]["median"])
    mean = statistics.geometric_mean(ratios)
    lowest = worst["ratio"]["median"]
    return {
        "case": case.name,
        "cells": len(cells),
        "threads": cells[0]["threads"],
        "geomean": mean,
        "worst": lowest,
        "equal_turns": statistics.geometric_mean(cell["equal_turns"]["median"] for cell in cells),
        "worst_cell": f"{worst['shape'][0]}x{worst['shape'][1]}, M = {worst['tokens']}",
        "must": case.must,
        "aim": case.aim,
        "passed": None if case.must is None else mean >= case.must and lowest >= WORST_SHARE * case.must,
        "busy_cells": sum(cell["busy"] for cell in cells),
        "method": METHOD,
    }


def run(cases: Sequence[Case], *, quick: bool, budget: float) -> list[results.Record]:
    """Measure these cases in this process and return the records of cells and summaries."""
    machine = {"environment": environment.detect().record()}
    rows = []
    for case in cases:
        shapes, tokens = (SHAPES[:2], case.tokens[:1]) if quick else (SHAPES, case.tokens)
        cells = [measure(case, shape, count, budget) for shape in shapes for count in tokens]
        summary = summarise(case, cells)
        print(f"{case.name}: {summary['geomean']:.2f}x, worst {summary['worst']:.2f}x", file=sys.stderr)
        rows += [results.stamp("layer", {**machine, **cell}) for cell in cells]
        rows.append(results.stamp("layer_summary", {**machine, **summary, "quick": quick}))
    return rows


def run_capped(cases: Sequence[Case], *, quick: bool, budget: float) -> list[results.Record]:
    """Measure cases in child processes that cap oneDNN and our kernels to the cases' instruction sets."""
    rows: list[results.Record] = []
    for isa in sorted({case.isa for case in cases if case.isa}):
        names = [case.name for case in cases if case.isa == isa]
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "capped.jsonl"
            command = [sys.executable, "-m", "benchmarks.layers", "--out", str(out), "--budget", str(budget)]
            command += ["--quick"] * quick + [word for name in names for word in ("--case", name)]
            capped = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa.upper(), "SPARSEBERT_ISA": isa}
            subprocess.run(command, env=capped, check=True, stdout=subprocess.DEVNULL)
            rows += results.read(out)
    return rows


def _timed(runs: dict[str, Run], budget: float) -> Timings:
    best = alternate(runs, budget=budget, min_rounds=15, max_rounds=600, warmup=3)
    for _ in range(RETRIES):
        if not best.busy():
            break
        again = alternate(runs, budget=budget, min_rounds=15, max_rounds=600)
        best = min(best, again, key=lambda timings: timings.ratio("onednn", "sparse").spread)
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="two shapes and the fewest tokens, for a quick look"
    )
    add_out_option(parser)
    parser.add_argument(
        "--case",
        action="append",
        choices=[case.name for case in CASES],
        help="run only this case; repeatable",
    )
    parser.add_argument("--budget", type=float, default=0.6, help="seconds of timed rounds for each cell")
    options = parser.parse_args()
    torch.set_num_threads(1)
    selected = [case for case in CASES if not options.case or case.name in options.case]
    here = [case for case in selected if case.isa in (None, os.environ.get("SPARSEBERT_ISA"))]
    capped = [case for case in selected if case not in here and case.isa in cpu.instruction_sets()]
    if not native.supports("row_panel", torch.bfloat16, torch.empty(0)):
        here = [case for case in here if case.format != "row_panel"]
    rows = run(here, quick=options.quick, budget=options.budget)
    rows += run_capped(capped, quick=options.quick, budget=options.budget)
    append(options.out, rows)
    show(layer_tables(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
