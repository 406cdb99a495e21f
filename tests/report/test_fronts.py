"""Quality against speed and bytes: what a front joins, which forms are on it, what is missing and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsebert.report.front_plots import front_figure, front_pictures, front_tables
from sparsebert.report.front_records import fronts
from sparsebert.report.fronts import DENSE, Form, Front, pareto
from sparsebert.report.sections import KINDS
from tests.report.test_lottery_tables import rounds as benchmark_rounds
from tests.report.test_run_tables import rounds as run_rounds


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ([(80, 1), (79, 2), (78, 1.5)], [0, 1]),
        ([(80, 1), (80, 2)], [1]),
        ([(80, 1), (80, 1), (70, 1)], [0, 1]),
        ([(80, 1)], [0]),
        ([], []),
    ],
)
def test_a_pair_that_another_beats_in_one_and_reaches_in_the_other_is_not_kept(
    values: list[tuple[float, float]], kept: list[int]
) -> None:
    assert pareto(values) == kept


def form(name: str, quality: float, speed: float, size: int | None = 50_000_000) -> Form:
    return Form(name, name, quality, None, 1, speed, (speed, speed), size)


def front(*forms: Form) -> Front:
    return Front("Tickets", "accuracy (%)", "oneDNN, float32", forms, "a machine", "about")


def test_forms_on_a_front_stand_in_the_order_of_the_line() -> None:
    made = front(form("a", 70, 3), form("b", 80, 1.5), form("c", 75, 1.2), form("d", 78, 2))
    assert [each.name for each in made.fastest] == ["b", "d", "a"]


def test_a_difference_within_the_scatter_of_the_speeds_puts_no_worse_form_on_the_front() -> None:
    assert [each.name for each in front(form("a", 77.5, 3.53), form("b", 65.0, 3.54)).fastest] == ["a"]
    assert [each.name for each in front(form("a", 77.5, 3.53), form("b", 65.0, 3.95)).fastest] == ["a", "b"]


def test_a_form_without_bytes_is_on_no_front_of_bytes() -> None:
    made = front(form("a", 80, 1, None), form("b", 70, 1, 40_000_000), form("c", 75, 1, 60_000_000))
    assert [each.name for each in made.smallest] == ["b", "c"]
    assert [each.name for each in made.unsized] == ["a"]


def speed(value: float, **others: float) -> dict[str, dict[str, float]]:
    ratios = {"onednn": value, **others}
    return {name: {"median": each, "p20": 0.9 * each, "p80": 1.1 * each} for name, each in ratios.items()}


def ticket(digest: str, sparsity: float, **changes: Any) -> dict[str, Any]:
    fields = {"method": "alps", "granularity": "element", "block_size": None, "masks_sha256": digest}
    return fields | {"sparsity": sparsity, "density": 1 - sparsity} | changes


@pytest.fixture
def timed_run(bench_record: Any) -> list[Any]:
    """A run of two tickets over two seeds, of which one seed's are timed, and dense runs."""
    runs = [
        row | {"masks_sha256": f"{row['sparsity']}-{seed}"}
        for seed in (1, 2)
        for row in run_rounds("imp", [0.5, 0.9], [0.82 - 0.02 * seed, 0.7], seed=seed)
    ]
    dense = [row for seed in (1, 2) for row in run_rounds("dense", [0.0], [0.8 + 0.01 * seed], seed=seed)]
    benches = []
    for share, ratio, size in ((0.5, 1.5, 70_000_000), (0.9, 3.5, 50_000_000)):
        shared = {"ticket": ticket(f"{share}-1", share), "busy": False}
        benches.append(bench_record(ratio=speed(ratio), model_bytes=size, **shared))
        benches.append(bench_record(provider="onednn", ratio=speed(1.0), model_bytes=90_000_000, **shared))
    return [*runs, *dense, *benches]


def test_the_tickets_of_a_run_are_joined_with_their_speeds_by_the_digest_of_the_masks(timed_run: Any) -> None:
    (made,) = fronts(timed_run)
    shown: list[Any] = [
        (each.name, each.quality, each.speed, each.model_bytes, each.seeds) for each in made.forms
    ]
    assert shown == [
        (DENSE, pytest.approx(81.5), 1.0, 90_000_000, 2),
        ("imp 50%", pytest.approx(79.0), 1.5, 70_000_000, 2),
        ("imp 90%", pytest.approx(70.0), 3.5, 50_000_000, 2),
    ]
    assert made.quality == "accuracy (%)"
    assert made.reference == "oneDNN, float32"
    assert made.holes == ()


def test_a_ticket_whose_speed_is_not_measured_is_named_and_not_drawn(timed_run: Any) -> None:
    untimed = run_rounds("snip", [0.7], [0.75], masks_sha256="other")
    (made,) = fronts([*timed_run, *untimed])
    assert "snip 70%" not in [each.name for each in made.forms]
    assert made.holes == ("Not drawn: snip 70%: no speed was measured (`sparsebert bench --ticket`).",)


def test_many_names_are_counted(timed_run: Any) -> None:
    shares = [0.1 * number + 0.05 for number in range(8)]
    untimed = run_rounds("snip", shares, [0.75] * 8)
    (made,) = fronts([*timed_run, *untimed])
    assert made.holes[0].endswith("snip 55% and 2 more: no speed was measured (`sparsebert bench --ticket`).")


def test_without_a_dense_run_there_is_no_dense_point_and_it_is_said(timed_run: Any) -> None:
    (made,) = fronts([row for row in timed_run if row.get("method") != "dense"])
    assert [each.name for each in made.forms] == ["imp 50%", "imp 90%"]
    assert made.holes == ("Without the dense model: no dense run is among the records.",)


def test_a_search_that_ended_early_is_no_dense_run(timed_run: Any) -> None:
    without = [row for row in timed_run if row.get("method") != "dense"]
    searched = run_rounds("early-bird", [0.0], [0.5], seed=7, steps=110)
    trained = run_rounds("imp", [0.0], [0.83], seed=9, run="whole")
    (made,) = fronts([*without, *searched, *trained])
    assert made.forms[0].quality == pytest.approx(83.0)


def test_bench_records_that_name_no_ticket_are_never_guessed_to_belong_to_a_run(timed_run: Any) -> None:
    old = [row | {"ticket": ticket("", row["ticket"]["sparsity"])} for row in timed_run if "ratio" in row]
    assert fronts([row for row in timed_run if "ratio" not in row] + old) == []


def test_two_machines_are_kept_apart_and_it_is_said(timed_run: Any) -> None:
    other = [
        row | {"environment": row["environment"] | {"cpu": "Another"}} for row in timed_run if "ratio" in row
    ]
    here, there = fronts([*timed_run, *other])
    assert there.machine.startswith("Another")
    assert [each.name for each in here.forms] == [each.name for each in there.forms]
    (picture,) = front_pictures([*timed_run, *other])
    assert "The rows are from 2 machines or settings: compare within a row." in picture.caption
    assert len(front_figure([here, there]).axes) == 6


def test_a_ticket_that_only_another_machine_timed_is_a_hole_of_this_one(timed_run: Any) -> None:
    moved = [
        row | {"environment": row["environment"] | {"cpu": "Another"}}
        if "ratio" in row and row["ticket"]["sparsity"] == 0.9
        else row
        for row in timed_run
    ]
    here, _ = fronts(moved)
    assert here.holes == (
        "Not drawn: imp 90%: timed with another workload or on another machine, drawn apart.",
    )


def test_tickets_that_eval_judged_are_joined_too(bench_record: Any) -> None:
    def judged(value: float, digest: str | None, sparsity: float | None) -> dict[str, Any]:
        return {
            "kind": "eval",
            "task": "sst2",
            "model": "mini",
            "seed": None,
            "metrics": {"accuracy": value},
            "masks_sha256": digest,
            "sparsity": sparsity,
        }

    (made,) = fronts(
        [
            judged(0.9, None, None),
            judged(0.85, "x", 0.8),
            bench_record(ratio=speed(2.0), model_bytes=1, ticket=ticket("x", 0.8)),
        ]
    )
    assert [(each.name, each.quality, each.speed) for each in made.forms] == [
        (DENSE, 90.0, 1.0),
        ("alps 80%", 85.0, 2.0),
    ]


def test_the_tickets_of_the_benchmark_are_joined_by_label_and_sparsity(bench_record: Any) -> None:
    rows = [
        *benchmark_rounds("dense", 0.0, [0.80, 0.82]),
        *benchmark_rounds("imp", 0.7, [0.79, 0.81]),
        *benchmark_rounds("random", 0.7, [0.6, 0.6]),
        bench_record(0.7, ratio=speed(2.0), model_bytes=60_000_000) | {"part": "curve", "label": "imp"},
        bench_record(0.7, "onednn", ratio=speed(1.0), model_bytes=90_000_000)
        | {"part": "curve", "label": "imp"},
    ]
    (made,) = fronts(rows)
    assert [(each.name, each.model_bytes) for each in made.forms] == [
        (DENSE, 90_000_000),
        ("IMP 70%", 60_000_000),
    ]
    assert made.chance == 50
    assert made.holes == ("Not drawn: random 70%: no speed was measured (`sparsebert bench --ticket`).",)


def arena(bench: Any, name: str, value: float, ratio: float, size: int | None, ours: bool) -> dict[str, Any]:
    return {
        "kind": "arena",
        "environment": bench["environment"],
        "workload": bench["workload"],
        "form": name,
        "ours": ours,
        "measure": "accuracy",
        "labels": True,
        "judged": 400,
        "quality": {"value": value, "keep": value, "low": value},
        "latency_ms": {"median": 100 / ratio},
        "ratio": speed(ratio),
        "model_bytes": size,
        "busy": False,
        "left_out": {"openvino": "not installed"},
    }


def test_the_forms_of_an_arena_stand_with_their_libraries_and_what_is_left_out(bench_record: Any) -> None:
    bench = bench_record()
    (made,) = fronts(
        [
            arena(bench, "onednn", 0.86, 1.0, 90, False),
            arena(bench, "onnxruntime", 0.86, 1.2, None, False),
            arena(bench, "int8", 0.85, 5.0, 60, True),
        ]
    )
    assert [(each.series, each.name) for each in made.forms] == [
        (DENSE, "oneDNN"),
        ("onnxruntime", "onnxruntime"),
        ("sparsebert int8", "sparsebert int8"),
    ]
    assert made.holes == ("Without openvino: not installed.",)
    assert [each.name for each in made.fastest] == ["onnxruntime", "sparsebert int8"]


def test_the_alt_text_says_who_is_on_the_front_with_figures(timed_run: Any) -> None:
    (picture,) = front_pictures(timed_run)
    assert "The dense model has 81.5 ± 0.7." in picture.alt
    assert (
        "On the front of speed, from the slowest to the fastest: dense (81.5 ± 0.7, 1.00x), "
        "imp 50% (79.0 ± 1.4, 1.50x), imp 90% (70.0 ± 0.0, 3.50x)." in picture.alt
    )
    assert "imp 90% (70.0 ± 0.0, 50.0 MB)" in picture.alt


def test_the_numbers_hold_each_form_with_its_place(timed_run: Any) -> None:
    (picture,) = front_pictures(timed_run)
    assert picture.numbers is not None
    rows = [dict(zip(picture.numbers.columns, row, strict=True)) for row in picture.numbers.rows]
    assert [row["form"] for row in rows] == ["dense", "imp 50%", "imp 90%"]
    assert rows[2]["value"] == "70"
    assert rows[2]["model_bytes"] == "50000000"
    assert rows[2]["on_front_of_speed"] == "true"


def test_the_picture_draws_the_same_forms_and_the_line_of_the_front(timed_run: Any) -> None:
    pytest.importorskip("matplotlib")
    left, right, _ = front_figure(fronts(timed_run)).axes
    drawn, sized = (
        {line.get_label(): np.asarray(line.get_xdata()).tolist() for line in axes.get_lines()}
        for axes in (left, right)
    )
    assert drawn["imp"] == [1.5, 3.5]
    assert drawn["Pareto front"] == [1.0, 1.5, 3.5]
    assert sized["imp"] == [70.0, 50.0]


def test_the_table_holds_the_forms_on_a_front(timed_run: Any) -> None:
    worse = [row for seed in (1, 2) for row in run_rounds("random", [0.5], [0.6], seed=seed)]
    worse = [row | {"masks_sha256": "r"} for row in worse]
    slow = next(row for row in timed_run if "ratio" in row)
    rows = [*timed_run, *worse, slow | {"ticket": ticket("r", 0.5), "ratio": speed(1.4)}]
    (table,) = front_tables(rows)
    assert [row[0] for row in table.rows] == ["dense", "imp 50%", "imp 90%"]
    assert table.rows[1] == ("imp 50%", "79.0 ± 1.4", "1.50x", "70.0", "*", "*")
    assert table.notes[0].startswith("3 of 4 forms: ")


def test_nothing_judged_and_timed_is_nothing_to_draw(bench_record: Any) -> None:
    pytest.importorskip("matplotlib")
    assert KINDS["front"].tables([bench_record(), *run_rounds("imp", [0.5], [0.8])]) == []
    with pytest.raises(ValueError, match="nothing to plot: no form has both a quality and a measured speed"):
        front_figure([])
