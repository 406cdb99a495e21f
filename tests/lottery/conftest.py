"""The tests of the lottery write many small files; none of them is about a loss of power."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave files to the cache of the operating system, which outlives a killed process."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
