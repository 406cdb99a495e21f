"""Ragged batches on a GPU, plain and in graphs: nothing is timed in the name of a graph that does not run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import sparsebert
from benchmarks.gpu import requests
from benchmarks.gpu.device import DryRun
from sparsebert_kernels.cuda import on_cpu

POINT = {"model": "bert-tiny", "batch": 1, "block": (64, 64), "sparsity": 0.9}
pytestmark = pytest.mark.filterwarnings("ignore:cpu has no CUDA graphs")


@pytest.fixture(autouse=True)
def _interpreted() -> Iterator[None]:
    with on_cpu():
        yield


def test_all_sides_answer_and_the_baseline_has_graphs_too() -> None:
    found = requests.measure_requests(DryRun(), **POINT)
    graphs = {"graphs dense", "graphs sparse", "graphs dense, one row", "graphs sparse, one row"}
    assert found["us"].keys() == {"dense", "fused dense", "fused sparse", *graphs}
    assert (found["baseline"], found["side"]) == ("graphs dense, one row", "graphs sparse, one row")
    assert found["ratio"].keys() == found["us"].keys() - {"graphs dense, one row"}
    assert (found["batches"], found["buckets"]) == (2, dict.fromkeys(graphs, ((1, 16),)))


def test_a_call_without_a_graph_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "graphs", lambda model: sparsebert.graphs(model, [(1, 4)]))
    with pytest.raises(UserWarning, match="a batch of 1 x 12 is larger than each bucket: 1 x 4"):
        requests.measure_requests(DryRun(), **POINT)


def test_lengths_are_ragged_and_the_same_in_every_run() -> None:
    lengths = requests._lengths(32, dry_run=False)
    assert lengths == requests._lengths(32, dry_run=False)
    assert len(lengths) == 32 * requests.REQUESTS
    assert min(lengths) >= requests.MIN_LENGTH
    assert requests.MAX_LENGTH / 2 < max(lengths) <= requests.MAX_LENGTH
