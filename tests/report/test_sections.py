"""Which tables are made of which records: each once, and no figures of two machines in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsebert.report.render_docs import DOCUMENTS
from sparsebert.report.sections import KINDS, passed_over, sections
from sparsebert.results import read
from tests.report.test_lottery_tables import DENSE, rounds
from tests.report.test_run_tables import rounds as run

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def titles(records: list[Any]) -> list[str]:
    return [table.title for section in sections(records) for table in section.tables]


def goal(environment: Any, name: str, value: float) -> dict[str, Any]:
    fields = {
        "kind": "goal",
        "environment": environment,
        "goal": name,
        "value": value,
        "unit": "x",
        "must": 1,
    }
    return fields | {"aim": 2, "at_most": False, "passed": True, "busy": False}


def test_rounds_of_the_lottery_stand_in_its_tables_alone_and_those_of_runs_in_theirs() -> None:
    lottery = [*DENSE, *rounds("imp", 0.7, [0.81]), *rounds("imp", 0.7, [0.5], part="transfer", task="cola")]
    assert titles(lottery) == ["Tickets of tiny on sst2", "Tickets of tiny at 70%, trained on other tasks"]
    assert titles(run("imp", [0.5], [0.8])) == ["Rounds: tiny on sst2, imp, element"]
    assert len(titles([*lottery, *run("imp", [0.5], [0.8])])) == 3


def test_tickets_without_dense_runs_have_no_verdict() -> None:
    ((table,),) = (section.tables for section in sections(rounds("smp-s", 0.7, [0.81], part="learned")))
    assert table.rows[0][:3] == ("SMP-S 70%", "81.0", "-")


def test_measurements_of_removal_and_of_the_lottery_are_no_runs_of_bench(bench_record: Any) -> None:
    beside = [bench_record(min_row_weights=0), bench_record(part="curve", label="imp")]
    assert sections(beside) == []
    assert passed_over(beside) == []


def test_several_tickets_of_a_workload_stand_side_by_side_before_their_own_tables(bench_record: Any) -> None:
    workload = "bert-base, random weights, batch 1, 128 tokens, float32, 1 thread"
    single = f"90.0% element-sparse (density 10.0%): {workload}"
    assert titles([bench_record(0.9)]) == [single]
    models, bench = sections([bench_record(0.9), bench_record(0.7)])
    assert [table.title for table in models.tables] == [workload]
    assert [table.title for table in bench.tables] == [
        single,
        f"70.0% element-sparse (density 30.0%): {workload}",
    ]
    assert [len(section.pictures) for section in (models, bench)] == [1, 0]


def test_figures_of_two_machines_do_not_share_a_table(bench_record: Any) -> None:
    here = bench_record()["environment"]
    there = here | {"cores": here["cores"] + 1}
    rows = [goal(here, "a", 1.5), goal(there, "a", 2.5), goal(here, "b", 1.0)]
    tables = [table for section in sections(rows) for table in section.tables]
    assert [[row[1] for row in table.rows] for table in tables] == [["1.5 x", "1 x"], ["2.5 x"]]
    assert tables[0].notes != tables[1].notes


def test_a_record_of_another_shape_is_refused_in_one_line(bench_record: Any) -> None:
    row = {name: value for name, value in bench_record().items() if name != "workload"}
    with pytest.raises(
        ValueError, match=r"^a record for the tables of kind 'bench' is not as .*'workload'\)$"
    ):
        KINDS["bench"].tables([row])


@pytest.mark.parametrize("change", [{"metrics": [0.5]}, {"seconds": None}, {"search": [{}]}])
def test_and_so_is_one_with_values_of_other_types(change: dict[str, Any]) -> None:
    rows = [row | change for row in run("imp", [0.5], [0.8])]
    with pytest.raises(ValueError, match=r"^a record for the tables of kind 'runs' is not as "):
        sections(rows)


def test_records_of_unknown_kinds_are_told() -> None:
    strange = {"kind": "trial"}
    assert passed_over([strange, *DENSE]) == [strange]


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.jsonl")), ids=lambda file: file.stem)
def test_every_record_of_ours_has_a_table_and_no_table_is_there_twice(file: Path) -> None:
    records = read(file)
    assert passed_over(records) == []
    made = [table for section in sections(records) for table in section.tables]
    assert made
    assert len(set(made)) == len(made)


def test_documents_name_known_kinds() -> None:
    marked = [
        word
        for document in DOCUMENTS
        for word in (RESULTS.parents[1] / document).read_text().split("<!-- results: ")[1:]
    ]
    assert {each.split()[0] for each in marked} <= {*KINDS, "text"}
