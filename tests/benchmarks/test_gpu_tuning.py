"""Sweeps of the forward kernel: each side launches its own configuration in every call."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks.gpu.device import DryRun
from benchmarks.gpu.tuning import FORWARD, _name, measure_occupancy, measure_tuning
from sparsebert_kernels.cuda import on_cpu, panel_forward

POINT = {"shape": (128, 128), "tokens": 12, "block": (64, 64), "sparsity": 0.9}


@pytest.fixture(autouse=True)
def _interpreted() -> Iterator[None]:
    with on_cpu():
        yield


@pytest.mark.parametrize(
    "measure",
    [measure_occupancy, functools.partial(measure_tuning, kernel=FORWARD)],
    ids=["occupancy", "sweep"],
)
def test_every_side_launches_its_own_configuration(
    measure: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: Counter[str] = Counter()
    launch = panel_forward._launch

    def counted(*arguments: Any) -> None:
        launched[_name(arguments[6])] += 1
        launch(*arguments)

    monkeypatch.setattr(panel_forward, "_launch", counted)
    found = measure(DryRun(), **POINT)
    assert launched.keys() == found["us"].keys() - {"cublas"}
    assert len(launched) >= 3
    assert len({*launched.values()}) == 1
