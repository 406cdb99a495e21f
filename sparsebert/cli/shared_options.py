"""Options that several commands share, one definition each, and the parsers of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TASK_NAMES = "sst2, cola, mrpc, stsb, qqp, mnli, qnli, rte, wnli, squad, wikitext-2"
GRANULARITY_HELP = (
    "element, 4x1 (any ROWSxCOLUMNS block), row, column, neuron, head, mlp, head+neuron, head+mlp, "
    "2:4 (any N:M)"
)
MEASURE_HELP = (
    "time the formats on this machine; --no-measure leaves the choice to the cost model, which times nothing "
    "[default: measure]"
)

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


def measure_option(measure: bool) -> str:
    """Return the option as the user wrote it."""
    return "--measure" if measure else "--no-measure"


def seed_list(text: str) -> list[int]:
    """Return the distinct seeds in "1,2,3". Raises ValueError for parts that are not whole numbers."""
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ValueError(f"--seeds must be whole numbers, such as 0 or 1,2,3, got {text!r}") from None


def sparsity_list(text: str) -> list[float]:
    """Return the sparsities in "0.5,0.9". Raises ValueError for parts that are not numbers from 0 to 1."""
    try:
        sparsities = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--sparsity must be a number from 0 to 1, such as 0.9 or 0.5,0.7,0.9, got {text!r}"
        ) from None
    for sparsity in sparsities:
        if not 0 <= sparsity <= 1:
            hint = f"; did you mean {sparsity / 100:g}?" if 1 < sparsity <= 100 else ""
            raise ValueError(f"--sparsity must be from 0 to 1, got {sparsity:g}{hint}")
    return sparsities
