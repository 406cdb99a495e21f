"""The kinds of tables and plots, and the records that each is made of, for documents and reports."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sparsebert.report.aot_tables import aot_tables
from sparsebert.report.arena_tables import arena_pictures, arena_tables
from sparsebert.report.compaction_tables import compaction_tables
from sparsebert.report.cpu_roofline import cpu_roofline_tables
from sparsebert.report.cpu_roofline_plots import cpu_roofline_pictures
from sparsebert.report.early_bird_plots import early_bird_pictures
from sparsebert.report.environment import environment_tables
from sparsebert.report.experiment_tables import experiment_tables
from sparsebert.report.format import Record, machine_key, record_errors
from sparsebert.report.front_plots import front_pictures, front_tables
from sparsebert.report.gpu_plots import roofline_pictures
from sparsebert.report.gpu_tables import failure_tables, gpu_tables
from sparsebert.report.healing_tables import healing_tables
from sparsebert.report.inspect_plots import MOST_DRAWN, inspect_pictures
from sparsebert.report.inspect_tables import inspect_tables
from sparsebert.report.layer_tables import (
    goal_tables,
    int8_tables,
    layer_tables,
    selection_tables,
    stack_tables,
)
from sparsebert.report.layernorm_tables import layernorm_tables
from sparsebert.report.lottery_plots import curve_pictures
from sparsebert.report.lottery_tables import curve_tables, learned_tables, transfer_tables
from sparsebert.report.memory_tables import memory_tables
from sparsebert.report.model_tables import bench_tables, machine_tables, sweep_tables, sweeps
from sparsebert.report.one_shot_tables import one_shot_tables
from sparsebert.report.optimize_tables import optimize_tables
from sparsebert.report.picture import Picture
from sparsebert.report.profile_tables import profile_pictures, profile_tables
from sparsebert.report.request_tables import request_tables
from sparsebert.report.resource_tables import has_resources, resource_tables
from sparsebert.report.revision_tables import revision_tables
from sparsebert.report.robustness_tables import robustness_tables
from sparsebert.report.roofline_plots import modelled_pictures
from sparsebert.report.roofline_tables import roofline_tables
from sparsebert.report.run_cost_plots import cost_pictures
from sparsebert.report.run_plots import run_pictures
from sparsebert.report.run_tables import evaluation_tables, matrix_tables, run_tables
from sparsebert.report.serving_tables import line_pictures, serving_tables
from sparsebert.report.speed_budget_tables import speed_budget_tables
from sparsebert.report.speedup_plots import speedup_pictures
from sparsebert.report.start_benchmark import benchmark_start_pictures, benchmark_start_tables
from sparsebert.report.table import Table
from sparsebert.report.ticket_tables import ticket_tables

Made = TypeVar("Made", Table, Picture)
Select = Callable[[Sequence[Record]], list[Record]]
# Headings of a page; where there is none, the name of the kind serves.
_HEADINGS = {
    "front": "Quality against speed and bytes",
    "lottery": "Tickets over sparsity",
    "learned": "Learned and structured tickets",
    "transfer": "Tickets on other tasks",
    "start": "Starting from a ticket",
    "runs": "Training runs",
    "matrix": "Transfer between tasks",
    "evaluations": "Evaluations",
    "inspect": "Where the weights stay",
    "arena": "Quality and speed of every form",
    "optimize": "Search of the fastest form",
    "models": "Speed against sparsity",
    "machines": "Machines side by side",
    "bench": "Single tickets against dense baselines",
    "profile": "Where the time goes",
    "cpu_roofline": "Roofline of the CPU, measured",
    "layers": "Single layers",
    "int8_layers": "Single layers in int8",
    "stack": "Feed-forward stacks",
    "selection": "Selection of weights",
    "memory": "Memory of training",
    "requests": "Requests of random lengths",
    "one-shot": "One-shot pruning",
    "speed_budgets": "Pruning for a speed",
    "gpu": "GPU kernels, measured",
    "gpu_failed": "GPU kernels that failed",
    "roofline": "GPU kernels, modelled",
    "layernorm": "LayerNorm folded into products",
    "aot": "GPU kernels, compiled ahead of time",
    "environment": "Machines",
    "report": "Tables of earlier reports",
}


@dataclass(frozen=True)
class Kind:
    """A kind of table.

    Attributes:
        name: Name in the markers of documents.
        select: Selects its records.
        build: Makes tables of the selected records.
        illustrate: Makes pictures of the selected records.
    """

    name: str
    select: Select
    build: Callable[[Sequence[Record]], list[Table]]
    illustrate: Callable[[Sequence[Record]], list[Picture]] = lambda records: []

    @property
    def heading(self) -> str:
        """Its heading on a page."""
        return _HEADINGS.get(self.name) or self.name.replace("_", " ").capitalize()

    def tables(self, records: Sequence[Record]) -> list[Table]:
        """Return the tables of this kind.

        Raises:
            ValueError: A record lacks a field, or a field has another type.
        """
        return self._made(self.build, records)

    def pictures(self, records: Sequence[Record]) -> list[Picture]:
        """Return the pictures of this kind; raises like ``tables``."""
        return self._made(self.illustrate, records)

    def _made(self, make: Callable[[Sequence[Record]], list[Made]], records: Sequence[Record]) -> list[Made]:
        with record_errors(f"a record for the tables of kind {self.name!r}"):
            selected = self.select(records)
            return make(selected) if selected else []


def _of(*kinds: str) -> Select:
    return lambda records: [row for row in records if row["kind"] in kinds]


def _lottery(records: Sequence[Record]) -> list[Record]:
    """Select the records of ``benchmarks.lottery``, which name a part of it."""
    return [row for row in records if row["kind"] in ("round", "bench") and "part" in row]


def _runs(records: Sequence[Record]) -> list[Record]:
    return [row for row in _of("round", "run", "seeds")(records) if "part" not in row]


def _compaction(records: Sequence[Record]) -> list[Record]:
    """Select the records of ``benchmarks.compaction``, which name the least number of weights in a row."""
    return [row for row in _of("compaction", "bench")(records) if "min_row_weights" in row]


def _bench(records: Sequence[Record]) -> list[Record]:
    return [row for row in _of("bench")(records) if not row.keys() & {"part", "min_row_weights"}]


def _resources(records: Sequence[Record]) -> list[Record]:
    return [row for row in records if "part" not in row and has_resources(row)]


def _sweep_tables(records: Sequence[Record]) -> list[Table]:
    """Make sweep tables for workloads with several tickets; bench tables show single tickets better."""
    return sweep_tables(row for sweep in sweeps(records) for row in sweep)


def _by_machine(make: Callable[[Sequence[Record]], list[Made]]) -> Callable[[Sequence[Record]], list[Made]]:
    """Call ``make`` for each machine separately, because a table names a single machine."""

    def made(records: Sequence[Record]) -> list[Made]:
        machines: dict[tuple[str, ...], list[Record]] = {}
        for row in records:
            machines.setdefault(machine_key(row), []).append(row)
        return [each for rows in machines.values() for each in make(rows)]

    return made


def _pictures_of_runs(records: Sequence[Record]) -> list[Picture]:
    return [*run_pictures(records), *early_bird_pictures(records), *cost_pictures(records)]


def _reported(records: Iterable[Record]) -> list[Table]:
    return [Table.of_record(row) for row in records]


# In the order of a report: accuracy against speed, accuracy of tickets, their speed, then the figures behind
# both.
_KINDS = (
    Kind("experiments", _of("experiment"), experiment_tables),
    Kind("front", _of("round", "eval", "bench", "arena"), front_tables, front_pictures),
    Kind("lottery", _lottery, curve_tables, curve_pictures),
    Kind("learned", _lottery, learned_tables, early_bird_pictures),
    Kind("transfer", _lottery, transfer_tables),
    Kind("start", _lottery, benchmark_start_tables, benchmark_start_pictures),
    Kind("runs", _runs, run_tables, _pictures_of_runs),
    Kind("matrix", _of("transfer"), matrix_tables),
    Kind("evaluations", _of("eval", "eval_seeds"), evaluation_tables),
    Kind("robustness", _of("robustness"), robustness_tables),
    Kind("tickets", _of("prune", "prune_seeds", "convert"), ticket_tables),
    Kind(
        "inspect",
        _of("inspect", "inspect_survivors", "inspect_overlap"),
        inspect_tables,
        functools.partial(inspect_pictures, most=MOST_DRAWN),
    ),
    Kind("healing", _of("heal"), healing_tables),
    Kind("compaction", _compaction, _by_machine(compaction_tables)),
    Kind("arena", _of("arena"), _by_machine(arena_tables), _by_machine(arena_pictures)),
    Kind("optimize", _of("optimize"), _by_machine(optimize_tables)),
    Kind("models", _bench, _by_machine(_sweep_tables), _by_machine(speedup_pictures)),
    Kind("machines", _bench, machine_tables),
    Kind("bench", _bench, _by_machine(bench_tables)),
    Kind("profile", _of("profile"), _by_machine(profile_tables), _by_machine(profile_pictures)),
    Kind("cpu_roofline", _of("profile"), cpu_roofline_tables, cpu_roofline_pictures),
    Kind("layers", _of("layer", "layer_summary"), _by_machine(layer_tables)),
    Kind("int8_layers", _of("int8_layer"), _by_machine(int8_tables)),
    Kind("stack", _of("stack"), _by_machine(stack_tables)),
    Kind("selection", _of("selection"), _by_machine(selection_tables)),
    Kind("memory", _of("memory"), _by_machine(memory_tables)),
    Kind("requests", _of("request_memory", "request_time"), _by_machine(request_tables)),
    Kind("one-shot", _of("one_shot"), one_shot_tables),
    Kind("speed_budgets", _of("speed_budget"), speed_budget_tables),
    Kind("serving", _of("serving"), _by_machine(serving_tables), _by_machine(line_pictures)),
    Kind("revisions", _of("revision"), _by_machine(revision_tables)),
    Kind("resources", _resources, _by_machine(resource_tables)),
    Kind("goals", _of("goal"), _by_machine(goal_tables)),
    Kind("gpu", _of("gpu"), gpu_tables, roofline_pictures),
    Kind("gpu_failed", _of("gpu_failed", "gpu_killed"), failure_tables),
    Kind("roofline", _of("roofline"), roofline_tables, modelled_pictures),
    Kind("layernorm", _of("layernorm_folding"), _by_machine(layernorm_tables)),
    Kind("aot", _of("aot"), aot_tables),
    Kind("environment", _of("environment"), environment_tables),
    Kind("report", _of("report"), _reported),
)
KINDS = {kind.name: kind for kind in _KINDS}


@dataclass(frozen=True)
class Section:
    """Tables and pictures of one kind, and their heading on a page."""

    tables: list[Table]
    pictures: list[Picture]
    title: str = "Results"


def sections(records: Sequence[Record]) -> list[Section]:
    """Return the sections of all kinds that have tables; raises like ``Kind.tables``."""
    made = (Section(kind.tables(records), kind.pictures(records), kind.heading) for kind in KINDS.values())
    return [section for section in made if section.tables]


def passed_over(records: Sequence[Record]) -> list[Record]:
    """Return the records that belong to no kind of table."""
    used = {id(row) for kind in KINDS.values() for row in kind.select(records)}
    return [row for row in records if id(row) not in used]
