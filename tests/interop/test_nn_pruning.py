"""Models compiled by nn_pruning: missing heads are pruned rows and columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsebert.interop import is_foreign_checkpoint, read_checkpoint
from sparsebert.interop.nn_pruning import from_nn_pruning
from sparsebert.tickets.ticket import Ticket
from tests.interop.checkpoints import PRUNED_HEADS, bert, compiled, saved


def test_heads_that_are_missing_are_pruned(tmp_path: Path) -> None:
    model = bert()
    masks, state = compiled(model)
    folder = saved(
        tmp_path / "m", state, model_type="bert", pruned_heads=PRUNED_HEADS, layer_norm_type="no_norm"
    )
    assert is_foreign_checkpoint(folder)
    ticket = read_checkpoint(folder)
    assert ticket == Ticket(masks)
    ticket.check(model)
    assert ticket.metadata["method"] == "nn_pruning"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.model.", "student."])
def test_names_of_wrappers_and_training_code(tmp_path: Path, prefix: str) -> None:
    masks, state = compiled(bert())
    state = {f"{prefix}{name}": value for name, value in state.items()}
    assert from_nn_pruning(saved(tmp_path / "m", state, pruned_heads=PRUNED_HEADS)) == Ticket(masks)


def test_heads_that_are_zeros_are_read_as_they_are(tmp_path: Path) -> None:
    model = bert()
    masks, _ = compiled(model)
    ticket = Ticket(masks)
    ticket.apply_(model)
    assert from_nn_pruning(saved(tmp_path / "m", model.state_dict(), pruned_heads=PRUNED_HEADS)) == ticket


@pytest.mark.parametrize(
    ("config", "extra", "message"),
    [
        ({"pruned_heads": {"0": [1], "1": [0]}}, {}, "query has 8 head features, but pruned_heads keeps 12"),
        ({"pruned_heads": {"0": [1, 9]}}, {}, r"encoder.layer.0 has 4 heads, got pruned_heads \[1, 9\]"),
        ({"pruned_heads": [1]}, {}, "must give num_attention_heads, hidden_size and pruned_heads"),
        (
            {"pruned_heads": PRUNED_HEADS},
            {"bert.a.mask_module.context": torch.zeros(1)},
            "compile it with nn_pruning first",
        ),
    ],
)
def test_refusals(tmp_path: Path, config: dict[str, Any], extra: dict[str, Tensor], message: str) -> None:
    _, state = compiled(bert())
    with pytest.raises(ValueError, match=message):
        from_nn_pruning(saved(tmp_path / "m", state | extra, **config))
