"""A run of the lottery benchmark carried out, and what other benchmarks of real tickets share with it."""

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
    """Where the tasks' files are."""
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("SPARSEBERT_DATA"),
        help="folder with glue/ and wikitext-2/ (default: SPARSEBERT_DATA)",
    )


def has_data(folder: Path | None) -> bool:
    """Whether the folder is there; where it is not, a line says how to name it."""
    if folder is not None and folder.is_dir():
        return True
    print("error: no task data: --data or SPARSEBERT_DATA names their folder", file=sys.stderr)
    return False


def carry_out(run: Run, runs: Path, data: Path, *, keep_model: bool = False) -> list[results.Record]:
    """The records of the run's rounds, marked with the row of the results that they belong to."""
    folder = runs / run.name
    rows = train(
        run.task,
        weights_folder(),
        run.request(runs),
        folder,
        data=data / FOLDERS[run.task],
        context=RunContext(lambda text: print(f"{run.name}: {text}", file=sys.stderr, flush=True)),
    )
    # Tickets are small and stay; the weights trained with them would fill the disk.
    if not keep_model:
        shutil.rmtree(folder / "model", ignore_errors=True)
    return [row | place(run) | {"model": NAME} for row in rows]


def is_done(run: Run, runs: Path) -> bool:
    """Whether there is nothing left to train."""
    return RunFolder(runs / run.name).finished() is not None


def place(run: Run) -> dict[str, object]:
    """Where records of the run belong in the results; `asked` where what comes out is only near it."""
    return {"run": run.name, "part": run.part, "label": run.label} | (
        {"asked": run.sparsity} if run.finds else {}
    )


def sentence_lengths(data: Path) -> tuple[int, ...]:
    """Tokens of the first 64 sentences of SST-2's validation data."""
    from transformers import AutoTokenizer

    examples = load("sst2", data / FOLDERS["sst2"], train=False).validation["validation"]
    return tuple(
        encode(examples[:64], "sst2", AutoTokenizer.from_pretrained(weights_folder())).lengths.tolist()
    )
