"""The contrastive terms of CAP entry by entry in plain numpy, and whole steps of pruning with them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsebert.mask_learning.contrastive_loss import EncodedExamples, contrastive_terms
from sparsebert.mask_learning.movement import MovementRule, SoftMovementRule
from sparsebert.mask_learning.rule import Goal
from tests.mask_learning import two_matrices
from tests.mask_learning.two_matrices import SHAPES, Array, assert_equal, numbers, sigmoid, taken, transcribed

EXAMPLES = 30


def of_length_1(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def bank(encoders: int, features: int, seed: int = 0) -> tuple[Array, Array]:
    """Representations [examples, encoders, features] and labels of 30 examples."""
    random = np.random.default_rng(seed)
    return of_length_1(random.normal(size=(EXAMPLES, encoders, features))), random.integers(0, 3, EXAMPLES)


def some(which: list[int], representations: Array, labels: Array | None) -> EncodedExamples:
    chosen = None if labels is None else torch.tensor(labels[which])
    return EncodedExamples(torch.tensor(which), chosen, torch.tensor(representations[which]))


def by_hand(
    own: Array, batch: list[int], others: list[int], found: Array, of_example: Array, temperature: float
) -> tuple[float, Array]:
    """One term and its gradient by ``own``. ``of_example``: the label of each example, or its number."""
    lengths = np.linalg.norm(own, axis=1)
    z = own / lengths[:, None]
    candidates = [(None, j, of_example[number], z[j]) for j, number in enumerate(batch)]
    for number in (*batch, *others):
        candidates += [("bank", -1, of_example[number], row) for row in found[number]]
    total, pairs, dz = 0.0, 0, np.zeros_like(z)
    for i, number in enumerate(batch):
        mine = [each for each in candidates if each[0] == "bank" or each[1] != i]
        scores = np.array([z[i] @ row / temperature for *_, row in mine])
        likelihoods = scores - np.log(np.exp(scores).sum())
        positive = np.array([label == of_example[number] for _, _, label, _ in mine])
        total -= likelihoods[positive].mean()
        pairs += int(positive.sum())
        dscores = np.exp(likelihoods) - positive / positive.sum()
        # Candidates are constants: nothing flows through the other examples of the batch.
        dz[i] = sum(slope * row for slope, (*_, row) in zip(dscores, mine, strict=True)) / temperature
    dz /= pairs
    down = (dz - z * (z * dz).sum(1, keepdims=True)) / lengths[:, None]
    return total / pairs, down


# Two examples of the same label; one that is alone with its own; others that are the batch's too.
BATCH, OTHERS = [3, 17, 8, 20], [1, 17, 4, 25, 8]


@pytest.mark.parametrize("encoders", [1, 3])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_both_terms_and_their_gradients(encoders: int, temperature: float) -> None:
    found, labels = bank(encoders, 6)
    own = torch.tensor(np.random.default_rng(1).normal(size=(4, 6)), requires_grad=True)
    args = (some(BATCH, found, labels), some(OTHERS, found, labels), temperature)
    for term, of_example in zip(contrastive_terms(own, *args), (np.arange(EXAMPLES), labels), strict=True):
        assert term is not None
        expected, gradient = by_hand(own.detach().numpy(), BATCH, OTHERS, found, of_example, temperature)
        np.testing.assert_allclose(term.item(), expected, atol=1e-10)
        (down,) = torch.autograd.grad(term, own, retain_graph=True)
        np.testing.assert_allclose(down.numpy(), gradient, rtol=0, atol=1e-10)


def test_the_released_code_gives_the_same_numbers() -> None:
    """``calculate_contrastive_loss`` of RunxinXu/ContrastivePruning (eae11d6), run on these inputs."""
    waves = np.cos(np.arange(EXAMPLES * 2 * 5, dtype=np.float64) ** 1.5).reshape(EXAMPLES, 2, 5)
    own = torch.tensor(np.sin(np.arange(20, dtype=np.float64) ** 1.5).reshape(4, 5))
    labels = np.arange(EXAMPLES) % 3
    found = of_length_1(waves)
    by_instance, by_label = contrastive_terms(
        own, some(BATCH, found, labels), some(OTHERS, found, labels), 0.1
    )
    assert by_label is not None
    assert by_instance.item() == pytest.approx(3.557584935379476, abs=1e-10)
    assert by_label.item() == pytest.approx(0.964402474218549, abs=1e-10)


def test_without_labels_there_is_the_term_of_instances_alone() -> None:
    found, labels = bank(2, 6)
    own = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = contrastive_terms(own, some(BATCH, found, labels), some(OTHERS, found, labels), 0.1)
    alone = contrastive_terms(own, some(BATCH, found, None), some(OTHERS, found, None), 0.1)
    assert alone[0].item() == whole[0].item()
    assert alone[1] is None


def test_the_term_falls_as_an_example_comes_near_its_own_past() -> None:
    found, labels = bank(1, 6)
    past = torch.tensor(found[BATCH][:, 0])
    far = -past
    near, away = (
        contrastive_terms(own, some(BATCH, found, labels), some(OTHERS, found, labels), 0.1)[0]
        for own in (past, far)
    )
    assert near < 0.5 < away


def test_half_precision_is_compared_in_single() -> None:
    found, labels = bank(1, 6)
    own = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    terms = contrastive_terms(
        own, some(BATCH, found.astype(np.float32), labels), some(OTHERS, found, labels), 0.1
    )
    assert all(
        isinstance(term, Tensor) and term.dtype != torch.bfloat16 and term.isfinite() for term in terms
    )


INSTANCE, LABEL, TEMPERATURE = 0.1, 10.0, 0.1
ROWS = [3, 17, 8, 20, 11]


@pytest.mark.parametrize("block", [(1, 1), (2, 2)], ids=["element", "block"])
@pytest.mark.parametrize("soft", [False, True], ids=["movement", "soft-movement"])
def test_a_step_of_cap_is_that_of_the_equations(soft: bool, block: tuple[int, int]) -> None:
    """Mask, loss and its terms, gradients, weights and scores; y is the representation."""
    given = numbers(block)
    found, labels = bank(2, 4)
    goal, step = Goal(steps=100, warmup=5, density=Fraction(1, 5)), 40

    def ours(y: Tensor) -> Tensor:
        by_instance, by_label = contrastive_terms(
            y, some(ROWS, found, labels), some(OTHERS, found, labels), TEMPERATURE
        )
        assert by_label is not None
        return INSTANCE * by_instance + LABEL * by_label

    def theirs(y: Array) -> tuple[float, Array]:
        terms = [
            by_hand(y, ROWS, OTHERS, found, of_example, TEMPERATURE)
            for of_example in (np.arange(EXAMPLES), labels)
        ]
        (first, down), (second, below) = terms
        return INSTANCE * first + LABEL * second, INSTANCE * down + LABEL * below

    # Warm-ups of 2 and 3 times 5 steps: 40 is 30 steps into a ramp of 75.
    fallen = 1 - (1 - 30 / 75) ** 3
    kept: dict[str, Array] = {}
    penalty, slopes = 0.0, None
    if soft:
        rule: Any = SoftMovementRule(initial_warmup=2, final_warmup=3, threshold=0.6, regularisation=7.0)
        kept = {key: (sigmoid(given.scores[key]) > 0.6 * fallen).astype(float) for key in SHAPES}
        open_ = {key: sigmoid(given.scores[key]) for key in SHAPES}
        penalty = 7.0 * fallen * float(np.mean([each.mean() for each in open_.values()]))
        slopes = {key: 7.0 * fallen * each * (1 - each) / each.size / 2 for key, each in open_.items()}
    else:
        rule = MovementRule(initial_warmup=2, final_warmup=3)
        density = 1 - 0.8 * fallen
        for key in SHAPES:
            scores = given.scores[key]
            count = round(density * scores.size)
            kept[key] = np.zeros(scores.size)
            kept[key][np.argsort(-scores.ravel(), kind="stable")[:count]] = 1
            kept[key] = kept[key].reshape(scores.shape)
    expected = transcribed(given, kept, penalty, slopes, extra=theirs)
    assert_equal(taken(rule, goal, step, given, extra=ours), expected)
    assert expected.loss != two_matrices.transcribed(given, kept).loss
