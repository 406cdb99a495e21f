"""Pruned models of ``make gpu``: what of them is pruned, and that they answer as the dense one."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu.device import DryRun
from benchmarks.gpu.models import PrunedBert, in_one_row
from sparsebert.nn.packed_layers import on_cpu
from sparsebert.nn.sparse_linear import SparseLinear

pytest.importorskip("transformers")
POINT = {"model": "bert-tiny", "batch": 1, "block": (64, 64), "sparsity": 0.75}


@pytest.mark.parametrize("removed", [0.0, 0.5])
def test_removed_heads_and_neurons_count_in_the_sparsity(removed: float) -> None:
    pruned = PrunedBert(DryRun(), **POINT, removed=removed)
    assert pruned.ticket.sparsity == pytest.approx(POINT["sparsity"], abs=0.01)
    queries = [mask for key, mask in pruned.ticket.masks.items() if key.endswith("query")]
    ups = [mask for key, mask in pruned.ticket.masks.items() if key.endswith("intermediate.dense")]
    for masks, units in ((queries, 2), (ups, 512)):
        for mask in masks:
            assert int(mask.view(units, -1).any(1).sum()) <= units * (1 - removed)


def test_removed_heads_and_neurons_leave_layers_of_half_the_size() -> None:
    pruned = PrunedBert(DryRun(), **POINT | {"sparsity": 0.5}, removed=0.5)
    layers = [each for each in pruned.sparse("panel").modules() if isinstance(each, SparseLinear)]
    shapes = {tuple(layer.weight.shape) for layer in layers}
    assert shapes == {(64, 128), (128, 64), (256, 128), (128, 256)}


def test_the_fused_model_without_half_of_its_heads_and_neurons_answers_as_the_dense_one() -> None:
    with on_cpu():
        pruned = PrunedBert(DryRun(), **POINT, removed=0.5)
        answer = pruned.work(pruned.sparse("panel", fuse=True), fused=True)()
    torch.testing.assert_close(answer.double(), pruned.exact(), rtol=0, atol=0.05)


def test_one_row_holds_the_tokens_that_are_no_padding() -> None:
    kept = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
    row = in_one_row(torch.arange(9).view(3, 3), kept)
    assert row["input_ids"].tolist() == [[0, 1, 3, 6, 7, 8]]
    assert row["cu_seq_lens_q"].tolist() == row["cu_seq_lens_k"].tolist() == [0, 2, 3, 6]
    assert row["cu_seq_lens_q"].dtype == torch.int32
    assert row["max_length_q"] == row["max_length_k"] == 3
