"""Quality after / before: cosines to the dense model, and metrics above a constant guess."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sparsebert.quality import Agreement, MetricAboveGuess
from sparsebert.tasks import Example, Task

TASK = Task("two classes", "classification", ("accuracy",), ("no", "yes"), ("text",))


def vectors(*rows: list[float]) -> list[torch.Tensor]:
    return [torch.tensor([row]) for row in rows]


def test_agreement_is_the_mean_cosine() -> None:
    measure = Agreement(vectors([1.0, 0.0], [0.0, 2.0]))
    quality = measure.judge(vectors([3.0, 0.0], [1.0, 1.0]))
    assert quality.value == quality.keep == pytest.approx((1 + 0.5**0.5) / 2)
    assert quality.low <= quality.keep


def test_texts_of_many_tokens_count_once() -> None:
    reference = [torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]] * 9)]
    outputs = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]] * 9)]
    assert Agreement(reference).judge(outputs).value == pytest.approx(0.5)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 0.0])
def test_outputs_that_say_nothing_agree_with_nothing(broken: float) -> None:
    quality = Agreement(vectors([1.0, 0.0], [1.0, 0.0])).judge(vectors([broken, broken], [1.0, 0.0]))
    assert quality.value == pytest.approx(0.5)


def test_outputs_of_another_shape_are_refused_in_one_line() -> None:
    measure = Agreement(vectors([1.0, 0.0]))
    with pytest.raises(
        ValueError, match=r"shape \[1, 3\] cannot be compared with the dense model's \[1, 2\]"
    ):
        measure.judge(vectors([1.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match="outputs of 2 texts cannot be compared with 1"):
        measure.judge(vectors([1.0, 0.0], [1.0, 0.0]))


class Rows:
    """As many encoded examples as labels."""

    def __init__(self, count: int) -> None:
        self.count = count


def measure_of(labels: list[int], right: int) -> tuple[MetricAboveGuess, list[torch.Tensor]]:
    """A dense model that is right on the first rows."""
    outputs = answers([label if i < right else 1 - label for i, label in enumerate(labels)])
    rows = [Example(("a text",), label) for label in labels]
    encoded: Any = Rows(len(labels))
    return MetricAboveGuess.of(TASK, rows, encoded, labels, outputs), outputs


def answers(classes: list[int]) -> list[torch.Tensor]:
    return vectors(*([1.0, 0.0] if each == 0 else [0.0, 1.0] for each in classes))


LABELS = [0, 1] * 50


def test_the_dense_model_keeps_all() -> None:
    measure, outputs = measure_of(LABELS, right=90)
    quality = measure.judge(outputs)
    assert (quality.value, quality.keep) == (0.9, 1.0)
    assert (measure.name, measure.labels, measure.count) == ("accuracy", True, 100)


def test_a_guess_keeps_nothing() -> None:
    measure, _ = measure_of(LABELS, right=90)
    quality = measure.judge(answers([1] * 100))
    assert quality.value == 0.5
    assert quality.keep < 0.1


def test_the_lower_end_of_the_interval_counts() -> None:
    """Nine of ten gained points are kept, but a hundred rows do not show that for sure."""
    measure, _ = measure_of(LABELS, right=90)
    quality = measure.judge(answers([label if i < 86 else 1 - label for i, label in enumerate(LABELS)]))
    assert quality.value == pytest.approx(0.86)
    assert 0.7 < quality.keep < 0.9
    draw = np.random.default_rng(0)
    right = np.arange(100)
    ratios = [
        ((rows < 86).mean() - 0.5) / ((rows < 90).mean() - 0.5)
        for rows in (right[draw.integers(100, size=100)] for _ in range(1000))
    ]
    assert quality.keep == pytest.approx(np.quantile(ratios, 0.05))


def test_logits_that_are_not_finite_are_wrong() -> None:
    measure, outputs = measure_of(LABELS, right=100)
    assert measure.judge([output * float("nan") for output in outputs]).value == 0.0


def test_a_dense_model_near_chance_has_nothing_to_keep() -> None:
    with pytest.raises(ValueError, match=r"accuracy of the dense 0.5200 is too close to chance, 0.5000"):
        measure_of(LABELS, right=52)


def test_a_head_of_another_task_is_refused() -> None:
    measure, _ = measure_of(LABELS, right=100)
    with pytest.raises(ValueError, match="needs a head of 2 outputs"):
        measure.judge(vectors(*[[1.0, 0.0, 0.0]] * 100))
