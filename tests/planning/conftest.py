"""A cost cache for the tests alone, and timings with arranged results."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from sparsebert.cost import candidates, cpu_cost
from sparsebert.planning import layer_timing
from sparsebert_kernels.cpu import native
from sparsebert_kernels.timing import Paired


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "supports", lambda *_: False)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Arrange the speed-ups of the coming timings, the last for all others; returns the tokens of each."""

    def arrange(*speedups: float) -> list[int]:
        count: list[int] = []

        def paired(mine: Callable[[], Tensor], other: Callable[[], Tensor]) -> Paired:
            torch.testing.assert_close(mine(), other(), rtol=1e-3, atol=1e-3)
            speedup = speedups[min(len(count), len(speedups) - 1)]
            count.append(mine().shape[0])
            return Paired(mine=1e-3, other=speedup * 1e-3, speedup=speedup, rounds=7)

        monkeypatch.setattr(layer_timing, "paired", paired)
        monkeypatch.setattr(candidates, "cost_model", built_in)
        return count

    def built_in(dtype: torch.dtype, tokens: int, *, measure: bool) -> cpu_cost.CpuCostModel:
        return cpu_cost.cost_model(dtype, tokens, measure=False)

    return arrange
