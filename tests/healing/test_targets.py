"""Targets: what is compared, and the cache of the dense model's outputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sparsebert.healing.targets import Reader, TargetCache, Targets
from tests.healing.conftest import pruned_copy, tiny


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(5, 60, (4, 7), generator=torch.Generator().manual_seed(0))}


@pytest.fixture
def targets() -> Targets:
    torch.manual_seed(0)
    return Targets(torch.randn(3, 4, 7, 8), None)


class TestLoss:
    def test_it_is_zero_for_equal_outputs(self, dense: Any, targets: Targets) -> None:
        assert float(Reader(dense).loss(targets, targets)) == pytest.approx(0, abs=1e-6)

    def test_the_mean_of_the_states_scores_one_a_layer(self, dense: Any, targets: Targets) -> None:
        read = Reader(dense)
        flat = replace(targets, states=targets.states.mean((1, 2), keepdim=True).expand(3, 4, 7, 8))
        of_embeddings = 1 - float(read.agreement(flat, targets).mean())
        assert float(read.loss(flat, targets)) == pytest.approx(1 + of_embeddings)

    def test_logits_are_compared_by_their_divergence(self, targets: Targets) -> None:
        read = Reader(tiny("BertForSequenceClassification"))
        with_logits = replace(targets, logits=torch.tensor([[1.0, 0.0]]).expand(4, 2))
        shifted = replace(with_logits, logits=with_logits.logits + 3)  # type: ignore[operator]
        turned = replace(with_logits, logits=-with_logits.logits)  # type: ignore[operator]
        assert float(read.loss(shifted, with_logits)) == pytest.approx(0, abs=1e-6)
        assert float(read.loss(turned, with_logits)) == pytest.approx(0.4621, abs=1e-4)  # tanh(1/2)

    @pytest.mark.parametrize(
        ("labels", "problem"), [(1, None), (3, "multi_label_classification")], ids=["score", "several labels"]
    )
    def test_logits_without_a_softmax_are_compared_as_numbers(
        self, labels: int, problem: str | None, targets: Targets
    ) -> None:
        read = Reader(tiny("BertForSequenceClassification", num_labels=labels, problem_type=problem))
        one, two = (replace(targets, logits=torch.full((4, labels), value)) for value in (1.0, 3.0))
        assert float(read.loss(one, two)) == pytest.approx(4)


class TestReader:
    @pytest.mark.parametrize("pooling", ["mean", "cls"])
    def test_embeddings_are_pooled_as_the_folder_says(
        self, pooling: str, dense: Any, inputs: dict[str, torch.Tensor]
    ) -> None:
        read = Reader(dense, pooling)
        states = dense(**inputs).last_hidden_state
        expected = states.mean(1) if pooling == "mean" else states[:, 0]
        assert torch.equal(read.embedding(read(dense, inputs).states[-1]), expected)

    def test_a_language_model_s_logits_are_not_compared(self, inputs: dict[str, torch.Tensor]) -> None:
        model = tiny("BertForMaskedLM")
        read = Reader(model)
        assert not read.has_logits
        assert read(model, inputs).logits is None

    def test_spans_have_a_start_and_an_end(self, inputs: dict[str, torch.Tensor]) -> None:
        model = tiny("BertForQuestionAnswering")
        logits = Reader(model)(model, inputs).logits
        assert logits is not None
        assert logits.shape == (4, 2, 7)


class TestCache:
    def test_a_text_is_computed_once(self, dense: Any, inputs: dict[str, torch.Tensor]) -> None:
        calls: list[int] = []
        cache = TargetCache(dense, _counting(Reader(dense), calls), limit=2**20)
        first = cache([3, 1, 4, 5], inputs)
        again = cache([5, 1], {"input_ids": inputs["input_ids"][[3, 1]]})
        assert calls == [4]
        assert torch.equal(again.states, first.states[:, [3, 1]])

    def test_what_does_not_fit_is_computed_every_time(
        self, dense: Any, inputs: dict[str, torch.Tensor]
    ) -> None:
        calls: list[int] = []
        cache = TargetCache(dense, _counting(Reader(dense), calls), limit=100)
        first, again = cache([0, 1, 2, 3], inputs), cache([0, 1, 2, 3], inputs)
        assert calls == [4, 4]
        assert torch.equal(first.states, again.states)

    def test_states_keep_three_digits(self, dense: Any, inputs: dict[str, torch.Tensor]) -> None:
        kept = TargetCache(dense, Reader(dense), limit=2**20)([0, 1, 2, 3], inputs)
        assert torch.allclose(kept.states.float(), Reader(dense)(dense, inputs).states, rtol=2**-8)


def _counting(read: Reader, calls: list[int]) -> Any:
    def counted(model: Any, inputs: dict[str, torch.Tensor]) -> Targets:
        calls.append(len(inputs["input_ids"]))
        return read(model, inputs)

    return counted


def test_a_pruned_model_s_loss_is_that_of_a_worse_model(dense: Any, inputs: dict[str, torch.Tensor]) -> None:
    read = Reader(dense)
    with torch.no_grad():
        mild, harsh = (read(pruned_copy(dense, sparsity), inputs) for sparsity in (0.3, 0.9))
        wanted = read(dense, inputs)
    assert 0 < float(read.loss(mild, wanted)) < float(read.loss(harsh, wanted))
