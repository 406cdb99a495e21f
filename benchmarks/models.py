"""Whole BERT-base models against the baselines: `python -m benchmarks.models [--quick] [--out FILE]`.

Random weights, 128 tokens, batches 1 and 8, sparsities 90 % and 95 %, element and 4x1, one thread. DeepSparse
takes part if SPARSEBERT_DEEPSPARSE_PYTHON names a Python that has it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.goals import goal
from benchmarks.output import add_out_option, append, show
from sparsebert import results
from sparsebert.bench import environment, runner
from sparsebert.bench.providers import BACKENDS
from sparsebert.bench.pruned_model import prepare_pruned_model
from sparsebert.bench.workload import Workload
from sparsebert.pruning import prune
from sparsebert.report.layer_tables import goal_tables
from sparsebert.report.model_tables import sweep_tables

TOKENS = 128
BASELINES = ("onednn", "eager", "onnxruntime", "deepsparse")
GRANULARITIES: dict[str, dict[str, Any]] = {
    "element": {"granularity": "element"},
    "4x1": {"granularity": "block", "block_size": (4, 1)},
}
# (granularity, sparsity, batch, baseline): (must, aim)
LIMITS = {
    ("element", 0.90, 1, "onednn"): (3.2, 3.7),
    ("element", 0.95, 1, "onednn"): (4.2, 4.7),
    ("element", 0.90, 1, "eager"): (6.9, 8.0),
    ("element", 0.95, 1, "eager"): (8.9, 10.0),
    ("element", 0.90, 1, "deepsparse"): (1.0, 1.15),
}


def goals(
    rows: list[results.Record], granularity: str, sparsity: float, batch: int
) -> Iterator[results.Record]:
    """Yield the goal records of a run, where a limit is set."""
    ours = rows[0]
    for baseline, ratio in ours["ratio"].items():
        limits = LIMITS.get((granularity, sparsity, batch, baseline))
        if limits:
            size = f"BERT-base, batch {batch}, {TOKENS} tokens, fp32"
            name = f"{size}, {granularity} {sparsity:.0%}, against {baseline}"
            yield goal(
                name,
                ratio["median"],
                must=limits[0],
                aim=limits[1],
                unit="x",
                environment=ours["environment"],
                busy=ours["busy"],
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="batch 1, 90 %%, element only")
    add_out_option(parser)
    parser.add_argument("--budget", type=float, default=15.0, help="seconds of timed rounds for each run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = environment.detect()
    reasons = {name: BACKENDS[name]().available() for name in BASELINES}
    for name, reason in reasons.items():
        if reason:
            print(f"without {name}: {reason}", file=sys.stderr)
    baselines = [name for name, reason in reasons.items() if reason is None]
    rows: list[results.Record] = []
    for batch in (1,) if options.quick else (1, 8):
        for granularity, arguments in list(GRANULARITIES.items())[: 1 if options.quick else None]:
            for sparsity in (0.90,) if options.quick else (0.90, 0.95):
                workload = Workload("bert-base", batch, (TOKENS,) * batch)
                model = workload.load_model()
                ticket = prune(model, "magnitude", sparsity=sparsity, **arguments)
                settings = runner.Settings(budget=options.budget, memory=batch == 1)
                pruned = prepare_pruned_model(workload, ticket, model=model)
                sides = runner.run(pruned, baselines, machine, settings)
                for name, ratio in sides[0]["ratio"].items():
                    against = f"{ratio['median']:.2f}x against {name}"
                    print(f"batch {batch}, {granularity} {sparsity:.0%}: {against}", file=sys.stderr)
                measured = [*sides, *goals(sides, granularity, sparsity, batch)]
                rows += measured
                append(options.out, measured)
    show([*sweep_tables(rows), *goal_tables(rows)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
