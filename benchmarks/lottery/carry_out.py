"""Runs of the lottery benchmark, and helpers that other benchmarks of real tickets share."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from benchmarks.lottery.runs import FOLDERS, Run
from sparsebert import results
from sparsebert.demo.real_model import NAME, weights_folder
from sparsebert.lottery.run_context import RunContext
from sparsebert.lottery.run_folder import RunFolder
from sparsebert.tasks import encode, load
from sparsebert.workflows.train import train


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--data``, the folder of the tasks' files."""
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("SPARSEBERT_DATA"),
        help="folder with glue/ and wikitext-2/ (default: SPARSEBERT_DATA)",
    )


def has_data(folder: Path | None) -> bool:
    """Return whether the data folder exists; print how to set it if not."""
    if folder is not None and folder.is_dir():
        return True
    print("error: no task data; name their folder with --data or SPARSEBERT_DATA", file=sys.stderr)
    return False


def carry_out(run: Run, runs: Path, data: Path, *, keep_model: bool = False) -> list[results.Record]:
    """Carry out a run and return the records of its rounds, marked with their row of the results."""
    folder = runs / run.name
    rows = train(
        run.task,
        str(runs / run.start) if run.start is not None and run.own_weights else weights_folder(),
        run.config(runs),
        folder,
        data=data / FOLDERS[run.task],
        context=RunContext(lambda text: print(f"{run.name}: {text}", file=sys.stderr, flush=True)),
    )
    # Tickets are small and kept; trained weights would fill the disk.
    if not keep_model:
        shutil.rmtree(folder / "model", ignore_errors=True)
    return [row | place(run) | {"model": NAME} for row in rows]


def is_done(run: Run, runs: Path) -> bool:
    """Return whether a run is finished."""
    return RunFolder(runs / run.name).finished() is not None


def place(run: Run) -> dict[str, object]:
    """Return the fields that place a run's records in the results.

    "asked" is the intended sparsity of a method that determines the sparsity itself.
    """
    return {"run": run.name, "part": run.part, "label": run.label} | (
        {"asked": run.sparsity} if run.decides_sparsity else {}
    )


def sentence_lengths(data: Path) -> tuple[int, ...]:
    """Return the token counts of the first 64 sentences of SST-2's validation data."""
    from transformers import AutoTokenizer

    examples = load("sst2", data / FOLDERS["sst2"], train=False).validation["validation"]
    return tuple(
        encode(examples[:64], "sst2", AutoTokenizer.from_pretrained(weights_folder())).lengths.tolist()
    )
