"""Keys: integers in the order of scores, and what is counted by them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from sparsebert_kernels import radix_select
from sparsebert_kernels.cpu import native

floats = st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, math.inf, -math.inf, 1e-45])


@st.composite
def scores(draw: st.DrawFn, values: st.SearchStrategy[float] = floats) -> Tensor:
    return torch.tensor(draw(st.lists(values, min_size=1, max_size=40)), dtype=torch.float32)


@pytest.fixture(params=[True, False], ids=["compiled", "torch"], scope="class")
def compiled(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param and not native.available():
        pytest.skip(f"native kernels: {native.why_unavailable()}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "available", lambda: request.param)
        yield


@given(scores())
def test_keys_are_in_the_order_of_the_scores(scores: Tensor) -> None:
    keys = radix_select.keys(scores)
    assert torch.equal(keys[:, None] < keys, scores[:, None] < scores)
    assert torch.equal(keys[:, None] == keys, scores[:, None] == scores)


@given(scores())
def test_a_score_is_known_by_its_two_bins(scores: Tensor) -> None:
    upper, _ = radix_select.halves(radix_select.keys(scores[:1]), None)
    lower, _ = radix_select.halves(radix_select.keys(scores[:1]), int(upper))
    assert radix_select.score(int(upper), int(lower)) == float(scores[0])


@pytest.mark.usefixtures("compiled")
class TestCounting:
    @given(scores(floats | st.just(math.nan)))
    def test_every_score_but_nan_is_in_one_bin(self, scores: Tensor) -> None:
        live = scores[~scores.isnan()]
        bins, _ = radix_select.halves(radix_select.keys(live), None)
        by_upper = radix_select.count(scores, None)
        assert torch.equal(by_upper, torch.bincount(bins, minlength=radix_select.BINS))
        for upper in bins.unique().tolist():
            lower, where = radix_select.halves(radix_select.keys(live), upper)
            assert where is not None
            assert len(lower) == int(where.count_nonzero()) == int(by_upper[upper])
            assert torch.equal(
                radix_select.count(scores, upper), torch.bincount(lower, minlength=radix_select.BINS)
            )

    @given(scores(floats | st.just(math.nan)), floats)
    def test_what_lies_above_a_threshold_is_marked(self, scores: Tensor, threshold: float) -> None:
        out = torch.empty(len(scores), dtype=torch.bool)
        above, at = radix_select.above(scores, threshold, out)
        assert torch.equal(out, scores > threshold)
        assert (above, at) == (int((scores > threshold).sum()), int((scores == threshold).sum()))
