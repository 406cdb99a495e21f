"""The memory benchmark: every side takes steps, the two searches compute the same, all are recorded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks.training_memory import (
    DENSITY,
    ENCODER,
    OURS,
    PRODUCTS,
    SIDES,
    WHOLE,
    bert,
    measure_here,
    products,
    rows_of,
)
from sparsebert.bert import resolve, structure
from sparsebert.mask_learning.masked_layers import MaskedLinear
from sparsebert.pruning.granularity import parse_granularity

SHAPE = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64}
ENCODER_WEIGHTS = 2 * (4 * 32 * 32 + 2 * 32 * 64)
HEAD = 2 * 32 + 2


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, Any]]:
    return {side: measure_here(side, ENCODER, 2, 8, **SHAPE) for side in SIDES}


def test_parameters_that_are_trained(measured: dict[str, dict[str, Any]]) -> None:
    trained = {side: row["trained"] for side, row in measured.items()}
    everything = sum(each.numel() for each in bert(2, **SHAPE).parameters())
    assert trained["fine-tuning"] == trained["ticket"] == everything
    assert trained["early-bird"] == everything + 2 * (2 + 64)  # of each layer 2 heads and 64 neurons
    assert trained["smp"] == trained[PRODUCTS] == ENCODER_WEIGHTS + HEAD
    assert trained["movement"] == trained["soft-movement"] == trained["l0"]
    assert trained["movement"] == trained["gradual"] + ENCODER_WEIGHTS
    packed = everything - ENCODER_WEIGHTS + round(DENSITY * ENCODER_WEIGHTS)
    assert packed <= trained["ticket, packed"] < 1.05 * packed  # rows of small matrices are filled up


def test_of_a_task_static_model_pruning_keeps_its_masks_and_its_head(
    measured: dict[str, dict[str, Any]],
) -> None:
    kept = {side: row["kept_bytes"] for side, row in measured.items()}
    assert kept["fine-tuning"] == 4 * measured["fine-tuning"]["trained"]
    assert kept["smp"] == kept[PRODUCTS] < min(kept[side] for side in SIDES if side not in (OURS, PRODUCTS))
    weights = 4 * round(DENSITY * ENCODER_WEIGHTS)
    biases = 4 * sum(
        each.numel() for name, each in bert(2, **SHAPE).named_parameters() if "embeddings" not in name
    )
    # Tickets of movement hold the kept weights, and all that is trained beside the matrices.
    assert kept["movement"] - kept["smp"] == pytest.approx(
        weights + biases - 4 * ENCODER_WEIGHTS - 4 * HEAD, abs=200
    )


def test_products_of_weights_and_masks_are_what_the_masked_matmul_computes() -> None:
    ours, theirs = bert(2, **SHAPE), bert(2, **SHAPE)
    side = products(theirs)
    generator = torch.Generator().manual_seed(0)
    for key in structure(ours).linears:
        layer = resolve(theirs, key)
        values = torch.rand(layer.scores.shape, generator=generator)
        with torch.no_grad():
            layer.scores.copy_(values)
        linear = resolve(ours, key)
        learned = MaskedLinear(
            linear, torch.nn.Parameter(values), parse_granularity("element", None), owns_scores=True
        )
        mask = torch.zeros(values.numel(), dtype=torch.bool)
        mask[values.flatten().argsort(descending=True)[: int(DENSITY * values.numel())]] = True
        learned.set_mask(mask.view(values.shape))
        path, _, name = f"bert.{key}".rpartition(".")
        setattr(ours.get_submodule(path), name, learned)
    inputs = {"input_ids": torch.tensor([[0, 1, 1, 0]]), "labels": torch.tensor([1])}
    losses = [model.eval()(**inputs).loss for model in (ours, theirs)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for key in structure(bert(2, **SHAPE)).linears:
        torch.testing.assert_close(resolve(ours, key).mask_scores.grad, resolve(theirs, key).scores.grad)
    assert not any(each.requires_grad for each in theirs.bert.embeddings.parameters())
    assert len(side.trained) == 2 + 12


def test_records_hold_every_side_and_the_figure_with_a_limit() -> None:
    def measured(side: str, part: str, batch: int, tokens: int) -> dict[str, int]:
        return {"trained": 1, "kept_bytes": 1, "held_bytes": 10, "peak_bytes": 40 if side == PRODUCTS else 25}

    rows = rows_of(8, 128, measured)
    cases = [(row["side"], row["part"]) for row in rows if row["kind"] == "memory"]
    assert cases == [
        (OURS, ENCODER),
        (PRODUCTS, ENCODER),
        *((side, WHOLE) for side in SIDES if side != PRODUCTS),
    ]
    assert (rows[-1]["kind"], rows[-1]["value"], rows[-1]["passed"]) == ("goal", 0.5, True)
