"""Tickets of a small model on real tasks: `python -m benchmarks.lottery --data FOLDER [--out FILE]`.

The model is all-MiniLM-L6-v2, trained for 300 steps per round with three seeds. On SST-2: IMP from dense to
90 %, random and one-shot pruning at 50, 70 and 90 %, SNIP at 50 and 70 %; learned masks at 50, 80 and 90 %;
heads and neurons by importance, by Early-Bird and at random at 30 and 50 %. Then a 70 % ticket of masked
language modelling (WikiText-2) is trained on SST-2, CoLA and MRPC and compared with each task's own ticket, a
random one and the dense model; IMP finds these tickets in two steps of 35 %.

This takes hours. Each run has a folder under --runs: interrupted runs continue there, and finished runs are
only read. Runs in --known, an earlier results file, are neither trained nor measured again. With --out, the
speed of the first seed's SST-2 tickets is measured on the task's sentences, and the file is rewritten.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.lottery.carry_out import (
    add_data_option,
    carry_out,
    has_data,
    is_done,
    place,
    sentence_lengths,
)
from benchmarks.lottery.runs import (
    CURVE,
    LEARNED,
    PARTS,
    SEEDS,
    TRANSFER,
    Run,
    curve,
    learned,
    sources,
    targets,
)
from benchmarks.output import replace, show
from sparsebert import results
from sparsebert.bench import environment, runner
from sparsebert.bench.pruned_model import prepare_pruned_model
from sparsebert.bench.workload import Workload, hush_transformers
from sparsebert.cli.path_checks import require_picture
from sparsebert.demo.real_model import NAME, weights_folder
from sparsebert.lottery.run_folder import RunFolder
from sparsebert.report.lottery_plots import curve_plot
from sparsebert.report.lottery_tables import BASELINES, curve_tables, learned_tables, transfer_tables
from sparsebert.tickets.ticket import Ticket


def earlier_records(file: Path | None) -> dict[str, list[results.Record]]:
    """Return the records of an earlier results file by the name of the run."""
    earlier: dict[str, list[results.Record]] = {}
    for row in results.read(file) if file else []:
        earlier.setdefault(row["run"], []).append(row)
    return earlier


def rounds(
    run: Run, earlier: dict[str, list[results.Record]], runs: Path, data: Path
) -> Iterator[results.Record]:
    """Yield the records of a run's rounds, from an earlier results file or by training.

    If the folder of the source ticket is missing, its run is repeated.

    Raises:
        ValueError: The repeated source run finds another ticket than the earlier one.
    """
    if run.name in earlier:
        # Runs that two parts share are trained once and listed in both.
        rows = {row["round"]: row for row in earlier[run.name] if row["kind"] == "round"}
        yield from (row | place(run) for row in rows.values())
        return
    for source in sources():
        if source.name == run.ticket and not is_done(run, runs):
            again = carry_out(source, runs, data)[-1]
            before = earlier.get(source.name, [again])[-1]
            # Older records identify a ticket by the digest of its file, including metadata.
            digest = "masks_sha256" if "masks_sha256" in before else "ticket_sha256"
            if again[digest] != before[digest]:
                raise ValueError(
                    f"{source.name} finds another ticket than the one in --known; repeat it without --known"
                )
    yield from carry_out(run, runs, data)


def speeds(
    run: Run, earlier: dict[str, list[results.Record]], runs: Path, data: Path
) -> Iterator[results.Record]:
    """Yield bench records of a run's tickets on real lengths; existing ones are not measured again."""
    rows = earlier.get(run.name) or results.read(RunFolder(runs / run.name).log, "round")
    measured = [row for row in rows if row["kind"] == "bench"]
    yield from measured
    if measured:
        return
    lengths = sentence_lengths(data)
    machine = environment.detect()
    for row in rows:
        if not row["sparsity"]:
            continue
        workload = Workload(weights_folder(), batch=8, lengths=lengths)
        pruned = prepare_pruned_model(workload, Ticket.load(runs / run.name / row["ticket"]))
        print(f"speed of {run.label} {row['sparsity']:.0%}", file=sys.stderr, flush=True)
        for side in runner.run(pruned, BASELINES, machine, runner.Settings(budget=5.0, memory=False)):
            side["workload"]["model"] = NAME
            yield side | place(run)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_option(parser)
    parser.add_argument("--runs", type=Path, default=Path("build/lottery"), help="folder of the runs")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; repeatable")
    parser.add_argument(
        "--seed", type=int, action="append", choices=SEEDS, help="only this seed on SST-2; repeatable"
    )
    parser.add_argument("--known", type=Path, help="an earlier results file, whose runs are not repeated")
    parser.add_argument("--done", action="store_true", help="use finished runs only and train nothing")
    parser.add_argument("--out", type=Path, help="write the records to this file at the end")
    parser.add_argument("--plot", type=Path, help="with --out: plot accuracy and speed against sparsity")
    options = parser.parse_args()
    if options.plot and not options.out:
        parser.error("--plot needs --out, because only --out measures speed")
    try:
        require_picture("--plot", options.plot)
    except ValueError as error:
        parser.error(str(error))
    if not has_data(options.data):
        return 2
    torch.set_num_threads(1)
    hush_transformers()
    parts, seeds = options.part or PARTS, options.seed or SEEDS
    on_sst2 = [
        run
        for part, runs_of in ((CURVE, curve), (LEARNED, learned))
        if part in parts
        for seed in seeds
        for run in runs_of(seed)
    ]
    moved = [*sources(), *targets()] if TRANSFER in parts else []
    try:
        earlier = earlier_records(options.known)
        if options.done:
            on_sst2, moved = (
                [run for run in each if run.name in earlier or is_done(run, options.runs)]
                for each in (on_sst2, moved)
            )
        rows = [row for run in (*on_sst2, *moved) for row in rounds(run, earlier, options.runs, options.data)]
        if options.out:
            timed = [run for run in on_sst2 if run.seed == seeds[0]]
            rows += [row for run in timed for row in speeds(run, earlier, options.runs, options.data)]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.out:
        replace(options.out, rows)
        if options.plot and on_sst2:
            curve_plot(rows, options.plot)
    show([*curve_tables(rows), *learned_tables(rows), *transfer_tables(rows)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
