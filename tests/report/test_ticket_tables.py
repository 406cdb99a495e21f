"""Tickets that were pruned or converted, in tables."""

from __future__ import annotations

from typing import Any

from sparsebert.report.ticket_tables import ticket_tables

TICKET = {"granularity": "block", "block_size": [4, 1], "sparsity": 0.9, "density": 0.1, "matrices": 72}


def pruned(seed: int) -> dict[str, Any]:
    fields = {"kind": "prune", "model": "tiny", "method": "random", "task": None, "ticket": TICKET}
    return fields | {"output": f"t-seed-{seed}", "bytes": 1_300_000, "seed": seed}


def test_tickets_stand_with_sparsity_density_and_what_two_of_them_share() -> None:
    overlap = {"kind": "prune_seeds", "method": "random", "seeds": [1, 2], "mean": 0.05, "std": None}
    (table,) = ticket_tables([pruned(1), pruned(2), overlap])
    assert table.rows[1] == ("t-seed-2", "tiny", "random", "4x1", "-", "2", "90.00%", "10.00%", "1.3")
    assert table.notes == ("random, seeds 1, 2: overlap of two of them (Jaccard index): 0.0500",)


def test_a_record_without_a_size_is_shown() -> None:
    """One-shot methods, which write a folder, recorded none in earlier versions."""
    without = {name: value for name, value in pruned(1).items() if name != "bytes"}
    (table,) = ticket_tables([without])
    assert table.rows[0][-1] == "-"


def test_converted_models_say_what_they_take() -> None:
    fields = {"kind": "convert", "source": "run", "to": "sparse", "ticket": TICKET}
    before = {"disk": None, "weights": 2_000_000, "activations": 500_000, "batch": 8, "length": 64}
    after = before | {"disk": 300_000, "weights": 500_000}
    tables = ticket_tables(
        [fields | {"output": "a"}, fields | {"output": "b", "before": before, "after": after}]
    )
    assert [table.title for table in tables] == ["Converted", "What b takes"]
    assert tables[0].rows[0] == ("a", "run", "sparse", "72", "90.00%", "10.00%")
    assert tables[1].rows == (
        ("weights on disk", "-", "0.30", "-"),
        ("weights in memory", "2.00", "0.50", "0.25x"),
        ("activations, batch 8, 64 tokens", "0.50", "0.50", "1.00x"),
    )
