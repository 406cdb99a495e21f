"""Timings of a moment, for tests of what surrounds them."""

from __future__ import annotations

from typing import Any

import pytest

from sparsebert.bench import cpu_ceilings
from sparsebert.bench.runner import Settings, time_backends
from sparsebert.workflows import speed_target

_BRIEF = Settings(budget=0.02, memory=False, retries=0)


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the search for a speed time each proposal once, for a moment.

    It repeats a timing while other processes are busy, as they always are while tests run side by side.
    """

    def time_briefly(backends: Any, settings: Settings, **options: Any) -> Any:
        return time_backends(backends, _BRIEF, **options)

    monkeypatch.setattr(speed_target, "time_backends", time_briefly)


def shorten_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ceilings of the CPU be measured on products and arrays that take milliseconds."""
    monkeypatch.setattr(cpu_ceilings, "PRODUCTS", ((64, 128, 128),))
    monkeypatch.setattr(cpu_ceilings, "ARRAY_BYTES", (2**20, 2**20))
