"""The table of healed models, and the lines about one of them."""

from __future__ import annotations

import pytest

from sparsebert.report.format import Record
from sparsebert.report.healing_tables import healing_lines
from sparsebert.report.sections import KINDS


@pytest.fixture
def record() -> Record:
    return {
        "kind": "heal",
        "model": "pruned",
        "healed": True,
        "steps": 300,
        "tokens": 614400,
        "seconds": 598.6,
        "best_step": 290,
        "learning_rate": 0.002,
        "loss_before": 0.91,
        "loss_after": 0.31,
        "agreement_before": 0.62,
        "agreement_after": 0.87,
        "measure": "embeddings",
        "texts": {"train": 800, "validation": 100, "judge": 100},
        "precision": "bf16",
        "sparsity": 0.8,
    }


def test_a_row_shows_quality_before_and_after(record: Record) -> None:
    (table,) = KINDS["healing"].tables([record, {"kind": "other"}])
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert (cells["cosine before"], cells["cosine after"], cells["sparsity"]) == (
        "0.6200",
        "0.8700",
        "80.00%",
    )


def test_the_lines_say_what_judged(record: Record) -> None:
    work, loss, cosine = healing_lines(record)
    assert work == "300 steps, 614400 tokens, 599 s, learning rate 0.002, products in bf16"
    assert loss == "held-out loss 0.9100 -> 0.3100 (100 texts), at step 290"
    assert cosine == (
        "cosine to the dense model's embeddings 0.6200 -> 0.8700 (100 other texts), 80.00% sparse"
    )


def test_nothing_gained_is_said(record: Record) -> None:
    _, line = healing_lines({**record, "healed": False})
    assert line == "no state was better on the held-out texts: the weights are those of the start"


def test_a_cosine_that_fell_is_said_to_decide_nothing(record: Record) -> None:
    *_, line = healing_lines({**record, "agreement_after": 0.61})
    assert line == (
        "the cosine fell on these 100 texts, which do not decide; on the 100 that do, the embeddings came no "
        "farther from the dense model's"
    )
