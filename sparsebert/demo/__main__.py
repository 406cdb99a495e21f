"""The demo: prune a real BERT, swap in the sparse layers, check the answers, show speed and memory.

``python -m sparsebert.demo`` writes results.jsonl, minilm-90.safetensors and speedup.png to ``demo/`` in the
current folder. It runs on one thread, so that the figures can be compared between machines.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.text import Text

from sparsebert import results
from sparsebert.bench import environment, output_check, runner
from sparsebert.bench.pruned_model import prepare_pruned_model
from sparsebert.bench.workload import Workload, hush_transformers
from sparsebert.demo import real_model
from sparsebert.pruning import prune
from sparsebert.report.format import machine_text
from sparsebert.report.model_tables import bench_tables, sweep_tables
from sparsebert.report.speedup_plots import speedup_plot

if TYPE_CHECKING:
    from sparsebert.bench.providers import Backend

FOLDER = Path("demo")
RESULTS, TICKET, PICTURE = FOLDER / "results.jsonl", FOLDER / "minilm-90.safetensors", FOLDER / "speedup.png"
BLOCK = {"granularity": "block", "block_size": (4, 1)}
# (arguments of prune, sparsity, format): first the four of the table, then further points of the picture. At
# low sparsities the plan would choose dense layers; the sparse format is forced to show the break-even.
POINTS: tuple[tuple[dict[str, Any], float, str], ...] = (
    ({}, 0.90, "auto"),
    ({}, 0.95, "auto"),
    ({}, 0.70, "auto"),
    (BLOCK, 0.90, "auto"),
    ({}, 0.10, "element"),
    ({}, 0.30, "element"),
    (BLOCK, 0.10, "vector"),
    (BLOCK, 0.50, "vector"),
    ({}, 0.50, "element"),
    (BLOCK, 0.95, "auto"),
    (BLOCK, 0.70, "auto"),
    ({}, 0.80, "auto"),
)
IN_TABLE = 4
# Once the demo has run for PATIENCE seconds, it skips all points after this many.
NEEDED = 6
PATIENCE = 200.0

Step = Callable[[str], None]


def main() -> int:
    """Run the demo. Returns exit code 1 if an answer is wrong and 2 if something is missing."""
    start = time.monotonic()
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    try:
        folder = real_model.weights_folder()
        hush_transformers()
        FOLDER.mkdir(exist_ok=True)
        torch.set_num_threads(1)
        machine = environment.detect()
        with _progress() as step:
            _say(console, "sparsebert demo", machine_text(machine.record()))
            _real_weights(console, step, folder, machine)
            rows = _bert_base(console, step, machine, start)
            speedup_plot(rows, PICTURE)
    except output_check.OutputMismatchError as error:
        print(f"sparsebert demo: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"sparsebert demo: {error}", file=sys.stderr)
        return 2
    seconds = time.monotonic() - start
    _say(console, "Done", f"{seconds:.0f} s. Speed-up against sparsity: {PICTURE}; all figures: {RESULTS}.")
    return 0


def _real_weights(console: Console, step: Step, folder: str, machine: environment.Environment) -> None:
    step("loading MiniLM")
    pruned = real_model.load_pruned_model(folder)
    pruned.ticket.save(TICKET)
    lengths = pruned.workload.lengths
    _say(
        console,
        "1. Real weights on real sentences",
        f"{real_model.NAME} (6 layers, 384 wide), magnitude pruning of single weights: "
        f"{pruned.ticket.sparsity:.0%} of its {len(pruned.ticket.masks)} encoder matrices are zero. "
        f"{len(lengths)} sentences of {min(lengths)} to {max(lengths)} tokens in batches of "
        f"{pruned.workload.batch}. Ticket: {TICKET}, {TICKET.stat().st_size / 1e6:.1f} MB.",
    )
    step("comparing answers")
    of_sparse, of_pruned = real_model.agreements(pruned)
    _say(
        console,
        "Same answers",
        "Sparse against masked dense: sentence embeddings (unit length) differ by at most "
        f"{of_sparse.max_error:.1e}; smallest cosine {of_sparse.min_cosine:.6f}.",
    )
    rows = runner.run(
        pruned, _baselines(), machine, runner.Settings(budget=8, retries=1), _within(step, "MiniLM")
    )
    for row in rows:
        row["workload"]["model"] = real_model.NAME
    results.append(RESULTS, rows)
    console.print()
    for table in bench_tables(rows):
        console.print(table.rich(console.width))
    _say(
        console,
        "Not claimed",
        "Pruning in one shot, without training, costs accuracy: these embeddings have a mean cosine of "
        f"{of_pruned.mean_cosine:.2f} with those of the unpruned model. The speed is that of every ticket of "
        "this sparsity; the accuracy is what training a ticket is for.",
    )


def _bert_base(
    console: Console, step: Step, machine: environment.Environment, start: float
) -> list[results.Record]:
    workload = Workload("bert-base")
    _say(
        console,
        "2. BERT-base",
        "Random weights in BERT-base's shapes, batch 1, 128 tokens: speed depends on which weights are zero, "
        "not on the values of the others.",
    )
    step("building BERT-base")
    dense = workload.load_model()
    rows: list[results.Record] = []
    for index, (arguments, sparsity, format) in enumerate(POINTS):
        if index >= NEEDED and time.monotonic() - start > PATIENCE:
            break
        here = _within(step, f"BERT-base, {sparsity:.0%} {'4x1' if arguments else 'element'}")
        here("pruning")
        ticket = prune(dense, "magnitude", sparsity=sparsity, **arguments)
        pruned = prepare_pruned_model(workload, ticket, format=format, model=copy.deepcopy(dense))
        tabled = index < IN_TABLE
        settings = runner.Settings(
            budget=4 if tabled else 2, min_rounds=5, memory=index == 0, retries=1 if tabled else 0
        )
        records = runner.run(pruned, _baselines(), machine, settings, here)
        results.append(RESULTS, records)
        rows += records
        if index == IN_TABLE - 1:
            console.print()
            for table in sweep_tables(rows):
                console.print(table.rich(console.width))
    return rows


def _baselines() -> list[str]:
    """Return the dense backends that are available on this machine."""
    from sparsebert.bench.providers import BACKENDS

    backends: tuple[type[Backend], ...] = (BACKENDS["onednn"], BACKENDS["eager"])
    return [backend.name for backend in backends if backend().available() is None]


def _say(console: Console, heading: str, text: str) -> None:
    console.print()
    console.print(Text(heading, style="bold"))
    console.print(Text(text))


def _within(step: Step, what: str) -> Step:
    return lambda text: step(f"{what}: {text}")


@contextlib.contextmanager
def _progress() -> Iterator[Step]:
    """Show the current step on a terminal; silent elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status("starting") as status:
        yield lambda text: status.update(Text(text))


if __name__ == "__main__":
    sys.exit(main())
