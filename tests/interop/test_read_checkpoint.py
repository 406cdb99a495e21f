"""``convert`` reads the checkpoints of other projects; a plain model is not one of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsebert.cli import app
from sparsebert.interop import is_foreign_checkpoint
from sparsebert.interop.movement_pruning import from_movement
from sparsebert.interop.nn_pruning import from_nn_pruning
from sparsebert.tickets.ticket import Ticket
from tests.interop.checkpoints import PRUNED_HEADS, bert, compiled, movement_state, saved


def test_a_plain_model_is_not_foreign(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    assert not is_foreign_checkpoint(tmp_path)
    assert not is_foreign_checkpoint(tmp_path / "nowhere")


def test_convert_reads_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "m", movement_state(bert()), pruning_method="topK")
    output = tmp_path / "ticket.safetensors"
    assert app.main(["convert", str(folder), str(output)]) == 2
    assert "pass it as the threshold" in capsys.readouterr().err
    assert not output.exists()
    assert app.main(["convert", str(folder), str(output), "--threshold", "0.25"]) == 0
    assert Ticket.load(output) == from_movement(folder, threshold=0.25)
    _, state = compiled(bert())
    folder = saved(tmp_path / "n", state, pruned_heads=PRUNED_HEADS)
    assert app.main(["convert", str(folder), str(output)]) == 0
    assert Ticket.load(output) == from_nn_pruning(folder)
