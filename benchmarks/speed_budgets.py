"""Quality at a speed: `python -m benchmarks.speed_budgets [--sets N] [--method NAME] [--quick] [--out FILE]`.

MiniLM's real weights are pruned for the same speed by several choices of what each matrix keeps: within the
predicted milliseconds of its forms, with one granularity or several, and within a number of weights. Random
tickets of each choice are timed until they reach the speed, so that all are compared at the same measured
speed. Measured are the quality on unseen sentences (see ``benchmarks.one_shot``) and the speed of the pruned
model. SPARSEBERT_DATA names the folder that holds SST-2 and MRPC. A record is appended as each result is
there, and results that the file holds already are not computed again.
"""

from __future__ import annotations

import argparse
import copy
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.one_shot import LENGTH, Sentences, Skipped, calibration_batches, minilm, qualities
from benchmarks.output import add_out_option, append, show
from sparsebert import prune_, results
from sparsebert.bench import environment
from sparsebert.one_shot.prune_in_place import find_one_shot
from sparsebert.one_shot.time_budget import TimeTable
from sparsebert.report.speed_budget_tables import speed_budget_tables
from sparsebert.tasks.texts import text_batches
from sparsebert.workflows.method_programme import programme_for
from sparsebert.workflows.speed_programmes import MatrixProgramme
from sparsebert.workflows.speed_target import SpeedGoal, target_for, time_against_dense


@dataclass(frozen=True)
class Case:
    """A speed, and what the matrices share out for it.

    Attributes:
        speedup: Time of the fastest dense form / time of the pruned model.
        budget: "milliseconds" or "weights".
        granularity: One or several, as for ``sparsebert prune --speedup``.
        tolerance: As for :func:`sparsebert.sparsify_`.
    """

    speedup: float
    budget: str
    granularity: str = "element"
    tolerance: str = "fp32"


CASES = [
    Case(speedup, budget, granularity, tolerance)
    for speedup in (2.0, 3.0)
    for budget, granularity, tolerance in (
        ("milliseconds", "element", "fp32"),
        ("weights", "element", "fp32"),
        ("milliseconds", "element,4x1", "fp32"),
        ("milliseconds", "4x1", "fp32"),
        ("milliseconds", "element", "bf16"),
        ("milliseconds", "element,panel(32,2)", "bf16"),
        ("milliseconds", "panel(32,2)", "bf16"),
    )
]


def by_weights(programme: MatrixProgramme) -> MatrixProgramme:
    """Return a programme for which time is proportional to the weights that are kept."""
    costs = programme.costs
    way = min(costs.rest, key=lambda each: costs.rest[each])
    targets = programme.table.targets
    weights = sum(target.group.weights for target in next(iter(targets.values())).values())
    each = (costs.dense - costs.rest[way]) / weights

    def cost_of(mask: Tensor, _: str) -> dict[str, float]:
        return {way: each * int(mask.sum())}

    costs = replace(costs, rest={way: costs.rest[way]})
    return replace(programme, table=TimeTable(targets, cost_of), costs=costs)


def result(case: Case, method: str, sentences: Sentences, number: int) -> dict[str, Any]:
    """Prune for a speed, and return the speed and quality."""
    dense, tokenizer = minilm()
    goal = SpeedGoal(speedup=case.speedup, tolerance=case.tolerance)
    batches = calibration_batches(sentences, number)
    options: dict[str, Any] = {"batch_size": goal.batch, "max_length": LENGTH}
    texts = goal.slices(sentences.calibration(number))
    timed = [text_batches(each, tokenizer, **options)[0] for each in texts]
    torch.set_num_threads(goal.threads)
    programme: Any = programme_for(
        dense, find_one_shot(method), batches, timed, tolerance=case.tolerance, granularity=case.granularity
    )
    if case.budget == "weights":
        programme = by_weights(programme)
    target = target_for(dense, programme, timed, goal)
    model = copy.deepcopy(dense)
    ticket = prune_(
        model,
        method,
        data=batches,
        sparsity=target.sparsity,
        densities=target.densities,
        granularity=case.granularity.partition(",")[0] if target.granularities else case.granularity,
        granularities=target.granularities,
    )
    milliseconds, dense_milliseconds, _ = time_against_dense(model, ticket, timed, goal)
    return {
        **qualities(model, sentences),
        "sparsity": ticket.sparsity,
        "dense_matrices": sum(density == 1 for density in target.densities.values()),
        "modelled_speedup": programme.dense / (target.modelled_milliseconds or 1.0),
        "predicted_speedup": target.speedup,
        "measured_speedup": dense_milliseconds / milliseconds,
        "milliseconds": milliseconds,
    }


def main(argv: list[str] | None = None) -> int:
    """Return exit code 0, or 1 if data or model are missing."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed_budgets", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--sets", type=int, default=3, help="sets of calibration sentences")
    parser.add_argument("--method", default="alps", help="method of one-shot pruning")
    parser.add_argument("--quick", action="store_true", help="two budgets at one speed only")
    add_out_option(parser)
    options = parser.parse_args(argv)
    rows = results.read(options.out) if options.out is not None and options.out.exists() else []
    done = {(row["method"], *(row[name] for name in asdict(CASES[0])), row["set"]) for row in rows}
    try:
        sentences = Sentences.load()
        minilm()
    except Skipped as reason:
        print(f"skipped: {reason}", file=sys.stderr)
        return 1
    for number in range(options.sets):
        for case in CASES[:2] if options.quick else CASES:
            if (options.method, *asdict(case).values(), number) in done:
                continue
            fields = {"environment": environment.detect().record(), "method": options.method, **asdict(case)}
            fields |= {"set": number, **result(case, options.method, sentences, number)}
            rows.append(results.stamp("speed_budget", fields))
            append(options.out, rows[-1:])
            print(".", end="", file=sys.stderr, flush=True)
    show(speed_budget_tables(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
