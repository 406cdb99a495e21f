"""Records as a benchmark writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sparsebert.bench.environment import detect
from sparsebert.bench.workload import Workload
from sparsebert.results import Record, stamp


@pytest.fixture(scope="session")
def bench_record() -> Callable[..., Record]:
    """A "bench" record of the sparse side (or another) with the ratios given."""
    environment = detect().record()

    def make(sparsity: float = 0.9, provider: str = "sparse", **changes: Any) -> Record:
        workload = Workload("bert-base").record()
        ticket = {"granularity": "element", "block_size": None, "sparsity": sparsity, "density": 1 - sparsity}
        fields: dict[str, Any] = {
            "environment": environment,
            "workload": workload,
            "ticket": ticket,
            "format": "auto",
            "provider": provider,
            "in_worker": False,
            "notes": {},
            "rounds": 9,
            "latency_ms": {"median": 30.0, "p20": 29.0, "p80": 31.0},
            "ratio": {"onednn": ratio(3.5), "eager": ratio(7.0)},
            "samples_per_s": 33.3,
            "tokens_per_s": 4266.7,
            "weight_bytes": 44_000_000,
            "memory": None,
            "gate": {"error": 1e-6, "tolerance": 1e-4},
            "busy": False,
            "busy_reasons": [],
        }
        return stamp("bench", {**fields, **changes})

    return make


def ratio(median: float) -> dict[str, float]:
    return {"median": median, "p20": 0.95 * median, "p80": 1.05 * median}
