"""Trained tickets in tables and in the picture: accuracy over seeds beside the speed of one ticket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsebert.report.lottery_plots import curve_pictures, curve_plot
from sparsebert.report.lottery_tables import curve_tables, learned_tables, points, transfer_tables


def rounds(label: str, sparsity: float, values: list[float], **changes: Any) -> list[dict[str, Any]]:
    fields = {
        "kind": "round",
        "part": "curve",
        "label": label,
        "task": "sst2",
        "model": "tiny",
        "sparsity": sparsity,
        "steps": 300,
        "versions": {"torch": "2.13"},
    } | changes
    metric = {"sst2": "accuracy", "cola": "mcc"}[fields["task"]]
    return [fields | {"seed": seed, "metrics": {metric: value}} for seed, value in enumerate(values, start=1)]


DENSE = rounds("dense", 0.0, [0.80, 0.82, 0.84])


def test_a_ticket_stands_with_accuracy_verdict_and_speed(bench_record: Any) -> None:
    rows = [
        *rounds("imp", 0.0, [0.1, 0.1, 0.1]),  # its dense round is not a ticket
        *rounds("random", 0.7000001, [0.60, 0.61, 0.62]),
        *rounds("imp", 0.7000001, [0.81, 0.82, 0.83]),
        *DENSE,
        bench_record(0.7) | {"part": "curve", "label": "imp"},
        bench_record(0.7, "onednn") | {"part": "curve", "label": "imp"},
    ]
    (table,) = curve_tables(rows)
    assert table.rows == (
        ("dense", "82.0 ± 2.0", "-", "-", "-", "-"),
        ("IMP 70%", "82.0 ± 1.0", "strict", "3.50x", "7.00x", "44.0"),
        ("random 70%", "61.0 ± 1.0", "none", "-", "-", "-"),
    )
    assert "seeds 1, 2, 3; 300 steps a round" in table.notes[0]


def test_a_dense_model_near_chance_decides_nothing() -> None:
    rows = [*rounds("random", 0.7, [0.50, 0.50, 0.50]), *rounds("dense", 0.0, [0.52, 0.516, 0.744])]
    (table,) = curve_tables(rows)
    assert [row[2] for row in table.rows] == ["-", "undecided"]
    assert any(
        "0.5933 ± 0.1305 (0.5160 to 0.7440) is too close to chance, 0.5000" in note for note in table.notes
    )


def test_a_round_that_is_there_twice_counts_once() -> None:
    (point,) = points([*DENSE, *DENSE], "curve")
    assert point.values == (0.80, 0.82, 0.84)


def test_learned_tickets_stand_beside_dense_and_random_ones_of_the_curve() -> None:
    rows = [
        *DENSE,
        *rounds("imp", 0.5, [0.83]),
        *rounds("random", 0.5, [0.6]),
        *rounds("smp-s", 0.5, [0.8], part="learned"),
    ]
    (table,) = learned_tables(rows)
    assert [row[0] for row in table.rows] == ["dense", "SMP-S 50%", "random 50%"]
    assert learned_tables(DENSE) == []


def test_tickets_of_a_method_that_finds_its_sparsity_go_by_what_was_asked_of_it() -> None:
    found = [
        row | {"sparsity": sparsity}
        for row, sparsity in zip(
            rounds("soft-movement", 0.0, [0.7, 0.8], part="learned", asked=0.5), (0.48, 0.54), strict=True
        )
    ]
    (point,) = points(found, "learned")
    assert (point.sparsity, point.values) == (pytest.approx(0.51), (0.7, 0.8))
    (table,) = learned_tables([*DENSE, *found])
    assert table.rows[1][0] == "soft movement 51%"
    assert "Sparsities of soft movement are means; seeds range from 48% to 54%." in table.notes


def test_it_is_said_when_early_tickets_were_drawn() -> None:
    rows = [
        row | {"search": {"drawn_at": step, "steps": 300, "saved": 1 - step / 300}}
        for step, row in zip((60, 90), rounds("early-bird", 0.3, [0.7, 0.8], part="learned"), strict=True)
    ]
    (table,) = learned_tables([*DENSE, *rows])
    assert table.notes[-1] == (
        "Early-Bird drew its tickets after 60 to 90 of 300 steps, 70% to 80% of a search saved."
    )


def test_tasks_are_columns_of_the_transfer() -> None:
    rows = [
        *rounds("dense", 0.0, [0.8], part="transfer"),
        *rounds("mlm-ticket", 0.7, [0.7], part="transfer"),
        *rounds("mlm-ticket", 0.7, [0.2, 0.4], part="transfer", task="cola", steps=900),
        *rounds("source", 0.7, [0.5], part="transfer", task="cola", steps=900),
    ]
    (table,) = transfer_tables(rows)
    assert table.columns == ("ticket", "sst2 (accuracy)", "cola (mcc)")
    assert table.rows[0] == ("dense", "80.0", "-")
    assert table.rows[1][1:] == ("70.0", "30.0 ± 14.1")
    assert "300 (sst2), 900 (cola) steps a round" in table.notes[0]
    assert "means are over 1 to 2 seeds" in table.notes[1]


def test_the_picture_is_drawn_whole_or_not_at_all(tmp_path: Path, bench_record: Any) -> None:
    pytest.importorskip("matplotlib")
    rows = [*DENSE, *rounds("imp", 0.7, [0.81, 0.82, 0.83])]
    with pytest.raises(ValueError, match="no speed measured"):
        curve_plot(rows, tmp_path / "curve.png")
    assert curve_pictures(rows) == []
    assert not list(tmp_path.iterdir())
    curve_plot([*rows, bench_record(0.7) | {"part": "curve", "label": "imp"}], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_says_in_words_what_it_shows(bench_record: Any) -> None:
    rows = [*DENSE, *rounds("imp", 0.7, [0.81]), bench_record(0.7) | {"part": "curve", "label": "imp"}]
    (picture,) = curve_pictures(rows)
    assert picture.title == "Tickets on sst2: accuracy and speed against sparsity"
    assert picture.alt == (
        "Above, accuracy (%) on sst2 against sparsity. The dense model has 82.0 ± 2.0. IMP 81.0 at 70%. "
        "Below, the measured speed of the same tickets against oneDNN: 3.50 times as fast."
    )
    assert picture.numbers is not None
    assert picture.numbers.rows[1] == ("IMP", "sst2", "0.7", "accuracy", "0.81", "", "1", "3.5")
