"""A made-up folder of RAPL, the energy counters of a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsebert.accounting import energy


def write_domain(folder: Path, number: str, name: str, count: int = 0, most: int = 10**15 - 1) -> Path:
    """Write a domain and return the file of its counter, in microjoules, which wraps at ``most``."""
    domain = folder / f"intel-rapl:{number}"
    domain.mkdir(parents=True)
    for file, content in (("name", name), ("max_energy_range_uj", most), ("energy_uj", count)):
        (domain / file).write_text(f"{content}\n")
    return domain / "energy_uj"


def read_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let meters read the counters in a folder instead of the machine's."""
    monkeypatch.setattr(energy.open_counters, "__kwdefaults__", {"folder": folder})
