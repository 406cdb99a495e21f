"""Real tickets, small enough for a laptop: `python -m benchmarks.lottery --data FOLDER [--out FILE]`.

all-MiniLM-L6-v2, rounds of 300 steps. First SST-2 over three seeds: IMP from dense to 90 %, random and
one-shot pruning at 50, 70 and 90 %, SNIP at 50 and 70 %. Then one 70 % ticket of masked language modelling
(WikiText-2), trained on SST-2, CoLA and MRPC beside each task's own ticket, a random one and the dense model;
these tickets are found in two steps of 35 %.

Takes hours. Each run has a folder under --runs: what was interrupted goes on there when started again, what
is done is only read. With --out the speed of the first seed's SST-2 tickets is then measured on the task's
sentences, and the file is written anew.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sparsebert.bench import environment, record, runner
from sparsebert.bench.subject import prepare
from sparsebert.bench.workload import Workload, hush_transformers
from sparsebert.data import encode, load
from sparsebert.demo.real_model import NAME, weights_folder
from sparsebert.lottery.experiment import Request
from sparsebert.lottery.folder import RunFolder
from sparsebert.lottery.registry import lottery_method
from sparsebert.report.lottery_plots import curve_plot
from sparsebert.report.lottery_tables import RIVALS, curve_tables, transfer_tables
from sparsebert.ticket import Ticket
from sparsebert.train import train
from sparsebert.training.settings import TrainingSettings

SEEDS = (1, 2, 3)
CURVE, TRANSFER = "curve", "transfer"
TRANSFERRED = 0.7
TARGETS = ("sst2", "cola", "mrpc")
FOLDERS = {
    "sst2": "glue/SST-2",
    "cola": "glue/CoLA",
    "mrpc": "glue/MRPC",
    "wikitext-2": "wikitext-2",
}
# Examples of a step, so that steps of all tasks hold about as many tokens.
BATCHES = {"sst2": 32, "cola": 32, "mrpc": 16, "wikitext-2": 8}


@dataclass(frozen=True)
class Run:
    """One run of `sparsebert train`; `ticket` names the run whose ticket is trained, `label` the row of the
    results it belongs to."""

    part: str
    label: str
    task: str
    seed: int
    method: str
    sparsity: float | None
    options: dict[str, Any] = field(default_factory=dict)
    ticket: str | None = None

    @property
    def name(self) -> str:
        share = "" if self.sparsity is None else f"-{self.sparsity * 100:g}"
        return f"{self.task}-{self.label}{share}-seed-{self.seed}"

    def request(self, tickets: Path) -> Request:
        training = TrainingSettings(
            steps=300,
            batch_size=BATCHES[self.task],
            group_by_length=True,
            learning_rate=3e-5,
            precision="bf16",
            device="cpu",
            save_steps=150,
            seed=self.seed,
        )
        given = None if self.ticket is None else Ticket.load(RunFolder(tickets / self.ticket).final_ticket)
        return Request(
            lottery_method(self.method, **self.options), self.sparsity, training=training, ticket=given
        )


def curve(seed: int) -> Iterator[Run]:
    """SST-2: accuracy against sparsity, method by method."""
    yield Run(CURVE, "dense", "sst2", seed, "dense", 0.0)
    yield Run(CURVE, "imp", "sst2", seed, "imp", 0.9, {"head": "rewind"})
    for method, shares in (("random", (0.5, 0.7, 0.9)), ("one-shot", (0.5, 0.7, 0.9)), ("snip", (0.5, 0.7))):
        for sparsity in shares:
            yield Run(CURVE, method, "sst2", seed, method, sparsity)


def sources() -> Iterator[Run]:
    """The runs that find the tickets to be transferred."""
    for task in (*TARGETS, "wikitext-2"):
        options = {"head": "rewind", "step": TRANSFERRED / 2}
        yield Run(TRANSFER, "source", task, SEEDS[0], "imp", TRANSFERRED, options)


def targets() -> Iterator[Run]:
    """Each task trained from each ticket, over all seeds."""
    found = {run.task: run.name for run in sources()}
    for task in TARGETS:
        for seed in SEEDS:
            yield Run(TRANSFER, "dense", task, seed, "dense", 0.0)
            yield Run(TRANSFER, "own-ticket", task, seed, "ticket", None, ticket=found[task])
            yield Run(TRANSFER, "mlm-ticket", task, seed, "ticket", None, ticket=found["wikitext-2"])
            yield Run(TRANSFER, "random", task, seed, "random", TRANSFERRED)


def carry_out(run: Run, runs: Path, data: Path) -> list[record.Record]:
    """The records of the run's rounds, marked with the row of the results that they belong to."""
    folder = runs / run.name
    rows = train(
        run.task,
        weights_folder(),
        run.request(runs),
        folder,
        data=data / FOLDERS[run.task],
        say=lambda text: print(f"{run.name}: {text}", file=sys.stderr, flush=True),
    )
    # Tickets are small and stay; the weights trained with them would fill the disk.
    shutil.rmtree(folder / "model", ignore_errors=True)
    return [row | {"part": run.part, "label": run.label, "model": NAME} for row in rows]


def speeds(runs: Path, data: Path) -> Iterator[record.Record]:
    """Bench records of the first seed's tickets on the curve, over the lengths of real sentences."""
    lengths = sentence_lengths(data)
    machine = environment.detect()
    for run in curve(SEEDS[0]):
        for row in record.read(RunFolder(runs / run.name).log, "round"):
            if not row["sparsity"]:
                continue
            workload = Workload(weights_folder(), batch=8, lengths=lengths)
            subject = prepare(workload, Ticket.load(runs / run.name / row["ticket"]))
            print(f"speed of {run.label} {row['sparsity']:.0%}", file=sys.stderr, flush=True)
            for side in runner.run(subject, RIVALS, machine, runner.Settings(budget=5.0, memory=False)):
                side["workload"]["model"] = NAME
                yield side | {"part": run.part, "label": run.label}


def sentence_lengths(data: Path) -> tuple[int, ...]:
    """Tokens of the first 64 sentences of SST-2's validation data."""
    from transformers import AutoTokenizer

    examples = load("sst2", data / FOLDERS["sst2"], train=False).validation["validation"]
    return tuple(
        encode(examples[:64], "sst2", AutoTokenizer.from_pretrained(weights_folder())).lengths.tolist()
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("SPARSEBERT_DATA"),
        help="folder with glue/ and wikitext-2/ (default: SPARSEBERT_DATA)",
    )
    parser.add_argument("--runs", type=Path, default=Path("build/lottery"), help="folder of the runs")
    parser.add_argument("--part", choices=(CURVE, TRANSFER), help="only this part")
    parser.add_argument(
        "--seed", type=int, action="append", choices=SEEDS, help="only this one of the curve's"
    )
    parser.add_argument("--out", type=Path, help="write the records to this file when all is done")
    parser.add_argument("--plot", type=Path, help="draw accuracy and speed against sparsity (PNG)")
    options = parser.parse_args()
    if options.data is None or not options.data.is_dir():
        print("error: no task data: --data or SPARSEBERT_DATA names their folder", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    hush_transformers()
    seeds = options.seed or SEEDS
    chosen = [run for seed in seeds for run in curve(seed)] if options.part != TRANSFER else []
    if options.part != CURVE:
        chosen += [*sources(), *targets()]
    rows = [row for run in chosen for row in carry_out(run, options.runs, options.data)]
    if options.out and options.part != TRANSFER:
        rows += speeds(options.runs, options.data)
    if options.out:
        options.out.unlink(missing_ok=True)
        record.append(options.out, rows)
    if options.out and options.plot and options.part != TRANSFER:
        curve_plot(rows, options.plot)
    for table in [*curve_tables(rows), *transfer_tables(rows)]:
        print(table.markdown(), end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
