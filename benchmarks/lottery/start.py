"""What a start ticket saves: `python -m benchmarks.lottery.start --data FOLDER [--quick] [--out FILE]`.

The model is all-MiniLM-L6-v2 on SST-2. ALPS prunes 60 % of it in one shot, calibrated on 512 sentences of the
training data without their labels. IMP, movement pruning and Static Model Pruning (mask L) go to 80 %, from
the dense model and from ALPS's mask, with the pre-trained weights or with those that ALPS has changed;
movement also in half of the steps. The table says what each run spends until the sparsity, and its accuracy.

By default a round has 300 steps and IMP prunes a tenth of the weights in each, with three seeds: hours.
``--quick`` has one seed, rounds of 100 steps in which IMP prunes two fifths, and no Static Model Pruning: ten
minutes of one core. Each run has a folder under --runs: interrupted runs continue there, and finished runs
are only read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.lottery.carry_out import add_data_option, carry_out, has_data
from benchmarks.lottery.runs import FOLDERS, SEEDS, Run
from benchmarks.output import replace, show
from sparsebert.bench.workload import hush_transformers
from sparsebert.cli.path_checks import require_picture
from sparsebert.demo.real_model import weights_folder
from sparsebert.report.start_benchmark import benchmark_start_tables, start_plot
from sparsebert.results import Record
from sparsebert.tasks import load
from sparsebert.workflows.one_shot import prune_folder

PART, TASK, SPARSITY = "start", "sst2", 0.8
START, START_METHOD, START_SPARSITY = "alps-60", "alps", 0.6


@dataclass(frozen=True)
class Preset:
    """The size of the benchmark.

    Attributes:
        seeds: Seeds of the training.
        steps: Optimizer steps of a round.
        share: Share of the weights that a round of IMP prunes.
        learning_rate: Peak learning rate of a round.
        labels: Methods, by the labels of their runs.
    """

    seeds: tuple[int, ...]
    steps: int
    share: float
    learning_rate: float
    labels: tuple[str, ...]


FULL = Preset(SEEDS, 300, 0.1, 3e-5, ("movement", "imp", "smp-l"))
# Few steps need a higher rate to learn anything.
QUICK = Preset(SEEDS[:1], 100, 0.4, 1e-4, ("movement", "imp"))


def runs(preset: Preset) -> Iterator[Run]:
    """Yield the runs of a preset, method by method, those with the start ticket after those without."""
    for label in preset.labels:
        for start, own_weights in ((None, False), (START, False), (START, True)):
            for seed in preset.seeds:
                yield from _runs_of_seed(label, preset, seed, start, own_weights)


def _runs_of_seed(
    label: str, preset: Preset, seed: int, start: str | None, own_weights: bool
) -> Iterator[Run]:
    common: dict[str, Any] = {"steps": preset.steps, "learning_rate": preset.learning_rate}
    if label == "imp":
        options = {"head": "rewind", "step": preset.share}
        yield _run("imp", seed, "imp", options, common, start, own_weights)
    elif label == "smp-l":
        yield _run("smp-l", seed, "smp", {"mask": "L"}, common, start, own_weights)
    else:
        # As in the other parts: a tenth of the steps warms up, and a penalty keeps the scores from chance.
        penalty = {"regularisation": 400.0}
        warm = common | {"warmup_steps": preset.steps // 10}
        yield _run("movement", seed, "movement", penalty, warm, start, own_weights)
        if start is not None and not own_weights:
            half = warm | {"steps": preset.steps // 2, "warmup_steps": preset.steps // 20}
            yield _run("movement", seed, "movement", penalty, half, start, own_weights)


def _run(
    label: str,
    seed: int,
    method: str,
    options: Mapping[str, Any],
    training: Mapping[str, Any],
    start: str | None,
    own_weights: bool,
) -> Run:
    return Run(
        PART,
        label,
        TASK,
        seed,
        method,
        SPARSITY,
        options,
        training=training,
        start=start,
        own_weights=own_weights,
    )


def find_start(folder: Path, data: Path) -> None:
    """Prune MiniLM in one shot into a folder, unless it is there."""
    if folder.exists():
        return
    examples: Any = load(TASK, data / FOLDERS[TASK]).train
    texts = dict.fromkeys(examples[index].texts[0] for index in range(len(examples)))
    prune_folder(weights_folder(), folder, START_METHOD, list(texts), sparsity=START_SPARSITY)


def records(preset: Preset, folder: Path, data: Path) -> Iterator[list[Record]]:
    """Carry out all runs of a preset and yield the records of each one's rounds."""
    folder.mkdir(parents=True, exist_ok=True)
    find_start(folder / START, data)
    for run in runs(preset):
        rate = {"learning_rate": preset.learning_rate}
        yield [row | rate for row in carry_out(run, folder, data)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_option(parser)
    parser.add_argument("--runs", type=Path, default=Path("build/lottery"), help="folder of the runs")
    parser.add_argument("--quick", action="store_true", help="one seed and short rounds")
    parser.add_argument("--out", type=Path, help="write the records to this file after each run")
    parser.add_argument("--plot", type=Path, help="plot accuracy against steps")
    options = parser.parse_args()
    try:
        require_picture("--plot", options.plot)
    except ValueError as error:
        parser.error(str(error))
    if not has_data(options.data):
        return 2
    torch.set_num_threads(1)
    hush_transformers()
    try:
        rows: list[Record] = []
        for of_run in records(QUICK if options.quick else FULL, options.runs, options.data):
            rows += of_run
            if options.out:
                replace(options.out, rows)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.plot:
        start_plot(rows, options.plot)
    show(benchmark_start_tables(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
