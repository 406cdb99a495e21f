"""Ceilings: rates of the fastest products and streams, and no line for what the CPU lacks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebert.bench import cpu_ceilings
from sparsebert.bench.cpu_ceilings import last_level_cache, measure_ceilings
from tests import brief_timings


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    brief_timings.shorten_ceilings(monkeypatch)


def write_cache(folder: Path, number: int, level: str, kind: str, size: str) -> None:
    cache = folder / f"index{number}"
    cache.mkdir()
    for name, value in (("level", level), ("type", kind), ("size", size)):
        (cache / name).write_text(f"{value}\n")


@pytest.mark.usefixtures("small")
def test_rates_are_measured_and_a_lower_precision_has_one_only_where_it_is_faster() -> None:
    torch.set_num_threads(1)
    ceilings = measure_ceilings(1, budget=0.0)
    assert next(iter(ceilings.flops)) == "fp32"
    rates = list(ceilings.flops.values())
    assert rates == sorted(rates)
    assert ceilings.flops.keys() == ceilings.products.keys()
    assert ceilings.products["fp32"].endswith(" 64x128x128")
    assert ceilings.read > 0
    assert ceilings.copy > 0
    assert all(ceilings.medians[name] <= rate for name, rate in ceilings.flops.items())
    assert ceilings.medians["read"] <= ceilings.read
    assert json.loads(json.dumps(ceilings.record())) == ceilings.record()


@pytest.mark.usefixtures("small")
def test_tokens_grow_with_the_threads() -> None:
    names = [each.name for each in cpu_ceilings._products(threads=2)]
    assert "oneDNN fp32 128x128x128" in names


@pytest.mark.usefixtures("small")
def test_without_the_library_ours_are_missing_and_without_a_product_of_int8_its_ceiling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu_ceilings.native, "supports", lambda *arguments: False)
    monkeypatch.delattr(torch, "_int_mm")
    ceilings = measure_ceilings(1, budget=0.0)
    assert "int8" not in ceilings.flops
    assert all(name.startswith("oneDNN") for name in ceilings.products.values())


@pytest.mark.usefixtures("small")
def test_an_emulated_precision_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def runs(precision: str, *shape: int) -> Iterator[tuple[str, Any]]:
        yield f"oneDNN {precision}", lambda: time.sleep(0.02 if precision == "bf16" else 0.001)

    monkeypatch.setattr(cpu_ceilings, "_runs", runs)
    assert [each.precision for each in cpu_ceilings._products(threads=1)] == ["fp32", "int8"]


@pytest.mark.usefixtures("small")
def test_where_the_size_of_the_cache_is_unknown_it_has_no_bandwidth(tmp_path: Path) -> None:
    ceilings = measure_ceilings(1, budget=0.0, caches=tmp_path)
    assert ceilings.cache_bytes is None
    assert ceilings.cache_read is None
    assert ceilings.array_bytes == 2**20
    assert "cache_read" not in ceilings.medians


def test_the_last_level_is_read_in_bytes_and_instructions_have_none(tmp_path: Path) -> None:
    assert last_level_cache(tmp_path) is None
    write_cache(tmp_path, 0, "1", "Data", "32K")
    write_cache(tmp_path, 1, "1", "Instruction", "64K")
    assert last_level_cache(tmp_path) == 32 * 2**10
    write_cache(tmp_path, 2, "3", "Unified", "16M")
    write_cache(tmp_path, 3, "2", "Unified", "1024K")
    assert last_level_cache(tmp_path) == 16 * 2**20
    write_cache(tmp_path, 4, "4", "Unified", "many")
    assert last_level_cache(tmp_path) == 16 * 2**20
