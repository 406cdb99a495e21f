"""SNIP: the formula against a transcription, gradients summed before abs, the model left as it was."""

from __future__ import annotations

import copy
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsebert.bert import resolve, structure
from sparsebert.pruning import Snip, prune

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("error:layer collapse")


def classifier(dropout: float = 0.1) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=20,
        num_attention_heads=2,
        intermediate_size=28,
        num_hidden_layers=2,
        initializer_range=0.3,  # with the usual 0.02 attention is uniform: queries and keys get no gradient
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return transformers.BertForSequenceClassification(config)


def batches(count: int = 3, seed: int = 1) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(0, 30, (4, 7), generator=generator),
            "labels": torch.randint(0, 2, (4,), generator=generator),
        }
        for _ in range(count)
    ]


def transcribed(model: Any, data: list[dict[str, Tensor]]) -> dict[str, np.ndarray]:
    """|sum over batches of dL/dW * W| with plain backward passes and numpy."""
    model = copy.deepcopy(model).eval()
    keys = structure(model).linears
    total = {key: np.zeros(resolve(model, key).weight.shape, np.float64) for key in keys}
    for batch in data:
        model.zero_grad()
        model(**batch).loss.backward()
        for key in keys:
            total[key] += resolve(model, key).weight.grad.numpy()
    return {key: np.abs(total[key] * resolve(model, key).weight.detach().numpy()) for key in keys}


def test_the_highest_sensitivities_of_all_matrices_stay() -> None:
    model, data = classifier(), batches()
    ticket = prune(model, "snip", sparsity=0.6, data=data)
    scores = np.concatenate([score.ravel() for score in transcribed(model, data).values()])
    bits = np.concatenate([mask.numpy().ravel() for mask in ticket.masks.values()])
    k = round(Fraction(2, 5) * len(scores))
    assert bits.sum() == k
    # Summed in another order the scores differ in their last bits: only those at the cut may change sides.
    cut = np.sort(scores)[-k]
    assert np.array_equal(bits[scores > cut * 1.001], np.ones((scores > cut * 1.001).sum(), bool))
    assert not bits[scores < cut * 0.999].any()


def test_gradients_are_summed_before_the_absolute_value() -> None:
    """Two batches with opposite gradients say nothing; their absolute values would."""
    model = classifier(dropout=0.0)
    model.num_labels = model.config.num_labels = 1
    model.config.problem_type = "regression"
    model.classifier = torch.nn.Linear(20, 1)
    batch = batches(1)[0]
    with torch.no_grad():
        now = model.eval()(input_ids=batch["input_ids"]).logits.squeeze(1)
    pair = [{**batch, "labels": now + 1}, {**batch, "labels": now - 1}]
    from sparsebert.pruning.gradients import loss_gradients

    weights = {key: resolve(model, key).weight.detach() for key in structure(model).linears}
    one, both = loss_gradients(model, weights, pair[:1]), loss_gradients(model, weights, pair)
    assert max(gradient.abs().max() for gradient in one.values()) > 1e-3
    assert max(gradient.abs().max() for gradient in both.values()) < 1e-6


def test_dropout_is_off_and_the_model_stays_as_it_was() -> None:
    model = classifier(dropout=0.5).train()
    model.bert.embeddings.eval()
    before = copy.deepcopy(model.state_dict())
    tickets = [prune(model, "snip", sparsity=0.5, data=batches()) for _ in range(2)]
    assert tickets[0] == tickets[1]
    assert model.training
    assert not model.bert.embeddings.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_head_is_no_candidate() -> None:
    assert not any(
        "classifier" in key for key in prune(classifier(), "snip", sparsity=0.5, data=batches()).masks
    )


def test_gradients_are_taken_at_the_pruned_weights() -> None:
    """Pruning a sparse model further is the same whether its dead weights are zero or hold something."""
    model = classifier()
    first = prune(model, sparsity=0.5)
    zeroed = first.apply_(copy.deepcopy(model))
    further = [prune(each, "snip", sparsity=0.7, ticket=first, data=batches()) for each in (model, zeroed)]
    assert further[0] == further[1]


def test_a_collapsing_matrix_is_warned_of() -> None:
    model = classifier()
    with torch.no_grad():
        resolve(model, "encoder.layer.1.attention.self.key").weight.mul_(1e-6)
    with pytest.warns(UserWarning, match=r"layer collapse: .* encoder\.layer\.1\.attention\.self"):
        prune(model, "snip", sparsity=0.9, data=batches())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "pass data"),
        ([], "no batch"),
        (7, "batches of keyword arguments"),
        ([torch.zeros(2)], "must be a mapping"),
        ([{"input_ids": torch.zeros(2, 3, dtype=torch.long)}], "need labels"),
    ],
)
def test_data_that_gives_no_gradient_is_refused(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(classifier(), "snip", sparsity=0.5, data=data)


def test_blocks_are_scored_by_what_they_hold() -> None:
    ticket = prune(classifier(), Snip(), sparsity=0.5, granularity="block", block_size=(4, 4), data=batches())
    mask = ticket.masks["encoder.layer.0.attention.self.query"]
    tiles = mask.view(5, 4, 5, 4).transpose(1, 2).reshape(25, 16).float().mean(1)
    assert set(tiles.tolist()) <= {0.0, 1.0}
