"""What a start ticket saves, in tables and pictures."""

from __future__ import annotations

from typing import Any

import pytest

from sparsebert.report.run_series import costs, series
from sparsebert.report.run_tables import run_tables
from sparsebert.report.start_benchmark import benchmark_start_pictures, benchmark_start_tables
from sparsebert.report.start_tables import start_tables
from tests.report.test_run_tables import rounds

ALPS = {"method": "alps", "sparsity": 0.6, "masks_sha256": "sha256:0", "own_weights": None}


def imp(shares: list[float], values: list[float], seed: int = 1, **changes: Any) -> list[Any]:
    return rounds("imp", shares, values, seed, **{"first_step": 0} | changes)


DENSE = imp([0.0, 0.2, 0.4, 0.6, 0.8], [0.9, 0.88, 0.86, 0.84, 0.82])
STARTED = imp([0.6, 0.8], [0.85, 0.83], start_ticket=ALPS)


def test_a_run_with_a_start_ticket_is_a_series_of_its_own() -> None:
    own = imp([0.6], [0.85], start_ticket=ALPS | {"own_weights": True})
    assert list(series([*DENSE, *STARTED, *own])) == [
        "imp",
        "imp from ALPS 60%",
        "imp from ALPS 60% with its weights",
    ]


def test_rounds_steps_and_minutes_until_each_sparsity_with_and_without() -> None:
    (table,) = start_tables([*DENSE, *STARTED])
    assert table.title == "Spent until a sparsity: tiny on sst2"
    assert table.columns == ("run", "sparsity", "accuracy", "rounds", "steps", "minutes", "steps saved")
    assert table.rows == (
        ("imp", "60.0%", "0.8400", "4", "1,200", "4.0", "-"),
        ("imp", "80.0%", "0.8200", "5", "1,500", "5.0", "-"),
        ("imp from ALPS 60%", "60.0%", "0.8500", "1", "300", "1.0", "75%"),
        ("imp from ALPS 60%", "80.0%", "0.8300", "2", "600", "2.0", "60%"),
    )
    assert "Finding the start ticket is not included" in table.notes[0]


def test_values_are_means_over_seeds() -> None:
    seeds = [row for seed in (1, 2) for row in imp([0.8], [0.80 + 0.02 * seed], seed, start_ticket=ALPS)]
    ((row,),) = (table.rows for table in start_tables(seeds))
    assert row[2:] == ("0.8300 ± 0.0141", "1", "300", "1.0", "-")


def test_without_a_start_ticket_there_is_nothing_to_compare() -> None:
    assert start_tables(DENSE) == []
    assert len(run_tables(DENSE)) == 1


def test_the_table_stands_between_the_rounds_and_their_summaries() -> None:
    titles = [table.title.partition(":")[0] for table in run_tables([*DENSE, *STARTED])]
    assert titles == ["Rounds", "Spent until a sparsity"]
    first = run_tables([*DENSE, *STARTED])[0]
    assert first.columns[0] == "start"
    assert [row[0] for row in first.rows] == ["-"] * 5 + ["from ALPS 60%"] * 2


def test_another_start_is_another_run_over_seeds() -> None:
    rows = [*rounds("imp", [0.8], [0.8], 1), *rounds("imp", [0.8], [0.9], 2, start_ticket=ALPS)]
    assert not any("Over seeds" in table.title for table in run_tables(rows))


@pytest.mark.parametrize(
    ("rewind", "steps", "first", "expected"),
    [
        ("none", [10, 20, 30], [0, 10, 20], [10, 20, 30]),
        ("none", [10, 20, 30], None, [10, 20, 30]),  # an older record
        ("step", [10, 10, 10], [0, 2, 2], [10, 18, 26]),
        ("pretrained", [10, 10, 10], None, [10, 20, 30]),
    ],
)
def test_steps_that_a_round_did_not_train_do_not_count(
    rewind: str, steps: list[int], first: list[int] | None, expected: list[int]
) -> None:
    rows = rounds("imp", [0.0, 0.1, 0.2], [0.9, 0.9, 0.9], rewind=rewind)
    for number, row in enumerate(rows):
        row["steps"] = steps[number]
        row |= {} if first is None else {"first_step": first[number]}
    ((by_round),) = series(rows).values()
    assert [each.steps for each in costs(by_round)] == expected


class TestBenchmark:
    def rows(self) -> list[Any]:
        environment = {
            "gpu": None,
            "cpu": "a CPU",
            "cores": 2,
            "kernels": "avx2",
            "onednn": "3",
            "versions": {"torch": "2.13"},
        }
        more = {"part": "start", "label": "imp", "learning_rate": 1e-4, "environment": environment}
        half = imp([0.8], [0.81], label="movement", steps=150, start_ticket=ALPS)
        whole = imp([0.8], [0.82], label="movement", start_ticket=ALPS)
        rows = [*DENSE, *imp([0.6, 0.8], [0.85, 0.83], start_ticket=ALPS), *half, *whole]
        return [more | row for row in rows]

    def test_names_and_steps_of_the_runs(self) -> None:
        (table,) = benchmark_start_tables(self.rows())
        names = list(dict.fromkeys(row[0] for row in table.rows))
        assert names == [
            "IMP",
            "IMP from ALPS 60%",
            "movement from ALPS 60%, 150 steps",
            "movement from ALPS 60%, 300 steps",
        ]
        assert "150 to 300 steps a round, learning rate 0.0001, seeds 1." in table.notes[1]

    def test_the_picture_shows_every_run(self) -> None:
        pytest.importorskip("matplotlib")
        picture, cost = benchmark_start_pictures(self.rows())
        assert cost.title.startswith("Time and memory of each round: ")
        (axes,) = picture.draw().axes
        assert len(axes.containers) == 4
        assert picture.png().startswith(b"\x89PNG")

    def test_other_parts_have_no_such_table(self) -> None:
        assert benchmark_start_tables([row | {"part": "curve"} for row in self.rows()]) == []
