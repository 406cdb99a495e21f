"""The CPU engine against its limits: `python -m benchmarks.cpu_engine [--row NAME] [--out FILE]`.

Every row of figures is measured that this CPU can measure, each in a process of its own: whole models against
the fastest dense model of any library and precision, models and layers capped to lesser instruction sets,
memory, int8 layers and serving. A figure that needs another CPU is recorded as not measured, with the reason.
`make results-cpu` appends all to `results/cpu.jsonl`.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import layers
from benchmarks.fp16_engine import ratio_to_fp32
from benchmarks.fresh_process import python_path
from benchmarks.goals import goal
from benchmarks.output import add_out_option, append, show
from sparsebert import results
from sparsebert.accounting.process_memory import resident
from sparsebert.bench import environment, memory, profile, runner
from sparsebert.bench.environment import Environment
from sparsebert.bench.operations import LINEARS
from sparsebert.bench.output_check import OutputMismatchError
from sparsebert.bench.providers import BACKENDS, BASELINES
from sparsebert.bench.providers.sparse import Sparse
from sparsebert.bench.pruned_model import PrunedModel, prepare_pruned_model
from sparsebert.bench.workload import Workload
from sparsebert.pruning import prune
from sparsebert.report.break_even import NOT_DENSE
from sparsebert.report.layer_tables import goal_tables
from sparsebert.report.model_tables import fastest_dense, machine_tables
from sparsebert_kernels.errors import one_line

MODEL, TOKENS, BATCHES = "bert-base", 128, (1, 8)
PANELS = {"granularity": "panel", "block_size": (32, 2)}
GRANULARITIES: dict[str, dict[str, Any]] = {
    "panel(32,2)": PANELS,
    "element": {"granularity": "element"},
    "4x1": {"granularity": "block", "block_size": (4, 1)},
}
# A dense baseline takes part in further comparisons if it was at most so much slower than the fastest one.
CONTENDER = 1.3
WARM_UP_REQUESTS, REQUESTS = 1000, 10_000


@dataclass(frozen=True)
class Limit:
    """A figure with what it must reach and aims at."""

    figure: str
    must: float
    aim: float
    unit: str = "x"
    at_most: bool = False


@dataclass(frozen=True)
class Measured:
    """The value of a figure."""

    value: float
    busy: bool


@dataclass
class Outcome:
    """What a row measured: figures by name, and the comparisons that failed."""

    figures: dict[str, Measured] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


# Takes the records of a comparison as soon as it ends, so that a killed run loses only the current one.
Keep = Callable[[Sequence[results.Record]], None]


def never(machine: Environment) -> str | None:
    return None


def no_amx(machine: Environment) -> str | None:
    """Return why a figure of AMX cannot be measured."""
    return None if "amx" in machine.instruction_sets else "no AMX"


def no_avx512(machine: Environment) -> str | None:
    return None if "avx512" in machine.instruction_sets else "no AVX-512"


def no_vnni(machine: Environment) -> str | None:
    return None if "avx512_vnni" in machine.isa_flags and no_avx512(machine) is None else "no AVX512-VNNI"


def no_plain_avx512(machine: Environment) -> str | None:
    """Return why a figure of CPUs with AVX-512 and without AMX cannot be measured."""
    if no_amx(machine) is None:
        return "it has AMX"
    return no_avx512(machine)


def no_fp16(machine: Environment) -> str | None:
    """Return why a figure of the fp16 engine cannot be measured."""
    return None if "avx512_fp16" in machine.isa_flags else "no AVX512-FP16"


def no_avx2(machine: Environment) -> str | None:
    return None if "avx2" in machine.instruction_sets else "no AVX2"


def no_deepsparse(machine: Environment) -> str | None:
    return BACKENDS["deepsparse"]().available()


@dataclass(frozen=True)
class Row:
    """Figures that are measured in one process.

    Attributes:
        name: Name for ``--row``.
        measure: Measures them, for seconds of rounds of each comparison, and hands on the records.
        limits: Limits of its figures, each with what says why this CPU cannot measure it.
        variables: Environment variables of the process.
        why_not: Says why this CPU cannot measure the row at all.
    """

    name: str
    measure: Callable[[Environment, float, Keep], Outcome]
    limits: Sequence[tuple[Limit, Callable[[Environment], str | None]]] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    why_not: Callable[[Environment], str | None] = never


def _subject(
    granularity: str, sparsity: float, batch: int, *, tolerance: str = "fp32", dtype: str = "float32"
) -> PrunedModel:
    workload = Workload(MODEL, batch, (TOKENS,) * batch, dtype)
    model = workload.load_model()
    ticket = prune(model, "magnitude", sparsity=sparsity, **GRANULARITIES[granularity])
    return prepare_pruned_model(workload, ticket, model=model, tolerance=tolerance)


# (granularity, sparsity, tolerance), of which the first meets every dense baseline.
CASES = (
    ("element", 0.90, "fp32"),
    ("4x1", 0.90, "fp32"),
    ("panel(32,2)", 0.90, "bf16"),
    ("element", 0.90, "bf16"),
    ("element", 0.95, "bf16"),
)


def case_name(granularity: str, sparsity: float, tolerance: str, batch: int, against: str) -> str:
    return f"BERT-base, batch {batch}, {granularity} {sparsity:.0%}, {tolerance}, against {against}"


def models(batch: int, machine: Environment, budget: float, keep: Keep) -> Outcome:
    """Compare whole models with every dense baseline, then with those that were fast."""
    outcome = Outcome()
    missing = {name: lack for name in BASELINES if (lack := BACKENDS[name]().available())}
    baselines = [name for name in BASELINES if name not in missing]
    for granularity, sparsity, tolerance in CASES:
        try:
            pruned = _subject(granularity, sparsity, batch, tolerance=tolerance)
            settings = runner.Settings(budget=budget, memory=False, leave_out=True)
            rows = runner.run(pruned, baselines, machine, settings, missing=missing)
        except (OutputMismatchError, RuntimeError, ValueError) as error:
            outcome.failures.append(f"batch {batch}, {granularity} {sparsity:.0%}: {one_line(error)}")
            continue
        keep(rows)
        baselines = [name for name in baselines if name in _contenders(rows)]
        ours, fastest = rows[0], fastest_dense(rows)
        against = {
            "oneDNN fp32": "onednn",
            "DeepSparse 1.8.0": "deepsparse",
            "the fastest dense": fastest,
        }
        for label, name in against.items():
            if name in ours["ratio"]:
                figure = case_name(granularity, sparsity, tolerance, batch, label)
                outcome.figures[figure] = Measured(ours["ratio"][name]["median"], ours["busy"])
                _say(f"{figure}: {ours['ratio'][name]['median']:.2f}x of {name}")
    return outcome


def _contenders(rows: Sequence[results.Record]) -> set[str]:
    """Return the baselines for further comparisons: the main ones and the fastest dense ones."""
    seconds = {row["provider"]: row["latency_ms"]["median"] for row in rows if row["provider"] != "sparse"}
    least = min(value for name, value in seconds.items() if name not in NOT_DENSE)
    fast = {name for name, value in seconds.items() if value <= CONTENDER * least and name not in NOT_DENSE}
    return fast | {"onednn", "deepsparse"}


def capped_models(machine: Environment, budget: float, keep: Keep) -> Outcome:
    """Compare whole models with torch's own dense forms, all capped by the variables of the row."""
    for batch in BATCHES:
        pruned = _subject("element", 0.90, batch)
        settings = runner.Settings(budget=budget, memory=False)
        keep(runner.run(pruned, ["onednn", "eager"], machine, settings))
    return Outcome()


def capped_layers(machine: Environment, budget: float, keep: Keep) -> Outcome:
    """Time single fp32 layers against oneDNN, both without AMX."""
    cases = [case for case in layers.CASES if case.name in ("element fp32 90 %", "4x1 fp32 90 %")]
    rows = layers.run(cases, quick=False, budget=min(budget, 0.6))
    keep(rows)
    outcome = Outcome()
    for row in rows:
        if row["kind"] == "layer_summary":
            name = f"fp32 linears without AMX, {row['case'].replace(' fp32', '')}, against oneDNN fp32"
            outcome.figures[name] = Measured(row["geomean"], row["busy_cells"] > 0)
    return outcome


def amx_linears(machine: Environment, budget: float, keep: Keep) -> Outcome:
    """Compare the linear layers of a fused model with oneDNN's in bf16, layout as the encoder has it."""
    outcome = Outcome()
    for tokens, batch in ((128, 1), (512, 4)):
        pruned = _subject("panel(32,2)", 0.90, batch, tolerance="bf16")
        rows = profile.run(pruned, machine, runner.Settings(budget=budget))
        keep(rows)
        seconds = {row["side"]: sum(row["parts_ms"][part] for part in set(LINEARS)) for row in rows}
        ratio = seconds["dense, oneDNN bf16"] / seconds["sparse, fused"]
        outcome.figures[AMX_LINEARS.format(tokens)] = Measured(ratio, rows[0]["busy"])
    return outcome


def fp16_engine(machine: Environment, budget: float, keep: Keep) -> Outcome:
    """Time models of single weights in the fp16 engine and in the fp32 engine, in alternation."""
    outcome = Outcome()
    for batch in BATCHES:
        figure = FP16_ENGINE.format(batch)
        try:
            ratio, busy = ratio_to_fp32(_subject("element", 0.90, batch), budget)
        except RuntimeError as error:
            outcome.failures.append(f"{figure}: {error}")
            continue
        outcome.figures[figure] = Measured(ratio, busy)
        _say(f"{figure}: {ratio:.2f}x")
    return outcome


def peak_memory(machine: Environment, budget: float, keep: Keep) -> Outcome:
    """Measure the memory of inference in a fresh process: weights and embeddings in bf16, batch 8."""
    pruned = _subject("panel(32,2)", 0.90, 8, tolerance="bf16", dtype="bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        ticket = Path(folder) / "ticket.safetensors"
        pruned.ticket.save(ticket)
        held = memory.measure(runner.memory_spec(pruned, "sparse", ticket))
    megabytes = held.record()["running_over_baseline"] / 1e6
    return Outcome(figures={PEAK: Measured(megabytes, busy=False)})


@torch.inference_mode()
def growth(machine: Environment, budget: float, keep: Keep) -> Outcome:
    """Measure how much a process grows over requests of random lengths."""
    pruned = _subject("panel(32,2)", 0.90, 1, tolerance="bf16", dtype="bfloat16")
    model = Sparse().convert(pruned.model.to(torch.bfloat16), pruned)
    lengths, vocabulary = random.Random(0), pruned.model.config.vocab_size
    held = []
    for requests in (WARM_UP_REQUESTS, REQUESTS):
        for _ in range(requests):
            model(torch.randint(1000, vocabulary, (1, lengths.randint(1, TOKENS))))
        held.append(resident())
    return Outcome(figures={GROWTH: Measured((held[1] - held[0]) // 2**20, busy=False)})


AMX_LINEARS = "linears of BERT-base, panel(32,2) 90%, {} tokens, against oneDNN bf16"
FP16_ENGINE = "BERT-base, batch {}, element 90%, fp16 engine against the fp32 engine"
PEAK = "memory of inference, BERT-base, batch 8, panel(32,2) 90%, bf16"
GROWTH = f"growth over {REQUESTS:,} requests of random length"


def _model_limits(batch: int) -> Iterator[tuple[Limit, Callable[[Environment], str | None]]]:
    index = BATCHES.index(batch)
    for case, against, musts, aims, why_not in (
        (("panel(32,2)", 0.90, "bf16"), "the fastest dense", (4, 3), (7, 4.5), no_amx),
        (("element", 0.90, "bf16"), "the fastest dense", (1.6, 1.2), (1.9, 1.4), no_amx),
        (("element", 0.95, "bf16"), "the fastest dense", (2.2, 1.8), (2.8, 2.2), no_amx),
        (("element", 0.90, "fp32"), "oneDNN fp32", (5.5, 5.5), (7, 7), no_plain_avx512),
        (("element", 0.90, "fp32"), "the fastest dense", (1.5, 1.5), (2.2, 2.2), no_plain_avx512),
        (("element", 0.90, "fp32"), "DeepSparse 1.8.0", (1.3, 1.2), (1.6, 1.4), no_deepsparse),
    ):
        yield Limit(case_name(*case, batch, against), musts[index], aims[index]), why_not


ROWS = (
    *(
        Row(f"models, batch {batch}", functools.partial(models, batch), tuple(_model_limits(batch)))
        for batch in BATCHES
    ),
    Row(
        "linears without AMX",
        capped_layers,
        (
            (Limit("fp32 linears without AMX, element 90 %, against oneDNN fp32", 4.5, 5.5), no_avx512),
            (Limit("fp32 linears without AMX, 4x1 90 %, against oneDNN fp32", 7, 8), no_avx512),
        ),
        {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "SPARSEBERT_ISA": "avx512"},
        no_avx512,
    ),
    Row(
        "models without AMX",
        capped_models,
        variables={"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "SPARSEBERT_ISA": "avx512"},
        why_not=no_avx512,
    ),
    Row(
        "models on AVX2",
        capped_models,
        variables={
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "SPARSEBERT_ISA": "avx2",
            "ATEN_CPU_CAPABILITY": "avx2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        },
        why_not=no_avx2,
    ),
    Row(
        "linears on AMX",
        amx_linears,
        (
            (Limit(AMX_LINEARS.format(128), 6, 8), no_amx),
            (Limit(AMX_LINEARS.format(512), 4, 6), no_amx),
        ),
        why_not=no_amx,
    ),
    Row(
        "fp16 engine",
        fp16_engine,
        # It is taken where it is faster. Its instructions do twice the work of those in fp32.
        tuple((Limit(FP16_ENGINE.format(batch), 1, 2), no_fp16) for batch in BATCHES),
        why_not=no_fp16,
    ),
    Row("memory", peak_memory, ((Limit(PEAK, 140, 110, "MB", at_most=True), never),)),
    Row("growth", growth, ((Limit(GROWTH, 0, 0, "MiB", at_most=True), never),)),
)


# Benchmarks of their own with further figures of the engine, and what says why this CPU cannot run them.
COMPANIONS: dict[str, tuple[str, Callable[[Environment], str | None]]] = {
    "int8 linears": ("benchmarks.int8_layers", no_vnni),
    "serving": ("benchmarks.serving", never),
}


def judged(row: Row, machine: Environment, outcome: Outcome) -> Iterator[results.Record]:
    """Yield a goal record for each limit of a row."""
    for limit, why_not in row.limits:
        arguments: dict[str, Any] = {
            "must": limit.must,
            "aim": limit.aim,
            "unit": limit.unit,
            "at_most": limit.at_most,
            "environment": machine.record(),
        }
        reason = row.why_not(machine) or why_not(machine)
        measured = outcome.figures.get(limit.figure)
        if reason is None and measured is not None:
            yield goal(limit.figure, measured.value, busy=measured.busy, **arguments)
        else:
            yield goal(limit.figure, None, reason=reason or "its measurement failed", **arguments)


def run_apart(
    module: str, arguments: Sequence[str], out: Path, variables: Mapping[str, str] | None = None
) -> str | None:
    """Run ``python -m module`` with records into ``out``; return why it failed, or None."""
    command = [sys.executable, "-m", module, *arguments, "--out", str(out)]
    everything = {**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1", **(variables or {})}
    done = subprocess.run(
        command, env=everything, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    lines = [line for line in done.stderr.strip().splitlines() if line]
    for line in lines:
        if line.startswith(_SAID):
            print(line.removeprefix(_SAID), file=sys.stderr)
    return None if done.returncode == 0 else (lines[-1] if lines else f"exit code {done.returncode}")


def _read(out: Path) -> list[results.Record]:
    return results.read(out) if out.exists() else []


_SAID = "| "


def _say(line: str) -> None:
    print(_SAID + line, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Return exit code 0, or 1 if a row could not be measured although this CPU can."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [row.name for row in ROWS]
    parser.add_argument(
        "--row", action="append", choices=[*names, *COMPANIONS], help="measure only this row; repeatable"
    )
    parser.add_argument("--in-process", choices=names, help=argparse.SUPPRESS)
    parser.add_argument(
        "--budget", type=float, default=15.0, help="seconds of timed rounds for each comparison"
    )
    add_out_option(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    machine = environment.detect()
    if options.in_process:
        row = next(row for row in ROWS if row.name == options.in_process)
        outcome = row.measure(machine, options.budget, functools.partial(append, options.out))
        append(options.out, list(judged(row, machine, outcome)))
        print("; ".join(outcome.failures), file=sys.stderr)
        return int(bool(outcome.failures))
    failures: dict[str, str] = {}
    records: list[results.Record] = []
    selected = options.row or [*names, *COMPANIONS]
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder) / "records.jsonl"
        for name in selected:
            before = len(_read(out))
            row = next((row for row in ROWS if row.name == name), None)
            reason = row.why_not(machine) if row else COMPANIONS[name][1](machine)
            if reason is not None:
                print(f"{name}: not measured on this CPU ({reason})", file=sys.stderr)
            else:
                print(f"measuring {name}", file=sys.stderr)
                if row:
                    arguments = ["--in-process", name, "--budget", str(options.budget)]
                    failure = run_apart("benchmarks.cpu_engine", arguments, out, row.variables)
                else:
                    failure = run_apart(COMPANIONS[name][0], [], out)
                if failure:
                    failures[name] = failure
            measured = _read(out)[before:]
            if row and not any(record["kind"] == "goal" for record in measured):
                append(out, missing := list(judged(row, machine, Outcome())))
                measured += missing
            records += measured
    show([*machine_tables(records), *goal_tables(records)])
    for name, failure in failures.items():
        print(f"{name} failed: {failure}", file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
