"""Time and memory of each round: what is drawn, what the alt text says, what is not recorded."""

from __future__ import annotations

from typing import Any

import pytest

from sparsebert.report.run_cost_plots import cost_figure, cost_pictures, round_costs
from tests.report.test_run_tables import rounds


def run(method: str, train: float, **changes: Any) -> list[Any]:
    rows = rounds(method, [0.0, 0.5], [0.8, 0.79], **changes)
    return [
        row
        | {"seconds": {"prune": 6.0, "train": train * (1 + number), "evaluate": 12.0}}
        | {"memory": {"peak_rss_bytes": 1_000_000_000 * (1 + number)}}
        for number, row in enumerate(rows)
    ]


def test_a_round_costs_the_mean_over_its_seeds() -> None:
    first, second = round_costs([*run("imp", 60.0), *run("imp", 120.0, seed=2)])
    assert (first.name, first.seeds) == ("imp, round 0 (0%)", 2)
    assert first.seconds == {"prune": 6.0, "train": 90.0, "evaluate": 12.0}
    assert second.name == "imp, round 1 (50%)"
    assert second.total == 198.0
    assert second.memory == 2e9


def test_the_alt_text_says_the_total_the_longest_round_and_the_highest_memory() -> None:
    (picture,) = cost_pictures(run("imp", 60.0))
    assert picture.alt == (
        "Time and memory of each round: tiny on sst2. 2 rounds take 3.6 minutes (83% of them training); the "
        "longest is imp, round 1 (50%) with 2.3 minutes. The highest peak of memory is 2,000 MB, in imp, "
        "round 1 (50%)."
    )


def test_memory_that_is_not_recorded_is_a_hole_and_named() -> None:
    rows = run("imp", 60.0)
    del rows[0]["memory"]
    (picture,) = cost_pictures(rows)
    assert "Records without memory: imp, round 0 (0%)." in picture.caption
    assert picture.numbers is not None
    assert [row[5] for row in picture.numbers.rows] == ["", "2000000000"]
    pytest.importorskip("matplotlib")
    _, right = cost_figure("title", "machine", round_costs(rows)).axes
    assert [text.get_text() for text in right.texts] == [" not recorded", " 2,000"]


def test_the_memory_of_a_gpu_is_shown_where_there_is_one() -> None:
    rows = [row | {"memory": row["memory"] | {"peak_gpu_bytes": 7}} for row in run("imp", 60.0)]
    (picture,) = cost_pictures(rows)
    assert "MB at the peak on the GPU" in picture.caption
    assert round_costs(rows)[0].memory == 7


def test_machines_are_kept_apart(bench_record: Any) -> None:
    environment = bench_record()["environment"]
    here = run("imp", 60.0, environment=environment)
    there = run("imp", 60.0, seed=2, environment=environment | {"cpu": "Another"})
    unknown = run("imp", 60.0, seed=3)
    first, second, third = cost_pictures([*here, *there, *unknown])
    assert second.caption.startswith("Another, cores: ")
    assert third.caption.startswith("machine not recorded. Means over 1 seed.")
    assert first.title == second.title == third.title


def test_bars_stack_in_the_order_of_a_round() -> None:
    pytest.importorskip("matplotlib")
    left, _ = cost_figure("title", "machine", round_costs(run("imp", 60.0))).axes
    widths = [[bar.get_width() for bar in container] for container in left.containers]
    assert widths == [pytest.approx([0.1, 0.1]), pytest.approx([1, 2]), pytest.approx([0.2, 0.2])]


def test_many_rounds_are_cut_and_it_is_said() -> None:
    shares = [number / 100 for number in range(70)]
    (picture,) = cost_pictures(rounds("imp", shares, [0.8] * 70))
    assert "The first 60 of 70 rounds; the file of numbers holds all." in picture.caption
    assert picture.numbers is not None
    assert len(picture.numbers.rows) == 70


def test_a_peak_that_was_reset_is_that_of_the_round() -> None:
    rows = rounds("imp", [0.5], [0.8], memory={"peak_rss_bytes": 10**9})
    (so_far,) = cost_pictures(rows)
    assert "of the process so far" in so_far.caption
    (of_round,) = cost_pictures([row | {"resources": {"process_peak": False}} for row in rows])
    assert "of the round." in of_round.caption
