"""The table of budgets for one speed."""

from __future__ import annotations

from sparsebert.report.sections import sections

ENVIRONMENT = {
    "cpu": "a CPU",
    "cores": 2,
    "kernels": "avx512",
    "onednn": "3.7",
    "versions": {"torch": "2.13"},
}


def row(budget: str, number: int, cosine: float) -> dict:
    return {
        "kind": "speed_budget",
        "environment": ENVIRONMENT,
        "method": "alps",
        "tolerance": "fp32",
        "speedup": 2.0,
        "budget": budget,
        "granularity": "element",
        "set": number,
        "sparsity": 0.6,
        "dense_matrices": 3,
        "modelled_speedup": 2.4,
        "predicted_speedup": 2.01,
        "measured_speedup": 1.98,
        "milliseconds": 12.0,
        "cosine": cosine,
        "auc": 0.73,
    }


def test_sets_of_texts_share_a_row_and_budgets_do_not() -> None:
    rows = [row("weights", 0, 0.92), row("milliseconds", 0, 0.92), row("milliseconds", 1, 0.94)]
    (section,) = sections(rows)
    (table,) = section.tables
    text = table.markdown()
    by_time, by_weights = (line for line in text.splitlines() if "| alps" in line)
    assert "milliseconds" in by_time
    assert "0.930" in by_time
    assert "2.40x" in by_time
    assert "1.98x" in by_time
    assert by_time.rstrip(" |").endswith("2")
    assert "0.920" in by_weights
    assert "a CPU" in text
