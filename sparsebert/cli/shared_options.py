"""Options that several commands share, one definition each, and the parsers of their values."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

TASK_NAMES = "sst2, cola, mrpc, stsb, qqp, mnli, qnli, rte, wnli, squad, wikitext-2, wikitext-2-clm"
GRANULARITY_HELP = (
    "element, 4x1 (any ROWSxCOLUMNS block), panel(32,2) (blocks; each panel of rows keeps a multiple of 32 "
    "columns), row, column, neuron, head, mlp, head+neuron, head+mlp, 2:4 (any N:M)"
)
MEASURE_HELP = (
    "time the formats on this machine; --no-measure leaves the choice to the cost model, which times nothing "
    "[default: measure]"
)

# Limit of --batch and --seq: larger values are mistakes.
MAX_TOKENS = 2**20

DataFolder = Annotated[
    Path | None,
    typer.Option(
        "--data",
        "--data-dir",
        help="folder with the tasks' original files (SST-2/train.tsv, ...); the hub if omitted",
    ),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="append the results to this file, as JSON lines")
]
Seeds = Annotated[str, typer.Option("--seeds", "--seed", help="seeds, one run each: 1,2,3")]
TaskName = Annotated[str | None, typer.Option("--task", help=f"{TASK_NAMES}; or any name for your own files")]
PretrainedModel = Annotated[str, typer.Option("--model", help="pre-trained BERT: hub id or local folder")]
AnyModel = Annotated[
    str,
    typer.Option(
        "--model",
        help="hub id, local folder, or a shape with random weights: bert-tiny, minilm, bert-base, bert-large",
    ),
]
TicketFile = Annotated[
    Path | None,
    typer.Option(
        "--ticket",
        help="ticket file, mask.pt of BERT-Tickets, .npy of SMP or bert-experiments, JSON of Super Tickets, "
        "or the folder of a run",
    ),
]


def comma_separated(option: str, text: str) -> list[str]:
    """Return the parts of an option's value; a part with a comma may stand in double quotes.

    Raises:
        ValueError: For a part that is empty or stands twice.
    """
    (parts,) = csv.reader([text], skipinitialspace=True) if text.strip() else [[""]]
    parts = [part.strip() for part in parts]
    if "" in parts or len(set(parts)) < len(parts):
        raise ValueError(f"{option} must be different names, separated by commas, got {text!r}")
    return parts


def measure_option(measure: bool) -> str:
    """Return the option as the user wrote it."""
    return "--measure" if measure else "--no-measure"


def seed_list(text: str) -> list[int]:
    """Return the distinct seeds in "1,2,3". Raises ValueError for parts that are not seeds."""
    try:
        seeds = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ValueError(f"--seeds must be whole numbers, such as 0 or 1,2,3, got {text[:60]!r}") from None
    for seed in seeds:
        require_seed("--seeds", seed)
    return seeds


def require_seed(option: str, seed: int) -> None:
    """Raise ValueError unless all random generators take the seed."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"{option}: a seed must be from 0 to 2**32 - 1, got {seed}")


def require_numbers(options: Mapping[str, float | None], least: float = 1, most: float = math.inf) -> None:
    """Raise ValueError, with the option's name, for a number outside ``least`` to ``most``, or NaN."""
    for option, value in options.items():
        if value is not None and not least <= value <= most:
            limit = f"at most {most:.7g}" if value > most else f"at least {least:g}"
            raise ValueError(f"{option} must be {limit}, got {value}")


def require_applicable(options: Mapping[str, object], condition: str) -> None:
    """Raise ValueError for the first option that has a value: all need another option.

    Args:
        options: Options and their values; None, False and an empty list stand for an omitted option.
        condition: What the options need, such as "--to sparse".
    """
    for option, value in options.items():
        if value is not None and value is not False and value != []:
            raise ValueError(f"{option} applies only with {condition}: omit it")


def sparsity_list(text: str) -> list[float]:
    """Return the sparsities in "0.5,0.9". Raises ValueError for parts that are not numbers from 0 to 1."""
    try:
        sparsities = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--sparsity must be a number from 0 to 1, such as 0.9 or 0.5,0.7,0.9, got {text[:60]!r}"
        ) from None
    if max(sparsities) > 1 and re.fullmatch(r"0,\d+", text):
        raise ValueError(
            f"--sparsity must be from 0 to 1, got {text}; did you mean {text.replace(',', '.')}?"
        )
    for sparsity in sparsities:
        require_share("--sparsity", sparsity)
    return sparsities


def require_share(option: str, share: float | None) -> None:
    """Raise ValueError unless a share, if there is one, is from 0 to 1."""
    if share is None or 0 <= share <= 1:
        return
    # A number below 2 is more likely a slip of the decimal point than a percentage.
    percentage = 2 <= share <= 100
    hint = f"did you mean {share / 100:g}?" if percentage else "write 90 % as 0.9"
    raise ValueError(f"{option} must be from 0 to 1, got {share:g}; {hint}")
