"""pytest-benchmark: the time to prune BERT-base, and to save, load and pack its ticket."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from sparsebert.bench.workload import Workload
from sparsebert.pruning import prune
from sparsebert.sparsify import sparsify_
from sparsebert.tickets.ticket import Ticket


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return Workload("bert-base").load_model()


@pytest.fixture(scope="module")
def ticket(model) -> Ticket:
    return prune(model, "magnitude", sparsity=0.9)


def test_prune_globally(benchmark, model) -> None:
    benchmark.pedantic(prune, (model, "magnitude"), {"sparsity": 0.9}, rounds=3)


def test_save(benchmark, ticket, tmp_path: Path) -> None:
    benchmark.pedantic(ticket.save, (tmp_path / "ticket.safetensors",), rounds=5)


def test_load(benchmark, ticket, tmp_path: Path) -> None:
    ticket.save(tmp_path / "ticket.safetensors")
    benchmark.pedantic(Ticket.load, (tmp_path / "ticket.safetensors",), rounds=5)


def test_pack(benchmark, model, ticket) -> None:
    benchmark.pedantic(
        lambda dense: sparsify_(dense, ticket, format="element"),
        setup=lambda: ((copy.deepcopy(model),), {}),
        rounds=3,
    )
