"""Exact selection: the highest scores by one stable order, for any ties, and exactly as many as requested."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from sparsebert.pruning import top_k as module
from sparsebert.pruning.top_k import ranked, select_top
from sparsebert_kernels.cpu import native

floats = st.floats(width=32, allow_nan=False)
tied = st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, 1.0000001, 1e-45])


@pytest.fixture(params=["at once", "in pieces", "without compiled kernels"], scope="class")
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "in pieces":
            patch.setattr(module, "_CPU_CHUNK", 5)
        if request.param == "without compiled kernels":
            patch.setattr(native, "available", lambda: False)
        yield


@st.composite
def scores(draw: st.DrawFn) -> list[Tensor]:
    values = draw(st.sampled_from([floats, tied, st.just(0.5)]))
    lists = draw(st.lists(st.lists(values, min_size=1, max_size=12), min_size=1, max_size=4))
    return [torch.tensor(values, dtype=torch.float32) for values in lists]


def ranking(scores: list[Tensor]) -> list[tuple[int, int]]:
    """Every entry as (tensor, index): score descending, then position, by a plain sort."""
    entries = [(i, j) for i, tensor in enumerate(scores) for j in range(len(tensor))]
    return sorted(entries, key=lambda entry: -scores[entry[0]][entry[1]].item())


def kept(masks: list[Tensor]) -> set[tuple[int, int]]:
    return {(i, int(j)) for i, mask in enumerate(masks) for j in mask.nonzero().flatten()}


@pytest.mark.usefixtures("way")
class TestAgainstAPlainSort:
    @settings(max_examples=settings.default.max_examples // 2)
    @given(scores(), st.integers(0, 100))
    def test_keeps_the_head_of_the_stable_ranking(self, scores: list[Tensor], percent: int) -> None:
        budget = Fraction(percent, 100) * sum(map(len, scores))
        masks = select_top([ranked(tensor) for tensor in scores], [1] * len(scores), budget)
        assert kept(masks) == set(ranking(scores)[: round(budget)])

    @settings(max_examples=settings.default.max_examples // 2)
    @given(scores(), st.data())
    def test_entries_of_several_sizes_come_nearest_to_the_budget(
        self, scores: list[Tensor], data: st.DataObject
    ) -> None:
        sizes: list[Tensor | int] = [
            data.draw(st.integers(1, 4) | st.just(torch.arange(1, len(tensor) + 1))) for tensor in scores
        ]
        flat = [
            torch.as_tensor(size).expand(len(tensor)).tolist()
            for tensor, size in zip(scores, sizes, strict=True)
        ]
        budget = Fraction(data.draw(st.integers(0, 100)), 100) * sum(map(sum, flat))
        order = ranking(scores)
        totals = [sum(flat[i][j] for i, j in order[:number]) for number in range(len(order) + 1)]
        nearest = min(range(len(totals)), key=lambda number: (abs(totals[number] - budget), number % 2))
        masks = select_top([ranked(tensor) for tensor in scores], sizes, budget)
        assert kept(masks) == set(order[:nearest])

    @settings(max_examples=settings.default.max_examples // 2)
    @given(scores(), st.data())
    def test_dead_entries_are_out_of_the_ranking(self, scores: list[Tensor], data: st.DataObject) -> None:
        alive = [
            torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(t), max_size=len(t)))) for t in scores
        ]
        living = kept(alive)
        number = data.draw(st.integers(0, len(living)))
        marked = [ranked(tensor, mask) for tensor, mask in zip(scores, alive, strict=True)]
        masks = select_top(marked, [1] * len(marked), Fraction(number))
        assert kept(masks) == set([entry for entry in ranking(scores) if entry in living][:number])
        if len(living) < sum(map(len, scores)):
            for more in (len(living) + 1, sum(map(len, scores))):
                with pytest.raises(ValueError, match="fewer weights are alive"):
                    select_top(marked, [1] * len(marked), Fraction(more))


@pytest.mark.parametrize(
    ("number", "budget", "expected"), [(5, "1/2", 0), (5, "3/2", 2), (5, "5/2", 2), (5, "26/10", 3)]
)
def test_halves_round_to_even_as_python_does(number: int, budget: str, expected: int) -> None:
    masks = select_top([ranked(torch.rand(number))], [1], Fraction(budget))
    assert masks[0].sum() == expected == round(Fraction(budget))


def test_a_million_ties_are_cut_at_the_right_place() -> None:
    [mask] = select_top([ranked(torch.zeros(1000, 1000))], [1], Fraction(123_456))
    assert mask.flatten()[:123_456].all()
    assert not mask.flatten()[123_456:].any()


def test_few_distinct_scores_as_after_one_adam_step() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 50, (300_000,), generator=generator).float() * 0.02
    [mask] = select_top([ranked(scores)], [1], Fraction(100_001))
    order = scores.argsort(descending=True, stable=True)
    assert torch.equal(mask, torch.zeros_like(mask).index_fill(0, order[:100_001], True))


def test_the_order_of_the_scores_does_not_mislead_the_sample() -> None:
    """Sorted, in waves, and with most of them at one value beside the cut."""
    count = 400_000
    rising = torch.arange(float(count))
    for scores in (
        rising,
        rising.sin(),
        rising.clamp(max=300_000.0),
        (rising % 65_536),
        rising.clamp(min=7e4),
    ):
        [mask] = select_top([ranked(scores)], [1], Fraction(90_001))
        order = scores.argsort(descending=True, stable=True)
        assert torch.equal(mask, torch.zeros_like(mask).index_fill(0, order[:90_001], True))


def test_shapes_and_strides_do_not_matter() -> None:
    scores = torch.rand(6, 8)
    for view in (scores, scores.t(), scores[::2, 1::3], scores[:1].expand(4, 8)):
        [mask] = select_top([ranked(view)], [1], Fraction(5))
        [flat] = select_top([ranked(view.flatten())], [1], Fraction(5))
        assert mask.shape == view.shape
        assert torch.equal(mask.flatten(), flat)


def test_scores_that_cannot_be_ranked_are_refused() -> None:
    for nan in (math.nan, -math.nan):
        with pytest.raises(ValueError, match="a score is NaN"):
            ranked(torch.tensor([1.0, nan]))
    with pytest.raises(ValueError, match=r"must be float32, got torch\.float64"):
        ranked(torch.ones(2, dtype=torch.float64))
    assert len(ranked(torch.tensor([1.0, math.nan]), torch.tensor([True, False]))) == 2


@pytest.mark.gpu
@given(scores(), st.integers(0, 100))
def test_a_gpu_selects_the_same(scores: list[Tensor], percent: int) -> None:
    budget = Fraction(percent, 100) * sum(map(len, scores))
    here = select_top([ranked(tensor) for tensor in scores], [1] * len(scores), budget)
    there = select_top([ranked(tensor.cuda()) for tensor in scores], [1] * len(scores), budget)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(here, there, strict=True))
