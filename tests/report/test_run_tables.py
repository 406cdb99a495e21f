"""Runs in tables: what they have in common once, every round, and what their seeds say together."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import pytest

from sparsebert.report.run_tables import evaluation_tables, matrix_tables, run_tables

# Fields of a summary over seeds that all of these tests share.
SUMMARY = {
    "kind": "seeds",
    "method": "random",
    "task": "sst2",
    "model": "tiny",
    "round": 0,
    "sparsity": 0.5,
    "metric": "accuracy",
}


def rounds(method: str, shares: list[float], values: list[float], seed: int = 1, **changes: Any) -> list[Any]:
    """A run of one round a share; the first is dense where its share is 0."""
    fields = {
        "kind": "round",
        "method": method,
        "task": "sst2",
        "model": "tiny",
        "seed": seed,
        "rounds": len(shares),
        "granularity": "element",
        "block_size": None,
        "scope": "global",
        "rewind": "pretrained",
        "head": "rewind",
        "max_length": 128,
        "steps": 300,
        "loss": 0.5,
        "seconds": {"prune": 1.0, "train": 58.0, "evaluate": 1.0},
        "versions": {"sparsebert": "0.1.0", "torch": "2.13"},
    } | changes
    return [
        fields
        | {"round": number, "sparsity": share, "source": "trained" if share else "all"}
        | {"metrics": {"accuracy": value}}
        for number, (share, value) in enumerate(zip(shares, values, strict=True))
    ]


def of_seeds(method: str, shares: list[float], values: list[list[float]], **changes: Any) -> list[Any]:
    return [
        row
        for seed, own in enumerate(values, start=1)
        for row in rounds(method, shares, own, seed, **changes)
    ]


def test_what_rounds_have_in_common_stands_in_the_title() -> None:
    (table,) = run_tables(rounds("imp", [0.0, 0.5], [0.9, 0.8], granularity="block", block_size=[4, 1]))
    assert table.title == "Rounds: tiny on sst2, imp, 4x1"
    assert table.columns == ("round", "sparsity", "seed", "accuracy", "loss", "minutes")
    assert table.rows == (
        ("0", "0.0%", "1", "0.9000", "0.5000", "1.0"),
        ("1", "50.0%", "1", "0.8000", "0.5000", "1.0"),
    )
    assert table.notes == (
        "300 steps a round; loss: last logged training loss. sparsebert 0.1.0, torch 2.13.",
    )


def test_what_they_do_not_have_in_common_has_a_column() -> None:
    rows = [
        *rounds("imp", [0.5], [0.8], run="runs/a"),
        *rounds("random", [0.5], [0.7], run="runs/b", granularity="row", loss=None),
        *rounds("dense", [0.0], [0.9], run="runs/dense"),
    ]
    (table,) = run_tables(rows)
    assert table.columns[:3] == ("run", "method", "pruned")
    assert [row[:3] for row in table.rows] == [
        ("runs/a", "imp", "element"),
        ("runs/b", "random", "row"),
        ("runs/dense", "dense", "-"),
    ]
    assert table.rows[1][-2] == "-"


def test_tasks_and_models_have_tables_of_their_own_and_their_own_metrics() -> None:
    rows = rounds("imp", [0.5], [0.8])
    tables = run_tables(
        [*rows, rows[0] | {"task": "cola", "metrics": {"mcc": 0.3}}, rows[0] | {"model": "big"}]
    )
    assert [table.title.split(",")[0] for table in tables] == [
        "Rounds: tiny on sst2",
        "Rounds: tiny on cola",
        "Rounds: big on sst2",
    ]
    assert "mcc" in tables[1].columns


def test_seeds_are_summarised_and_judged_by_the_dense_round_that_their_runs_began_with() -> None:
    _, table = run_tables(of_seeds("imp", [0.0, 0.5], [[0.90, 0.88], [0.92, 0.92]]))
    assert table.title == "Over seeds: tiny on sst2, accuracy, imp, element"
    assert table.columns == ("round", "sparsity", "seeds", "mean", "std", "dense", "verdict")
    assert table.rows == (
        ("0", "0.0%", "2", "0.9100", "0.0141", "-", "-"),
        ("1", "50.0%", "2", "0.9000", "0.0283", "0.9100 ± 0.0141", "winning"),
    )


def test_or_by_the_dense_runs_that_were_trained_alike() -> None:
    rows = [
        *of_seeds("random", [0.5], [[0.80], [0.80]]),
        *of_seeds("dense", [0.0], [[0.80], [0.80]]),
        *of_seeds("dense", [0.0], [[0.99], [0.99]], steps=9000),
    ]
    table = run_tables(rows)[-1]
    cells = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(row["method"], row["dense"], row["verdict"]) for row in cells] == [
        ("random", "0.8000 ± 0.0000", "strict"),
        ("dense", "-", "-"),
        ("dense", "-", "-"),
    ]


def test_without_a_dense_model_there_is_no_verdict() -> None:
    _, table = run_tables(of_seeds("random", [0.5], [[0.8], [0.7]]))
    assert "verdict" not in table.columns
    assert len(table.notes) == 1


def test_what_a_command_has_summarised_is_not_summarised_again() -> None:
    rows = of_seeds("random", [0.5], [[0.8], [0.7]], run="runs/random")
    values = {"seeds": [2, 1], "values": [0.7, 0.8], "mean": 0.75, "std": 0.0707}
    written = SUMMARY | values | {"verdict": "none", "dense_mean": 0.9, "dense_std": None}
    _, table = run_tables([*rows, written])
    assert [row[-2:] for row in table.rows] == [("0.9000", "none")]
    assert table.title == "Over seeds: tiny on sst2, accuracy, runs/random, random, element"


@pytest.mark.parametrize("setting", [{"steps": 9}, {"granularity": "row"}, {"scope": "matrix"}, {"run": "b"}])
def test_runs_with_other_settings_are_no_seeds_of_one(setting: dict[str, Any]) -> None:
    rows = [*rounds("imp", [0.5], [0.8], 1), *rounds("imp", [0.5], [0.7], 2, **setting)]
    assert len(run_tables(rows)) == 1


def test_sparsities_differ_within_a_folder_but_not_within_a_file() -> None:
    """A method that decides how much it prunes finds another sparsity for each seed; a file of records may
    hold runs of several targets."""
    rows = [*rounds("soft-movement", [0.48], [0.8], 1), *rounds("soft-movement", [0.54], [0.7], 2)]
    assert len(run_tables(rows)) == 1
    _, table = run_tables([row | {"run": "runs/soft"} for row in rows])
    assert table.rows[0][1:4] == ("51.0%", "2", "0.7500")


def test_a_seed_that_is_there_twice_counts_as_it_was_last() -> None:
    rows = [*rounds("imp", [0.5], [0.1], 1), *of_seeds("imp", [0.5], [[0.8], [0.8]])]
    assert run_tables(rows)[-1].rows[0][3] == "0.8000"


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (
            {"drawn_at": 60, "steps": 300, "saved": 0.8, "settled": False},
            "ticket drawn after 60 of 300 steps, 80% of the search saved, before its mask had settled",
        ),
        (
            {"drawn_at": 60, "steps": 300, "saved": 0.8, "settled": True},
            "ticket drawn after 60 of 300 steps, 80% of the search saved",
        ),
        (
            [{"sparsity": 0.0, "metric": 0.8}, {"sparsity": 0.1, "metric": 0.75}],
            "smaller tickets tried: 1; the whole model's metric there was 0.8000",
        ),
        ({"step": 2000, "metric": 0.81}, "masks of step 2000 chosen, by 0.8100 on the validation data"),
    ],
)
def test_it_is_said_how_a_ticket_was_found(search: Any, said: str) -> None:
    (table,) = run_tables(rounds("smp", [0.5], [0.8], search=search))
    assert table.notes[1] == f"seed 1: {said}"


def test_it_is_said_of_each_round_how_many_heads_and_mlps_its_super_ticket_lacks() -> None:
    counts = {"pruned_heads": 43, "heads": 144, "pruned_mlps": 3, "mlps": 12}
    (table,) = run_tables(rounds("super-tickets", [0.1, 0.28], [0.8, 0.8], search=counts))
    said = "without 43 of 144 heads and 3 of 12 MLPs"
    assert table.notes[1:] == tuple(f"seed 1, round {number}: {said}" for number in (0, 1))


def test_of_several_runs_it_is_said_which_ticket_was_found_so() -> None:
    chosen = {"step": 20, "metric": 0.8}
    rows = [
        *rounds("smp", [0.5], [0.8], run="runs/a", search=chosen),
        *rounds("imp", [0.0], [0.8], run="runs/b", search=chosen),
    ]
    (table,) = run_tables(rows)
    whose = [note.split(":")[0] for note in table.notes[1:]]
    assert whose == ["runs/a, smp, seed 1", "runs/b, imp, seed 1"]


def test_thousands_of_runs_are_summarised_in_seconds() -> None:
    """Once every run looked for its dense rounds among the rounds of all."""
    runs = [
        row
        for number in range(4000)
        for row in of_seeds("imp", [0.0, 0.5], [[0.9, 0.8], [0.8, 0.7]], run=f"runs/{number}")
    ]
    began = time.process_time()
    _, table = run_tables(runs)
    assert time.process_time() - began < 5
    assert len(table.rows) == 8000
    assert {row[-1] for row in table.rows[1::2]} == {"none"}


def cell(source: str, task: str, **changes: Any) -> dict[str, Any]:
    fields = {"kind": "transfer", "source": source, "task": task, "model": "tiny", "sparsity": 0.5}
    return fields | {"metric": "mcc", "seeds": [1, 2], "mean": 0.5, "std": 0.1, "verdict": "none"} | changes


def test_the_matrix_has_a_row_a_ticket_and_a_column_a_task() -> None:
    (table,) = matrix_tables(
        [cell("dense", "cola"), cell("sst2", "mrpc", metric="accuracy"), cell("sst2", "cola")]
    )
    assert table.columns == ("ticket of", "sparsity", "cola (mcc)", "mrpc (accuracy)")
    assert table.rows == (
        ("dense", "50.0%", "0.5000 ± 0.1000 none", "-"),
        ("sst2", "50.0%", "0.5000 ± 0.1000 none", "0.5000 ± 0.1000 none"),
    )
    assert "of 2 seeds" in table.notes[0]


def evaluation(model: str, **changes: Any) -> dict[str, Any]:
    fields = {"kind": "eval", "task": "sst2", "model": model, "seed": None, "sparsity": None}
    return fields | {"metrics": {"accuracy": 0.8}} | changes


def test_evaluations_say_what_compaction_changed() -> None:
    compaction = {
        "min_row_weights": 10,
        "weights": {"configured": 200, "exact": 50, "stored": 60},
        "output_change": {"max": 0.5, "mean": 0.1, "changed": 0.02},
    }
    compacted = {"masked_metrics": {"accuracy": 0.81}, "compaction": compaction, "sparsity": 0.9, "seed": 3}
    (table,) = evaluation_tables([evaluation("a"), evaluation("b", **compacted)])
    assert table.rows == (
        ("a", "-", "-", "0.8000", "-", "-", "-", "-", "-"),
        ("b", "3", "90.0%", "0.8000", "10 weights", "25.00%", "30.00%", "0.8100", "2.00%"),
    )


def test_evaluations_over_seeds_name_their_model() -> None:
    judged = {
        "kind": "eval_seeds",
        "task": "sst2",
        "model": "sst2-run",
        "metric": "accuracy",
        "seeds": [1, 2],
    }
    judged |= {"values": [0.8, 0.9], "mean": 0.85, "std": 0.07}
    (table,) = evaluation_tables([judged])
    assert table.title == "Evaluated on sst2, over seeds, accuracy"
    assert table.rows == (("sst2-run", "2", "0.8500", "0.0700"),)


class TestNearChance:
    """Verdicts that an earlier version gave near chance are not repeated, and the spread is named."""

    JUDGED: ClassVar = SUMMARY | {
        "seeds": [1, 2, 3],
        "values": [0.5, 0.5, 0.5],
        "mean": 0.5,
        "std": 0.0,
        "verdict": "winning",
        "dense_mean": 0.5933,
        "dense_std": 0.1305,
    }
    NOTE = "Undecided on sst2: dense 0.5933 ± 0.1305 is too close to chance, 0.5000."

    def test_summaries_of_before(self) -> None:
        (table,) = run_tables([self.JUDGED])
        assert table.rows[0][-2:] == ("0.5933 ± 0.1305", "undecided")
        assert self.NOTE in table.notes

    def test_evaluations_of_before(self) -> None:
        (table,) = evaluation_tables([self.JUDGED | {"kind": "eval_seeds"}])
        assert table.rows[0][-1] == "undecided"
        assert self.NOTE in table.notes

    def test_a_matrix_of_before(self) -> None:
        (table,) = matrix_tables([self.JUDGED | {"kind": "transfer", "source": "mlm"}])
        assert table.rows == (("mlm", "50.0%", "0.5000 ± 0.0000 undecided"),)
        assert self.NOTE in table.notes

    def test_rounds_with_the_chance_of_their_data(self) -> None:
        rows = [*of_seeds("random", [0.5], [[0.91], [0.91]]), *of_seeds("dense", [0.0], [[0.90], [0.92]])]
        table = run_tables(rows)[-1]
        assert [row[-1] for row in table.rows] == ["strict", "-"]
        table = run_tables([row | {"chance": {"accuracy": 0.905}} for row in rows])[-1]
        assert [row[-1] for row in table.rows] == ["undecided", "-"]
        assert table.notes[-1] == (
            "Undecided on sst2: dense 0.9100 ± 0.0141 (0.9000 to 0.9200) is too close to chance, 0.9050."
        )
