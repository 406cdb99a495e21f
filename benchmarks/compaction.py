"""The gain of compaction on a real ticket: `python -m benchmarks.compaction --data FOLDER [--out FILE]`.

SMP-S keeps 3 % of all-MiniLM-L6-v2's encoder on SST-2; it is trained first if `--runs` does not hold it yet.
The model is compacted exactly, and again with rows of fewer than 10 weights dropped. Measured are size,
accuracy and the speed of the compacted model, dense and sparse, for batches of 1, 8 and 32 with 128 tokens
and with the lengths of real sentences.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from benchmarks.lottery.carry_out import add_data_option, carry_out, has_data, sentence_lengths
from benchmarks.lottery.runs import FOLDERS, SEEDS, Run
from benchmarks.output import replace, show
from sparsebert import results
from sparsebert.bench import environment, runner
from sparsebert.bench.environment import Environment
from sparsebert.bench.pruned_model import prepare_pruned_model
from sparsebert.bench.workload import Workload, hush_transformers
from sparsebert.compact import compact_, compaction_description
from sparsebert.compaction.analyze import analyze
from sparsebert.demo.real_model import NAME
from sparsebert.lottery.run_folder import RunFolder
from sparsebert.report.compaction_tables import compaction_tables
from sparsebert.tickets.ticket import Ticket
from sparsebert.workflows.evaluate import evaluate

RUN = Run("compaction", "smp-s", "sst2", SEEDS[0], "smp", 0.97, {"mask": "S"})
THIN = 10  # least weights of a row that is not dropped, as in the paper
BATCHES = (1, 8, 32)
PADDED = 128
BASELINES = ("onednn", "eager", "compact")


def sizes(
    model: nn.Module, ticket: Ticket, folder: Path, data: Path, machine: Environment
) -> Iterator[tuple[results.Record, Ticket]]:
    """Yield a record for each least number of weights in a row, with the compacted ticket."""
    for least in (0, THIN):
        compacted_ticket = analyze(model, ticket, min_row_weights=least).ticket
        compacted = compact_(copy.deepcopy(model), ticket, min_row_weights=least)
        scores = evaluate("sst2", str(folder), ticket=compacted_ticket, data=data / FOLDERS["sst2"])
        row = results.stamp(
            "compaction",
            {
                "environment": machine.record(),
                "model": NAME,
                "task": "sst2",
                "min_row_weights": least,
                "density": compacted_ticket.density,
                "weights": compaction_description(compacted)["weights"],
                "metrics": scores,
            },
        )
        yield row, compacted_ticket


def speeds(
    folder: Path, ticket: Ticket, lengths: tuple[int, ...], least: int, machine: Environment
) -> Iterator[results.Record]:
    """Yield bench records of the compacted model, dense and sparse, against the masked dense model."""
    for batch in BATCHES:
        for real in (True, False):
            # Few sentences keep the rounds short.
            tokens = lengths[: max(16, batch)] if real else (PADDED,) * batch
            pruned = prepare_pruned_model(Workload(str(folder), batch, tokens), ticket)
            for side in runner.run(pruned, BASELINES, machine, runner.Settings(budget=8.0, memory=False)):
                side["workload"]["model"] = NAME
                yield side | {"min_row_weights": least}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_option(parser)
    parser.add_argument("--runs", type=Path, default=Path("build/lottery"), help="folder of the runs")
    parser.add_argument("--out", type=Path, help="write the records to this file")
    options = parser.parse_args()
    if not has_data(options.data):
        return 2
    from transformers import AutoModel

    torch.set_num_threads(1)
    hush_transformers()
    machine = environment.detect()
    carry_out(RUN, options.runs, options.data, keep_model=True)
    folder = RunFolder(options.runs / RUN.name)
    model = AutoModel.from_pretrained(folder.model).eval()
    lengths = sentence_lengths(options.data)
    rows: list[results.Record] = []
    for size, ticket in sizes(model, Ticket.load(folder.final_ticket), folder.model, options.data, machine):
        rows += [size, *speeds(folder.model, ticket, lengths, size["min_row_weights"], machine)]
    if options.out:
        replace(options.out, rows)
    show(compaction_tables(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
