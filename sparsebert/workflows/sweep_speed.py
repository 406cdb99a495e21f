"""The speed of an experiment's tickets against dense baselines, on inputs as long as the task's.

A run keeps the records of its measurement (kind "bench") in ``speed.jsonl`` and is not measured again. The
condensed form in the record of a cell:

    ratio                  baseline -> {median, p20, p80} of its time over ours, in paired rounds
    latency_ms             of a batch: {median, p20, p80}
    weight_bytes           of the packed weights; dense_weight_bytes: those of the first baseline
    batch, lengths         sequences of a batch, and [shortest, longest] in tokens
    threads, busy          CPU threads, and whether other work disturbed the measurement
    gate, left_out         the check of outputs, and baselines that cannot run here with their reasons
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from sparsebert import results
from sparsebert.bench import environment, runner
from sparsebert.bench.pruned_model import prepare_pruned_model
from sparsebert.bench.workload import Workload
from sparsebert.lottery.run_folder import RunFolder
from sparsebert.results import Record
from sparsebert.tickets.ticket import Ticket

FILE = "speed.jsonl"
# The last is the dense model in the same native call: what zeros alone gain.
BASELINES = ("onednn", "eager", "fused")
BATCH = 8
# Validation examples whose lengths the batches have.
SEQUENCES = 64


def measure(
    folder: Path,
    model: str,
    lengths: Callable[[], Sequence[int]],
    budget: float,
    say: Callable[[str], object],
) -> Record:
    """Measure the speed of a finished run's ticket, or read the earlier measurement.

    Args:
        folder: Folder of the run.
        model: Hub id or folder of the model.
        lengths: Returns the tokens of each sequence.
        budget: Seconds of timed rounds.
        say: Called with each line of progress.

    Raises:
        ValueError: The ticket does not fit the model.
        OutputMismatchError: The sparse model's outputs are wrong; nothing is timed then.
    """
    file = folder / FILE
    if not file.exists():
        say("measuring the speed of its ticket")
        threads = torch.get_num_threads()
        try:
            workload = Workload(model, batch=BATCH, lengths=tuple(lengths()))
            pruned = prepare_pruned_model(workload, Ticket.load(RunFolder(folder).final_ticket))
            settings = runner.Settings(budget=budget, memory=False, leave_out=True)
            results.append(file, runner.run(pruned, BASELINES, environment.detect(), settings))
        finally:
            torch.set_num_threads(threads)
    return condensed(results.read(file, "bench"))


def measured_before(folder: Path) -> Record | None:
    """Return the earlier measurement of a run's ticket; None if there was none."""
    file = folder / FILE
    return condensed(results.read(file, "bench")) if file.exists() else None


def condensed(rows: Sequence[Record]) -> Record:
    """Return the fields of a measurement for the record of a cell."""
    ours = next(row for row in rows if row["provider"] == runner.OURS)
    dense = next((row for row in rows if row["provider"] != runner.OURS), None)
    workload = ours["workload"]
    return {
        "ratio": ours["ratio"],
        "latency_ms": ours["latency_ms"],
        "weight_bytes": ours["weight_bytes"],
        "dense_weight_bytes": dense and dense["weight_bytes"],
        "batch": workload["batch"],
        "lengths": [min(workload["lengths"]), max(workload["lengths"])],
        "threads": workload["threads"],
        "busy": any(row["busy"] for row in rows),
        "gate": ours["gate"],
        "left_out": ours["left_out"],
    }
