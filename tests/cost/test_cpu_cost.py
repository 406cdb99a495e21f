"""The cost model of CPUs: measured once, cached in a file, and harmless where that fails."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebert.cost import cpu_cost
from sparsebert.cost.work import Cost, WorkEstimate
from sparsebert_kernels.cpu import native
from sparsebert_kernels.cpu.row_panels import step_costs
from sparsebert_kernels.timing import Least


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, on disk and in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu_cost._measured.cache_clear()
    yield tmp_path
    cpu_cost._measured.cache_clear()


@pytest.fixture
def calibrations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.dtype, int]]:
    """The calibrations that happen; each gives the same made-up costs."""
    calls: list[tuple[torch.dtype, int]] = []

    def calibrate(dtype: torch.dtype, tokens: int) -> tuple[dict[str, Cost], bool]:
        calls.append((dtype, tokens))
        return {kind: Cost(1e-6, 2e-12, 3e-12) for kind in cpu_cost.runnable(dtype)}, False

    monkeypatch.setattr(cpu_cost, "calibrate", calibrate)
    return calls


def forget() -> None:
    """Drop the cache in memory, as a new process does."""
    cpu_cost._measured.cache_clear()


def test_is_measured_once_and_kept(calibrations: list, folder: Path) -> None:
    for _ in range(2):
        for tokens in (128, 120, 32):
            model = cpu_cost.cost_model(torch.float32, tokens)
            assert model.tokens == tokens
        forget()
    assert calibrations == [(torch.float32, 128), (torch.float32, 32)]
    (file,) = (folder / "sparsebert").iterdir()
    content = json.loads(file.read_text())
    assert content["seconds"]["float32, 128 tokens"]["dense"] == [1e-6, 2e-12, 3e-12]


def test_what_a_busy_machine_gives_is_neither_used_nor_kept(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(cpu_cost, "least", lambda work, budget: Least(1e-3, busy=True))
    model = cpu_cost.cost_model(torch.float32, 128)
    assert model.costs == cpu_cost.built_in(torch.float32)
    assert model.source == "built-in costs: the machine is too busy to measure"
    assert not (folder / "sparsebert").exists()
    monkeypatch.setattr(cpu_cost, "least", lambda work, budget: Least(1e-3, busy=False))
    forget()
    cpu_cost.cost_model(torch.float32, 128)
    assert (folder / "sparsebert").exists()


def test_a_busy_machine_is_measured_again_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[int] = []

    def calibrate(dtype: torch.dtype, tokens: int) -> tuple[dict[str, Cost], bool]:
        attempts.append(tokens)
        return {}, True

    monkeypatch.setattr(cpu_cost, "calibrate", calibrate)
    moment = cpu_cost.time.monotonic()
    torch.set_num_threads(1)
    for later, count in ((0, 1), (1, 1), (cpu_cost.RETRY_SECONDS + 60, 2)):
        monkeypatch.setattr(cpu_cost.time, "monotonic", lambda later=later: moment + later)
        cpu_cost.cost_model(torch.float32, 128)
        assert len(attempts) == count


def test_costs_of_one_thread_serve_where_those_of_more_cannot_be_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The processor time of one thread can be read on a busy machine too."""

    def calibrate(dtype: torch.dtype, tokens: int) -> tuple[dict[str, Cost], bool]:
        costs = {kind: Cost(1e-6, 2e-12, 3e-12) for kind in cpu_cost.runnable(dtype)}
        return costs, torch.get_num_threads() > 1

    monkeypatch.setattr(cpu_cost, "calibrate", calibrate)
    torch.set_num_threads(2)
    try:
        model = cpu_cost.cost_model(torch.float32, 128)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert model.costs["dense"] == Cost(1e-6, 2e-12, 3e-12)
    assert model.source == "costs measured here on one thread"


def test_the_quick_model_measures_one_thread_and_prefers_what_is_in_the_file(calibrations: list) -> None:
    torch.set_num_threads(2)
    try:
        assert cpu_cost.quick_cost_model(torch.float32, 128).source == "costs measured here on one thread"
        assert len(calibrations) == 1
        cpu_cost.cost_model(torch.float32, 128)
        assert len(calibrations) == 2
        forget()
        assert cpu_cost.quick_cost_model(torch.float32, 128).source == "costs measured here"
        assert len(calibrations) == 2
    finally:
        torch.set_num_threads(1)


def test_depends_on_threads(calibrations: list) -> None:
    torch.set_num_threads(1)
    cpu_cost.cost_model(torch.float32, 128)
    torch.set_num_threads(2)
    cpu_cost.cost_model(torch.float32, 128)
    assert len(calibrations) == 2


def test_long_inputs_are_not_measured_at_full_length(calibrations: list) -> None:
    cpu_cost.cost_model(torch.float32, 100_000)
    assert calibrations == [(torch.float32, cpu_cost.MAX_CALIBRATED_TOKENS)]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"machine": [], "seconds": {}}',
        "null",
        "MACHINE: 3",
        '{"machine": MACHINE, "seconds": {"float32, 128 tokens": {"dense": [NaN, 0, 0]}}}',
        '{"machine": MACHINE, "seconds": {"float32, 128 tokens": {"dense": [-1, 0, 0]}}}',
        '{"machine": MACHINE, "seconds": {"float32, 128 tokens": {"dense": [1, 0]}}}',
        '{"machine": MACHINE, "seconds": {"float32, 128 tokens": {"dense": ["x", 0, 0]}}}',
        '{"machine": MACHINE, "seconds": {"float32, 128 tokens": {"dense": [1, 0, 0]}}}',
        '{"machine": MACHINE, "seconds": 5}',
    ],
)
def test_a_damaged_file_is_measured_anew(calibrations: list, content: str) -> None:
    cpu_cost.cost_model(torch.float32, 128)
    path = cpu_cost.cache_file()
    path.write_text(content.replace("MACHINE", json.dumps(json.loads(path.read_text())["machine"])))
    forget()
    model = cpu_cost.cost_model(torch.float32, 128)
    assert model.costs.keys() == set(cpu_cost.runnable(torch.float32))
    assert len(calibrations) == 2
    forget()
    cpu_cost.cost_model(torch.float32, 128)
    assert len(calibrations) == 2


def test_a_folder_that_cannot_be_written_does_no_harm(
    calibrations: list, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = folder / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert cpu_cost.cost_model(torch.float32, 128).costs


def test_a_failed_write_leaves_the_file_and_no_litter(
    calibrations: list, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_cost.cost_model(torch.float32, 128)
    before = cpu_cost.cache_file().read_text()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    cpu_cost.cost_model(torch.float32, 32)
    (file,) = (folder / "sparsebert").iterdir()
    assert file.read_text() == before


def test_built_in_costs_need_no_measurement_and_no_file(calibrations: list, folder: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        costs = cpu_cost.cost_model(dtype, 128, measure=False).costs
        assert costs.keys() == set(cpu_cost.runnable(dtype))
        for cost in costs.values():  # picoseconds, of a machine of today or ten times slower
            assert 1e-12 < cost.per_stored < 1e-9
            assert 1e-12 < cost.per_line < 1e-8
    assert not calibrations
    assert not list(folder.iterdir())


def test_without_the_native_library_csr_takes_the_place_of_sparse_formats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "supports", lambda *_: False)
    assert cpu_cost.runnable(torch.float32) == ("dense", "compact", "csr")
    assert cpu_cost.runnable(torch.bfloat16) == ("dense", "compact")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_calibration_gives_costs_that_grow_with_the_work(dtype: torch.dtype) -> None:
    for kind, cost in cpu_cost.calibrate(dtype, 64)[0].items():
        small, large = (WorkEstimate(kind, stored, 512, 0) for stored in (10_000, 1_000_000))
        assert 0 < cost.seconds(small, 64) < cost.seconds(large, 64) < 1, kind


@pytest.mark.skipif(not cpu_cost.row_panel_kinds("bf16"), reason="no kernels for row panels here")
def test_noise_does_not_order_the_heights_of_row_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)

    def least(run: Any, budget: float) -> Least:
        return Least(1e-4 * (1 + float(torch.rand(1, generator=generator))), busy=False)

    monkeypatch.setattr(cpu_cost, "least", least)
    costs, _ = cpu_cost.calibrate(torch.float32, 64, "bf16")
    panels = {height: costs[kind] for kind, height in cpu_cost.row_panel_kinds("bf16").items()}
    timed = panels[cpu_cost.TIMED_HEIGHT]
    for height, cost in panels.items():
        factor = step_costs()[height] / step_costs()[cpu_cost.TIMED_HEIGHT]
        assert cost.per_stored == pytest.approx(factor * timed.per_stored)
        assert (cost.fixed, cost.per_line) == (timed.fixed, timed.per_line)


def test_the_fit_recovers_what_the_times_were_made_of() -> None:
    features = [[1.0, 5e6, 6e4], [1.0, 2e7, 1e5], [1.0, 9e7, 2e5], [1.0, 1e7, 4e5]]
    for fixed, stored, line in ((2e-5, 1e-11, 2e-10), (0.0, 1e-11, 0.0), (1e-5, 3e-11, 0.0)):
        seconds = [fixed * a + stored * b + line * c for a, b, c in features]
        fit = cpu_cost._fit(features, seconds)
        assert (fit.fixed, fit.per_stored, fit.per_line) == pytest.approx(
            (fixed, stored, line), rel=1e-6, abs=1e-15
        )


def test_the_fit_never_goes_below_zero() -> None:
    fit = cpu_cost._fit([[1.0, 1e6, 1e4], [1.0, 2e6, 1e4], [1.0, 4e6, 2e4]], [3e-4, 2e-4, 1e-4])
    assert min(fit.fixed, fit.per_stored, fit.per_line) >= 0
