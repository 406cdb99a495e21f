"""The demo: prune a real BERT, swap in the sparse layers, check the answers, show speed, memory and quality.

``python -m sparsebert.demo`` writes results.jsonl, sparse MiniLMs and speedup.png to ``demo/`` in the
current folder. Timed runs take one thread, so that the figures can be compared between machines.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from sparsebert import results
from sparsebert.bench import environment, output_check, runner
from sparsebert.bench.providers import BACKENDS
from sparsebert.bench.pruned_model import PrunedModel, prepare_pruned_model
from sparsebert.bench.workload import Workload, hush_transformers
from sparsebert.demo import real_model
from sparsebert.pruning import prune
from sparsebert.report.format import machine_text
from sparsebert.report.model_tables import bench_tables, sweep_tables
from sparsebert.report.speedup_plots import speedup_plot
from sparsebert_kernels.cpu.encoder import has_engine

FOLDER = Path("demo")
RESULTS, PICTURE = FOLDER / "results.jsonl", FOLDER / "speedup.png"
# Dense models to beat; those that are not installed are named as not compared.
BASELINES = ("onednn", "eager", "onednn-bf16", "torch-int8", "onnxruntime-int8", "openvino-int8")
VECTORS = {"granularity": "block", "block_size": (4, 1)}
PANELS = {"granularity": "panel", "block_size": (32, 2)}
# (arguments of prune, sparsity, format, tolerance): first those of the table, then further points of the
# picture. At low sparsities the plan would choose dense layers; the sparse format is forced to show the
# break-even.
Point = tuple[dict[str, Any], float, str, str]
TABLE: tuple[Point, ...] = (
    ({}, 0.90, "auto", "fp32"),
    (VECTORS, 0.90, "auto", "fp32"),
    (PANELS, 0.90, "auto", "bf16"),
    ({}, 0.70, "auto", "fp32"),
    (PANELS, 0.70, "auto", "bf16"),
    ({}, 0.95, "auto", "fp32"),
)
PICTURED: tuple[Point, ...] = (
    ({}, 0.30, "element", "fp32"),
    (VECTORS, 0.50, "vector", "fp32"),
    (PANELS, 0.50, "auto", "bf16"),
    ({}, 0.50, "element", "fp32"),
    (VECTORS, 0.10, "vector", "fp32"),
    (PANELS, 0.30, "auto", "bf16"),
    (VECTORS, 0.70, "auto", "fp32"),
    ({}, 0.80, "auto", "fp32"),
)
# Once the demo has run for PATIENCE seconds, it skips the points that only the picture shows.
PATIENCE = 240.0

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
    real = real_model.RealModel.load(folder)
    lengths = real.workload.lengths
    _say(
        console,
        "1. Real weights on real sentences",
        f"{real_model.NAME} (6 layers, 384 wide), pruned in one shot by {real_model.METHOD.upper()}, "
        f"calibrated on {len(real_model.sentences('calibration'))} unlabelled sentences, without training. "
        f"Compared and timed on {len(lengths)} others of {min(lengths)} to {max(lengths)} tokens, in batches "
        f"of {real.workload.batch}.",
    )
    for form in real_model.forms():
        _pruned(console, step, machine, real, form)
    _say(
        console,
        "Better quality",
        "`sparsebert heal` trains the weights that stay, without labels; `sparsebert optimize` searches the "
        "fastest form that keeps the quality you ask for.",
    )


def _pruned(
    console: Console,
    step: Step,
    machine: environment.Environment,
    real: real_model.RealModel,
    form: real_model.Form,
) -> None:
    name = f"{form.sparsity:.0%} {form.granularity}"
    here = _within(step, f"MiniLM, {name}")
    pruned = real.pruned(form, lambda report: here(f"pruning, {report.done:.0%}"))
    here("comparing answers")
    sparse = real_model.sparse(pruned)
    of_sparse = real.agreement(sparse, pruned.model)
    folder = FOLDER / form.folder
    sparse.save_pretrained(folder)
    real.tokenizer.save_pretrained(folder)
    of_pruned = real.agreement(pruned.model, real.model)
    by_magnitude = real.agreement(real.by_magnitude(form), real.model)
    _say(
        console,
        f"{name}, in {form.tolerance}",
        "Quality: its sentence embeddings have a mean cosine of "
        f"{of_pruned.mean_cosine:.2f} with those of the unpruned model; pruned by magnitude, "
        f"{by_magnitude.mean_cosine:.2f}. Sparse against masked dense: embeddings (unit length) differ by "
        f"at most {of_sparse.max_error:.1e}. Sparse model: {folder}, for AutoModel.from_pretrained after "
        "`import sparsebert`.",
    )
    settings = runner.Settings(budget=8, retries=1, memory=form == real_model.SINGLE_WEIGHTS)
    rows = _compared(pruned, machine, settings, here)
    console.print()
    for table in bench_tables(rows):
        console.print(table.rich(console.width))


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

    def measure(point: Point, settings: runner.Settings) -> None:
        arguments, sparsity, format, tolerance = point
        here = _within(step, f"BERT-base, {sparsity:.0%} {arguments.get('granularity', 'element')}")
        here("pruning")
        ticket = prune(dense, "magnitude", sparsity=sparsity, **arguments)
        pruned = prepare_pruned_model(
            workload, ticket, format=format, tolerance=tolerance, model=copy.deepcopy(dense)
        )
        rows.extend(_compared(pruned, machine, settings, here))

    for index, point in enumerate(_supported(TABLE)):
        measure(point, runner.Settings(budget=4, min_rounds=5, memory=index == 0, retries=1))
    console.print()
    for table in sweep_tables(rows):
        console.print(table.rich(console.width))
    for point in _supported(PICTURED):
        if time.monotonic() - start > PATIENCE:
            break
        measure(point, runner.Settings(budget=2, min_rounds=5, memory=False, retries=0))
    return rows


def _supported(points: tuple[Point, ...]) -> list[Point]:
    """Return the points whose precision this machine has units for."""
    return [point for point in points if point[-1] == "fp32" or has_engine(torch.bfloat16)]


@functools.cache
def _missing() -> dict[str, str]:
    """Return the baselines that this machine lacks, each with the reason and the remedy."""
    return {name: lack for name in BASELINES if (lack := BACKENDS[name]().available()) is not None}


def _compared(
    pruned: PrunedModel, machine: environment.Environment, settings: runner.Settings, step: Step
) -> list[results.Record]:
    """Compare the sparse model with the baselines that this machine has, and keep the records."""
    missing = _missing()
    settings = dataclasses.replace(settings, leave_out=True)
    baselines = [name for name in BASELINES if name not in missing]
    rows = runner.run(pruned, baselines, machine, settings, step, missing)
    if not pruned.workload.random_weights:
        for row in rows:
            row["workload"]["model"] = real_model.NAME
    results.append(RESULTS, rows)
    return rows


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
