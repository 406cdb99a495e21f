"""What runs that differ in their seeds say together: mean, deviation and the verdict by a dense model."""

from __future__ import annotations

from typing import Any

import pytest

from sparsebert.workflows.train import over_seeds


def records(accuracies: list[list[float]], source: str = "all") -> list[list[dict[str, Any]]]:
    """Records of runs with seeds 0, 1, ...: one accuracy a round, the first round from that source."""
    return [
        [
            {
                "method": "imp",
                "task": "sst2",
                "model": "tiny",
                "seed": seed,
                "round": number,
                "sparsity": number / 10,
                "density": 1 - number / 10,
                "source": "trained" if number else source,
                "metrics": {"accuracy": value},
            }
            for number, value in enumerate(values)
        ]
        for seed, values in enumerate(accuracies)
    ]


class TestOverSeeds:
    def test_rounds_are_judged_by_the_dense_one(self) -> None:
        dense, strict, winning, none = over_seeds(
            "sst2", records([[0.90, 0.91, 0.895, 0.80], [0.92, 0.92, 0.905, 0.90]])
        )
        assert "verdict" not in dense
        assert dense["std"] == pytest.approx(0.02 / 2**0.5)
        assert [row["verdict"] for row in (strict, winning, none)] == ["strict", "winning", "none"]
        assert (none["mean"], none["values"]) == (pytest.approx(0.85), [0.80, 0.90])
        assert none["dense_mean"] == pytest.approx(0.91)

    def test_or_by_dense_runs_of_their_own(self) -> None:
        runs, dense = records([[0.9], [0.8]], "start"), records([[0.9], [0.9]])
        assert over_seeds("sst2", runs, dense)[0]["verdict"] == "none"
        assert over_seeds("sst2", runs, runs)[0]["verdict"] == "strict"

    def test_sparsities_that_were_found_are_means_too(self) -> None:
        one, other = records([[0.9, 0.8], [0.9, 0.7]])
        other[1] |= {"sparsity": 0.3, "density": 0.7}
        dense, found = over_seeds("sst2", [one, other])
        assert (dense["sparsity"], dense["density"]) == (0.0, 1.0)
        assert (found["sparsity"], found["density"]) == (pytest.approx(0.2), pytest.approx(0.8))

    def test_without_any_there_is_no_verdict(self) -> None:
        (row,) = over_seeds("sst2", records([[0.9]], "start"))
        assert "verdict" not in row
        assert row["std"] is None
