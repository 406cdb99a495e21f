"""The sweeps of ``make gpu``: each configuration is timed as itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.gpu import tuning
from benchmarks.gpu.device import DryRun
from sparsebert_kernels import reference
from sparsebert_kernels.cuda import on_cpu, panel_forward
from sparsebert_kernels.cuda.tile_rule import Configuration

POINT: dict[str, Any] = {"shape": (128, 128), "tokens": 12, "block": (64, 64), "sparsity": 0.5}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[Configuration]]:
    """How often each configuration was launched."""
    counts: Counter[Configuration] = Counter()

    def launch(x: Any, packed: Any, bias: Any, activation: str, residual: Any, y: Any, *how: Any) -> None:
        counts[how[0]] += 1
        y.copy_(reference.linear(x, packed.to_dense(), bias, activation))

    monkeypatch.setattr(panel_forward, "_launch", launch)
    with on_cpu():
        yield counts


def test_a_sweep_launches_each_candidate_equally_often(launched: Counter[Configuration]) -> None:
    found = tuning.measure_tuning(DryRun(), kernel=tuning.FORWARD, **POINT)
    assert {tuning._name(each) for each in launched} == found["us"].keys() - {"cublas"}
    assert len(launched) > 1
    assert len(set(launched.values())) == 1


def test_the_occupancy_of_each_configuration_is_its_own(launched: Counter[Configuration]) -> None:
    tuning.measure_occupancy(DryRun(), **POINT)
    assert launched.keys() == set(tuning.OCCUPANCY)
    assert len(set(launched.values())) == 1
