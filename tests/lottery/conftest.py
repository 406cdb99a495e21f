"""The tests of the lottery train tiny models: one thread, and no waiting for the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Sum in one order, so that equal runs are equal to the bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave files to the cache of the operating system, which outlives a killed process."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
