"""Tables say where they compare runs on other data or from other weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsebert.report.fingerprint_notes import fingerprint_notes
from sparsebert.report.model_tables import sweep_tables
from sparsebert.report.run_tables import evaluation_tables, matrix_tables, run_tables
from tests.report.test_run_tables import rounds

READ = {"train": f"sha256:{'a' * 64}", "model": f"sha256:{'b' * 64}"}
OTHER = READ | {"train": f"sha256:{'c' * 64}"}


def notes_of(table: Any) -> str:
    return "\n".join(table.notes)


def test_runs_on_other_data_are_told_apart_by_name() -> None:
    tables = run_tables(
        [
            *rounds("imp", [0.5], [0.8], fingerprints=READ),
            *rounds("random", [0.5], [0.7], fingerprints=OTHER),
            *rounds("dense", [0.0], [0.9]),
        ]
    )
    different = "aaaaaaaa (imp, seed 1), cccccccc (random, seed 1)"
    assert f"Rows differ in their training data, by fingerprint: {different}." in tables[0].notes
    assert "models" not in notes_of(tables[0])


def test_runs_on_the_same_data_need_no_note() -> None:
    both = [rounds(method, [0.5], [0.8], fingerprints=READ) for method in ("imp", "random")]
    (table,) = run_tables([row for run in both for row in run])
    assert "Rows differ" not in notes_of(table)


def test_a_transfer_matrix_compares_the_cells_of_a_task() -> None:
    def cell(source: str, task: str, read: dict[str, str]) -> dict[str, Any]:
        fields = {"source": source, "task": task, "model": "tiny", "metric": "accuracy", "sparsity": 0.5}
        return fields | {"seeds": [1], "values": [0.8], "mean": 0.8, "std": None, "fingerprints": read}

    (table,) = matrix_tables(
        [cell("dense", "sst2", READ), cell("mnli", "sst2", OTHER), cell("dense", "cola", OTHER)]
    )
    assert "sst2: Rows differ in their training data" in notes_of(table)
    assert "cola" not in notes_of(table)


def test_evaluated_models_differ_but_their_data_should_not() -> None:
    def evaluated(seed: int, digit: str) -> dict[str, Any]:
        read = {"model": f"sha256:{seed}", "validation": f"sha256:{digit * 64}"}
        fields = {"kind": "eval", "task": "sst2", "model": "tiny", "seed": seed, "sparsity": 0.5}
        return fields | {"metrics": {"accuracy": 0.8}, "fingerprints": read}

    (same,) = evaluation_tables([evaluated(1, "a"), evaluated(2, "a")])
    (different,) = evaluation_tables([evaluated(1, "a"), evaluated(2, "b")])
    assert not same.notes
    assert "Rows differ in their validation data" in notes_of(different)


def test_tickets_of_another_model_of_the_same_name(bench_record: Callable[..., Any]) -> None:
    records = [
        bench_record(0.9, fingerprints=READ),
        bench_record(0.8, fingerprints=READ | {"model": "sha256:d"}),
    ]
    (table,) = sweep_tables(records)
    assert (
        "Rows differ in their models, by fingerprint: d (80% element fp32), bbbbbbbb (90% element"
        in notes_of(table)
    )


def test_many_names_are_cut() -> None:
    rows = [{"name": str(number), "fingerprints": READ if number < 6 else OTHER} for number in range(8)]
    (note,) = fingerprint_notes(rows, lambda row: str(row["name"]), ["train"])
    assert "aaaaaaaa (0, 1, 2 and 3 others), cccccccc (6, 7)" in note
