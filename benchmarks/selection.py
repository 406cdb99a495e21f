"""Time and memory of top-k selection among the weights of BERT-base, against torch's functions.

Run it with `python -m benchmarks.selection [--out FILE]`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from benchmarks import fresh_process
from benchmarks.goals import goal
from benchmarks.output import add_out_option, append, show
from sparsebert import results
from sparsebert.accounting.process_memory import peak_resident, resident
from sparsebert.bench import environment, memory
from sparsebert.bench.contention import Watch
from sparsebert.pruning.top_k import ranked, select_top
from sparsebert.report.layer_tables import goal_tables, selection_tables

# One layer's matrices in BERT-base, of 12: query, key, value and output of the attention, up and down.
LAYER = (*4 * (768 * 768,), *2 * (768 * 3072,))
ENTRIES = 12 * sum(LAYER)
DENSITY = Fraction(3, 10)
ROUNDS = 3
MUST_MEMORY = 2.5  # times the bytes of the scores, which are among them


def _ours(scores: Tensor, kept: int) -> Tensor:
    return select_top([ranked(scores)], [1], Fraction(kept))[0]


def _ours_by_matrix(scores: Tensor, kept: int) -> Tensor:
    ends = list(itertools.accumulate(12 * LAYER))
    matrices = scores.tensor_split([end * len(scores) // ENTRIES for end in ends[:-1]])
    return torch.cat(select_top([ranked(each) for each in matrices], [1] * len(matrices), Fraction(kept)))


def _topk(scores: Tensor, kept: int) -> Tensor:
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[torch.topk(scores, kept, sorted=False).indices] = True
    return mask


def _kthvalue(scores: Tensor, kept: int) -> Tensor:
    return scores >= torch.kthvalue(scores, len(scores) - kept + 1).values


def _sort(scores: Tensor, kept: int) -> Tensor:
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[torch.sort(scores, descending=True, stable=True).indices[:kept]] = True
    return mask


SIDES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "sparsebert": _ours,
    "sparsebert, 72 matrices": _ours_by_matrix,
    "torch.topk": _topk,
    "torch.kthvalue": _kthvalue,
    "torch.sort": _sort,
}


def make_scores(entries: int, tied: bool) -> Tensor:
    """Return float32 magnitudes of Gaussian weights; ``tied``: with only about a thousand distinct values."""
    scores = torch.randn(entries, generator=torch.Generator().manual_seed(0)).abs_()
    return scores.mul_(200).round_() if tied else scores


def measure_here(side: str, entries: int, tied: bool) -> dict[str, Any]:
    """Select once in this process; return seconds, peak bytes with the scores, and surplus entries."""
    torch.set_num_threads(1)
    choose = SIDES[side]
    few = make_scores(entries // 100, tied)
    choose(few, len(few) // 3)  # loads what the first call needs
    memory.reset_peak()
    before = resident()
    scores = make_scores(entries, tied)
    kept = round(DENSITY * entries)
    memory.reset_peak()
    watch = Watch.start()
    start = time.perf_counter()
    mask = choose(scores, kept)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "peak_bytes": peak_resident() - before,
        "beyond": int(mask.count_nonzero()) - kept,
        "busy": list(watch.stop().reasons(1)),
    }


def measure(side: str, entries: int, tied: bool) -> dict[str, Any]:
    """Measure a side in a fresh process, see ``fresh_process.measure``."""
    arguments = ["--side", side, "--entries", str(entries), *["--tied"] * tied]
    return fresh_process.measure("benchmarks.selection", arguments)


def rows_of(entries: int, rounds: int) -> list[results.Record]:
    """Measure all sides in turn; return their records and the goals."""
    machine = environment.detect().record()
    cases = [(side, tied) for tied in (False, True) for side in SIDES]
    runs_of: dict[tuple[str, bool], list[dict[str, Any]]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case in cases:
            runs_of[case].append(measure(case[0], entries, case[1]))
    rows = [
        results.stamp(
            "selection",
            {
                "environment": machine,
                "side": side,
                "tied": tied,
                "entries": entries,
                "kept": round(DENSITY * entries),
                "beyond": runs[0]["beyond"],
                "threads": 1,
                "seconds": statistics.median(run["seconds"] for run in runs),
                "all_seconds": [run["seconds"] for run in runs],
                "peak_bytes": max(run["peak_bytes"] for run in runs),
                "score_bytes": 4 * entries,
                "busy": sorted({reason for run in runs for reason in run["busy"]}),
            },
        )
        for (side, tied), runs in runs_of.items()
    ]
    return [*rows, *_goals(rows, machine)]


def _goals(rows: list[results.Record], machine: dict[str, Any]) -> list[results.Record]:
    ours = [row for row in rows if row["side"] in ("sparsebert", "sparsebert, 72 matrices")]
    baselines = [row for row in rows if row not in ours and not row["tied"]]
    what = f"choosing 30 % of {rows[0]['entries'] / 1e6:.0f} M weights"
    fastest = min(row["seconds"] for row in baselines)
    return [
        goal(
            f"{what}, peak memory with the scores, times the scores",
            max(row["peak_bytes"] / row["score_bytes"] for row in ours),
            must=MUST_MEMORY,
            aim=1.5,
            unit="x",
            environment=machine,
            at_most=True,
        ),
        goal(
            f"{what}, speed over the fastest of torch",
            fastest / max(row["seconds"] for row in ours if not row["tied"]),
            must=1,
            aim=3,
            unit="x",
            environment=machine,
            busy=any(row["busy"] for row in rows),
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_out_option(parser)
    parser.add_argument("--entries", type=int, default=ENTRIES, help="number of scores")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="processes for each side")
    parser.add_argument("--side", choices=SIDES, help="measure this side, once, in this process")
    parser.add_argument("--tied", action="store_true", help="use scores with a thousand distinct values")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure_here(options.side, options.entries, options.tied)))
        return 0
    rows = rows_of(options.entries, options.rounds)
    append(options.out, rows)
    show([*selection_tables(rows), *goal_tables(rows)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
