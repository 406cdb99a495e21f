"""The fastest form of a model: `python -m benchmarks.arena [PART ...] [--quick] [--out FILE]`.

Two parts, on sentences of SST-2 and MRPC in the folder that SPARSEBERT_DATA names:

- minilm: MiniLM's embeddings, judged by their cosine to the dense ones. `optimize` for each `--keep`, then
  the arena of all dense libraries, sparsebert's dense engines and the optimized folders;
- classifier: the same for an SST-2 classifier that was trained dense (`--classifier FOLDER`), judged by its
  accuracy on SST-2's dev set.

Folders are written to `--work`, and those that are there are not searched for again: a benchmark that was
killed goes on. A part whose data or model is missing is skipped; standard error says why.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.output import add_out_option, append, show
from sparsebert import optimize, results
from sparsebert.bench import arena
from sparsebert.bench.environment import detect
from sparsebert.bench.judged_texts import LabelledRows, prepare_judged_texts
from sparsebert.bench.providers import BACKENDS
from sparsebert.bench.runner import Settings
from sparsebert.bench.workload import hush_transformers
from sparsebert.cli.path_checks import require_picture
from sparsebert.demo.real_model import NAME, weights_folder
from sparsebert.report.arena_tables import arena_figure, arena_tables, comparisons
from sparsebert.report.optimize_tables import optimize_tables
from sparsebert.report.plots import save_figure
from sparsebert.tasks import load
from sparsebert.workflows.optimize import GRANULARITIES, RECORDS

BASELINES = (
    "onednn",
    "eager",
    "bf16",
    "compile-freezing",
    "compile-freezing-bf16",
    "torch-int8",
    "torchao-int8",
    "inductor-int8",
    "onnxruntime",
    "onnxruntime-int8",
    "openvino",
    "openvino-bf16",
    "openvino-int8",
)
PARTS = ("minilm", "classifier")


class Skipped(Exception):
    """A part cannot run; the message says why."""


def run_part(part: str, options: argparse.Namespace, sentences: Sequence[str]) -> list[results.Record]:
    """Optimize a model for each bound, compare all forms, and return the records."""
    model, labels = _model(part, options)
    work = options.work / part
    work.mkdir(parents=True, exist_ok=True)
    shared: dict[str, Any] = {"labels": labels, "batch": options.batch, "threads": options.threads}
    rows, folders = [], []
    for keep in options.keep:
        folder = work / f"keep-{keep:g}"
        if not folder.exists():
            optimize(
                model,
                sentences,
                keep=keep,
                out=folder,
                granularities=options.granularities,
                heal_minutes=options.heal_minutes,
                budget=options.budget,
                on_step=_say,
                **shared,
            )
        rows += results.read(folder / RECORDS)
        folders.append(folder)
    judged = prepare_judged_texts(model, sentences, **shared)
    missing = {name: reason for name in options.vs if (reason := BACKENDS[name]().available())}
    rows += arena.run(
        judged,
        [name for name in options.vs if name not in missing],
        detect(),
        Settings(budget=10 * options.budget),
        also=folders,
        task=labels.task if labels else None,
        on_step=_say,
        missing=missing,
    )
    return rows


def _model(part: str, options: argparse.Namespace) -> tuple[str, LabelledRows | None]:
    """Return the folder of the dense model, and the labels that judge it."""
    if part == "classifier":
        if options.classifier is None:
            raise Skipped("--classifier names no folder of a trained SST-2 classifier")
        data = load("sst2", _data(), train=False)
        return str(options.classifier), LabelledRows(data.task, data.validation["validation"])
    try:
        source = weights_folder()
    except ValueError as error:
        raise Skipped(str(error)) from None
    folder = options.work / NAME  # by its own name in tables
    if not folder.exists():
        shutil.copytree(source, folder)
    return str(folder), None


def _sentences() -> list[str]:
    """Return the sentences of SST-2's dev set and of MRPC's training set."""
    sst2, mrpc = load("sst2", _data(), train=False), load("mrpc", _data())
    rows = [*sst2.validation["validation"], *mrpc.train]
    return [text for row in rows for text in row.texts]  # type: ignore[union-attr]


def _data() -> str:
    folder = os.environ.get("SPARSEBERT_DATA")
    if not folder:
        raise Skipped("SPARSEBERT_DATA names no folder of task data")
    return folder


def _say(step: str) -> None:
    print(step, file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, append its records to ``--out`` and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arena", description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all if omitted")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.99, 0.97], help="bounds on quality")
    parser.add_argument(
        "--vs", nargs="*", default=list(BASELINES), help="dense baselines, the main one first"
    )
    parser.add_argument("--granularities", nargs="*", default=list(GRANULARITIES))
    parser.add_argument("--heal-minutes", type=float, default=0.0, help="as for sparsebert optimize")
    parser.add_argument("--classifier", type=Path, help="folder of a trained SST-2 classifier")
    parser.add_argument("--batch", type=int, default=8, help="texts per batch")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--budget", type=float, default=3.0, help="seconds of each timing")
    parser.add_argument("--work", type=Path, default=Path("build/arena"), help="folder for models")
    parser.add_argument("--quick", action="store_true", help="a smoke test: few forms, short timings")
    parser.add_argument("--plot", type=Path, help="picture of each part: NAME-minilm.png for NAME.png")
    add_out_option(parser)
    options = parser.parse_args(arguments)
    if options.plot is not None:
        require_picture("--plot", options.plot)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part {min(unknown)}; known: {', '.join(PARTS)}")
    if options.quick:
        options.vs, options.granularities, options.keep, options.budget = ["onednn"], ["element"], [0.9], 0.1
    hush_transformers()
    for part in options.parts or PARTS:
        try:
            rows = run_part(part, options, _sentences())
        except Skipped as reason:
            print(f"skipped {part}: {reason}", file=sys.stderr)
            continue
        append(options.out, rows)
        if options.plot is not None:
            (compared,) = comparisons(rows)
            save_figure(arena_figure(compared), options.plot.with_stem(f"{options.plot.stem}-{part}"))
        show([*optimize_tables(rows), *arena_tables(rows)])


if __name__ == "__main__":
    main()
