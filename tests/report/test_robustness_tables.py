"""Robustness in tables: the ticket and the dense model side by side, over seeds."""

from __future__ import annotations

from typing import Any

from sparsebert.report.robustness_tables import robustness_tables


def row(
    name: str, accuracy: float, *, dense: bool = False, seed: int | None = 1, **changes: Any
) -> dict[str, Any]:
    return {
        "kind": "robustness",
        "task": "sst2",
        "model": "runs",
        "seed": seed,
        "sparsity": None if dense else 0.7,
        "dense": dense,
        "perturbation": name,
        "severity": 0.1,
        "perturb_seed": 0,
        "changed": 0.95,
        "metric": "accuracy",
        "clean": {"accuracy": 0.9},
        "metrics": {"accuracy": accuracy},
        "other_answers": 0.2,
    } | changes


def test_both_sides_in_a_row() -> None:
    rows = [row("typos", 0.7), row("typos", 0.8, dense=True), row("negation", 0.85, severity=None)]
    (table,) = robustness_tables(rows)
    assert table.title == "Robustness: runs on sst2, accuracy, changes of seed 0"
    assert table.columns == (
        *("perturbation", "sparsity", "changed"),
        *("dense", "loss, dense", "other answers, dense"),
        *("model", "loss, model", "other answers, model"),
    )
    assert table.rows == (
        ("none", "70.0%", "-", "0.9000", "-", "-", "0.9000", "-", "-"),
        ("typos 0.1", "70.0%", "95.0%", "0.8000", "0.1000", "20.0%", "0.7000", "0.2000", "20.0%"),
        ("negation", "70.0%", "95.0%", "-", "-", "-", "0.8500", "0.0500", "20.0%"),
    )


def test_without_a_dense_model_and_over_seeds() -> None:
    rows = [row("shuffle", 0.6, seed=1), row("shuffle", 0.8, seed=2), row("shuffle", 0.8, seed=2)]
    (table,) = robustness_tables(rows)
    assert table.columns[3:] == ("model", "loss, model", "other answers, model")
    assert table.rows[1][3] == "0.7000 ± 0.1414"
    assert any("does not read their order" in note for note in table.notes)
    assert any("of 2 seeds" in note for note in table.notes)


def test_other_seeds_of_the_changes_and_scores_have_tables_and_no_answers() -> None:
    rows = [row("typos", 0.7), row("typos", 0.7, perturb_seed=1, other_answers=None)]
    first, second = robustness_tables(rows)
    assert first.rows[1][-1] == "20.0%"
    assert second.rows[1][-1] == "-"


def test_seeds_are_counted_on_each_side() -> None:
    """A ticket without a recorded seed beside a dense run of seed 0 is no second seed."""
    rows = [row("typos", 0.7, seed=None), row("typos", 0.8, seed=0, dense=True)]
    (table,) = robustness_tables(rows)
    assert not any("seeds" in note for note in table.notes)
    rows += [row("typos", 0.7, seed=None), row("typos", 0.6, seed=1, dense=True)]
    (table,) = robustness_tables(rows)
    assert table.rows[1][3] == "0.7000 ± 0.1414"
    assert table.rows[1][6] == "0.7000"
    assert any("of 2 seeds" in note for note in table.notes)


def test_tickets_of_one_sparsity_and_precisions_have_rows_of_their_own() -> None:
    rows = [row("typos", 0.7, masks_sha256="a" * 64), row("typos", 0.6, masks_sha256="b" * 64)]
    (table,) = robustness_tables(rows)
    assert table.columns[:4] == ("perturbation", "sparsity", "ticket", "changed")
    assert [line[2:5] for line in table.rows] == [
        ("aaaaaaaa", "-", "0.9000"),
        ("aaaaaaaa", "95.0%", "0.7000"),
        ("bbbbbbbb", "-", "0.9000"),
        ("bbbbbbbb", "95.0%", "0.6000"),
    ]
    rows = [row("typos", 0.7, tolerance="fp32"), row("typos", 0.6, tolerance="int8")]
    (table,) = robustness_tables(rows)
    assert [line[2] for line in table.rows] == ["fp32", "fp32", "int8", "int8"]
    rows = [row("typos", 0.7, masks_sha256="a"), row("typos", 0.6, masks_sha256="b", sparsity=0.9)]
    (table,) = robustness_tables(rows)
    assert [line[:2] for line in table.rows[1::2]] == [("typos 0.1", "70.0%"), ("typos 0.1", "90.0%")]
    assert "ticket" not in table.columns


def test_what_is_replaced_is_said() -> None:
    (table,) = robustness_tables([row("typos", 0.7), row("typos", 0.7)])
    assert not any("the last one is shown" in note for note in table.notes)
    (table,) = robustness_tables([row("typos", 0.7), row("typos", 0.6, clean={"accuracy": 0.8})])
    assert table.rows[1][3] == "0.6000"
    assert any("the last one is shown" in note for note in table.notes)


def test_a_map_of_labels_has_a_table_of_its_own() -> None:
    rows = [row("typos", 0.7), row("typos", 0.6, label_map={"0": "negative", "1": "positive"})]
    plain, mapped = robustness_tables(rows)
    assert not any("Labels" in note for note in plain.notes)
    assert mapped.notes[-1] == "Labels of the data as outputs of the model: 0=negative, 1=positive."
