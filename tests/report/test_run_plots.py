"""Pictures of runs, and the machine of their records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from sparsebert import results
from sparsebert.bench.environment import detect
from sparsebert.cli import app
from sparsebert.report.run_plots import run_figure, run_pictures


def rounds(method: str = "imp", seeds: int = 2, task: str = "sst2", **changes: Any) -> list[dict[str, Any]]:
    metrics = {"accuracy": 0.9} if task == "sst2" else {"macro_f1": 12.0}
    return [
        {
            "schema": 1,
            "kind": "round",
            "method": method,
            "task": task,
            "model": "tiny",
            "seed": seed,
            "round": number,
            "rounds": 3,
            "sparsity": 0.25 * number,
            "density": 1 - 0.25 * number,
            "granularity": "element",
            "block_size": None,
            "scope": "global",
            "source": "trained",
            "rewind": "pretrained",
            "head": "keep",
            "steps": 6,
            "loss": 0.5,
            "metrics": {name: value - 0.1 * number - 0.01 * seed for name, value in metrics.items()},
            "seconds": {"prune": 1.0, "train": 2.0, "evaluate": 1.0},
            "versions": {"python": "3", "torch": "2"},
            **changes,
        }
        for seed in range(seeds)
        for number in range(3)
    ]


def test_a_picture_for_each_task_and_model_with_all_methods() -> None:
    rows = [*rounds(), *rounds("movement", run="a"), *rounds("movement", run="b"), *rounds(task="own")]
    first, second = run_pictures(rows)
    assert first.title == "Rounds of tiny on sst2: accuracy against sparsity"
    assert "imp, movement, a, movement, b, 0% to 50% sparse" in first.alt
    assert second.title == "Rounds of tiny on own: macro_f1 against sparsity"
    assert first.png().startswith(b"\x89PNG")
    assert second.png().startswith(b"\x89PNG")


def test_points_are_means_over_seeds() -> None:
    (axes,) = run_figure(rounds()).axes
    (container,) = axes.containers
    line = container.lines[0]
    assert line.get_xdata() == pytest.approx([0, 25, 50])
    assert line.get_ydata() == pytest.approx([89.5, 79.5, 69.5])
    assert axes.get_ylabel() == "sst2, accuracy (%)"


def test_one_dense_round_makes_a_picture_too() -> None:
    (picture,) = run_pictures([row for row in rounds("dense", 1) if not row["round"]])
    assert picture.png().startswith(b"\x89PNG")


def test_the_page_of_a_run_has_its_picture_and_machine(tmp_path: Path) -> None:
    environment = detect().record()
    results.append(tmp_path / "log.jsonl", rounds(environment=environment))
    page = tmp_path / "page.html"
    assert app.main(["report", str(tmp_path / "log.jsonl"), "--html", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    # The metric against sparsity, and what the rounds cost.
    assert text.count('role="img"') == 2
    assert "machine not recorded" not in text
    assert environment["cpu"].split("(")[0] in text


def test_runs_with_a_start_ticket_have_a_second_picture_against_steps() -> None:
    start = {"method": "alps", "sparsity": 0.25, "masks_sha256": "", "own_weights": False}
    rows = [*rounds(), *rounds("imp", start_ticket=start)]
    first, second = run_pictures(rows)
    assert "imp, imp from ALPS 25%" in first.alt
    assert second.title == "Rounds of tiny on sst2: accuracy against steps"
    (axes,) = second.draw().axes
    plain, started = axes.containers
    assert plain.get_label() == "imp"
    assert started.get_label() == "imp from ALPS 25%"
    assert plain.lines[0].get_xdata() == pytest.approx([6, 12, 18])
    assert [text.get_text() for text in axes.texts] == ["0%", "25%", "50%"] * 2
