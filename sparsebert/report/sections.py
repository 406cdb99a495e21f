"""What tables and pictures are made of which records: the one list, for documents and for reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sparsebert.report.aot_tables import aot_tables
from sparsebert.report.compaction_tables import compaction_tables
from sparsebert.report.environment import environment_tables
from sparsebert.report.format import Record
from sparsebert.report.gpu_plots import roofline_pictures
from sparsebert.report.gpu_tables import failure_tables, gpu_tables
from sparsebert.report.layer_tables import goal_tables, layer_tables, selection_tables, stack_tables
from sparsebert.report.lottery_plots import curve_pictures
from sparsebert.report.lottery_tables import curve_tables, learned_tables, transfer_tables
from sparsebert.report.memory_tables import memory_tables
from sparsebert.report.model_tables import bench_tables, sweep_tables, sweeps
from sparsebert.report.plots import Picture, speedup_pictures
from sparsebert.report.revision_tables import revision_tables
from sparsebert.report.run_tables import evaluation_tables, matrix_tables, run_tables
from sparsebert.report.table import Table
from sparsebert.report.ticket_tables import ticket_tables

Made = TypeVar("Made", Table, Picture)
Select = Callable[[Sequence[Record]], list[Record]]


@dataclass(frozen=True)
class Kind:
    """A kind of table: the records it is made of, and how; the pictures that belong to it."""

    name: str
    select: Select
    build: Callable[[Sequence[Record]], list[Table]]
    illustrate: Callable[[Sequence[Record]], list[Picture]] = lambda records: []

    def tables(self, records: Sequence[Record]) -> list[Table]:
        """Raises ValueError where a record lacks what a table of this kind shows."""
        return self._made(self.build, records)

    def pictures(self, records: Sequence[Record]) -> list[Picture]:
        """Raises ValueError as :meth:`tables`."""
        return self._made(self.illustrate, records)

    def _made(self, make: Callable[[Sequence[Record]], list[Made]], records: Sequence[Record]) -> list[Made]:
        try:
            own = self.select(records)
            return make(own) if own else []
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(
                f"a record for the tables of kind {self.name!r} is not as this version writes it "
                f"({type(error).__name__}: {error})"
            ) from error


def _of(*kinds: str) -> Select:
    return lambda records: [row for row in records if row["kind"] in kinds]


def _lottery(records: Sequence[Record]) -> list[Record]:
    """Those of `benchmarks.lottery`, which name the part of it that they belong to."""
    return [row for row in records if row["kind"] in ("round", "bench") and "part" in row]


def _runs(records: Sequence[Record]) -> list[Record]:
    return [row for row in _of("round", "run", "seeds")(records) if "part" not in row]


def _compaction(records: Sequence[Record]) -> list[Record]:
    """Those of `benchmarks.compaction`, whose measurements name the rule of removal."""
    return [row for row in _of("compaction", "bench")(records) if "min_row_weights" in row]


def _bench(records: Sequence[Record]) -> list[Record]:
    return [row for row in _of("bench")(records) if not row.keys() & {"part", "min_row_weights"}]


def _sweep_tables(records: Sequence[Record]) -> list[Table]:
    """Only of several tickets: of one, the table of its sides says more."""
    return sweep_tables(row for sweep in sweeps(records) for row in sweep)


def _by_machine(make: Callable[[Sequence[Record]], list[Made]]) -> Callable[[Sequence[Record]], list[Made]]:
    """One after the other: a table names one machine, and figures of two are no rows of one."""

    def made(records: Sequence[Record]) -> list[Made]:
        machines: dict[tuple[str, ...], list[Record]] = {}
        for row in records:
            machines.setdefault(_machine(row), []).append(row)
        return [each for own in machines.values() for each in make(own)]

    return made


def _machine(row: Record) -> tuple[str, ...]:
    environment = row["environment"]
    # The layers' benchmark caps the kernels of one of its cases, and says so in its name.
    kernels = "" if row["kind"] in ("layer", "layer_summary") else environment["kernels"]
    found = (environment[name] for name in ("cpu", "cores", "gpu", "onednn"))
    return (*map(str, found), str(environment["versions"]["torch"]), str(kernels))


def _reported(records: Iterable[Record]) -> list[Table]:
    return [Table.of_record(row) for row in records]


# In the order in which a report shows them: what tickets are good for, what they bring, what it rests on.
_KINDS = (
    Kind("lottery", _lottery, curve_tables, curve_pictures),
    Kind("learned", _lottery, learned_tables),
    Kind("transfer", _lottery, transfer_tables),
    Kind("runs", _runs, run_tables),
    Kind("matrix", _of("transfer"), matrix_tables),
    Kind("evaluations", _of("eval", "eval_seeds"), evaluation_tables),
    Kind("tickets", _of("prune", "prune_seeds", "convert"), ticket_tables),
    Kind("compaction", _compaction, _by_machine(compaction_tables)),
    Kind("models", _bench, _by_machine(_sweep_tables), _by_machine(speedup_pictures)),
    Kind("bench", _bench, _by_machine(bench_tables)),
    Kind("layers", _of("layer", "layer_summary"), _by_machine(layer_tables)),
    Kind("stack", _of("stack"), _by_machine(stack_tables)),
    Kind("selection", _of("selection"), _by_machine(selection_tables)),
    Kind("memory", _of("memory"), _by_machine(memory_tables)),
    Kind("revisions", _of("revision"), _by_machine(revision_tables)),
    Kind("goals", _of("goal"), _by_machine(goal_tables)),
    Kind("gpu", _of("gpu"), gpu_tables, roofline_pictures),
    Kind("gpu_failed", _of("gpu_failed"), failure_tables),
    Kind("aot", _of("aot"), aot_tables),
    Kind("environment", _of("environment"), environment_tables),
    Kind("report", _of("report"), _reported),
)
KINDS = {kind.name: kind for kind in _KINDS}


@dataclass(frozen=True)
class Section:
    """What one kind makes of some records."""

    tables: list[Table]
    pictures: list[Picture]


def sections(records: Sequence[Record]) -> list[Section]:
    """All that can be made of the records. Raises ValueError as :meth:`Kind.tables`."""
    made = (Section(kind.tables(records), kind.pictures(records)) for kind in KINDS.values())
    return [section for section in made if section.tables]


def passed_over(records: Sequence[Record]) -> list[Record]:
    """Records that no kind of table knows."""
    known = {id(row) for kind in KINDS.values() for row in kind.select(records)}
    return [row for row in records if id(row) not in known]
