"""A one-shot run that is killed at any moment goes on when it is repeated, and ends with the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from sparsebert import prune_
from sparsebert.one_shot import Alps, FisherUnits, OptimalBertSurgeon, SparseGPT, ZipLM
from sparsebert.one_shot.allocation import _matrices_alone
from sparsebert.one_shot.progress import Report
from sparsebert.tickets.provenance import weight_hash
from tests.pruning.gated_models import batches, build

UNITS = {"granularity": "head+neuron"}
# Blocks of the Fisher matrix of this size do not fit into memory together: matrices are taken in parts.
PARTS = OptimalBertSurgeon(recomputations=2, damping=1e-4, memory=5e-4)
RUNS = {
    "sparsegpt": (SparseGPT(), {}),
    "alps": (Alps(), {"reproduce": "layer"}),
    "ziplm": (ZipLM(), UNITS),
    "fisher-units, labels": (FisherUnits(), UNITS),
    "fisher-units, outputs": (FisherUnits(loss="outputs", probes=2, teacher="halfway"), UNITS),
    "obert": (OptimalBertSurgeon(recomputations=3, damping=1e-4), {}),
    "obert in parts": (PARTS, {}),
}


class Killed(BaseException):
    pass


def pruned(run: str, model: Any, **options: Any) -> Any:
    method, more = RUNS[run]
    return prune_(model, method, data=batches(3), sparsity=0.5, **more, **options)


def killing(after: int) -> Callable[[Report], None]:
    """Kill a run at a report."""
    left = after

    def listen(report: Report) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    return listen


@pytest.mark.parametrize("run", RUNS)
def test_it_ends_the_same_wherever_it_is_killed(run: str, tmp_path: Path) -> None:
    dense, whole = build(), build()
    reports: list[Report] = []
    expected = pruned(run, whole, progress=reports.append)
    checkpoint = tmp_path / "unfinished"
    for after in (2, 2 * len(reports) // 3, len(reports)):
        with pytest.raises(Killed):
            pruned(run, copy.deepcopy(dense), checkpoint=checkpoint, progress=killing(after))
        model, resumed = copy.deepcopy(dense), []
        ticket = pruned(run, model, checkpoint=checkpoint, progress=resumed.append)
        assert ticket == expected
        assert weight_hash(model) == weight_hash(whole)
        assert ticket.metadata.get("errors") == expected.metadata.get("errors")
        assert len(resumed) <= len(reports)
        assert not resumed or resumed[-1].done == pytest.approx(1)
        checkpoint.unlink(missing_ok=True)


@pytest.mark.parametrize("run", RUNS)
def test_what_is_finished_is_not_repeated(run: str, tmp_path: Path) -> None:
    reports: list[Report] = []
    pruned(run, build(), progress=reports.append)
    checkpoint = tmp_path / "unfinished"
    with pytest.raises(Killed):
        pruned(run, build(), checkpoint=checkpoint, progress=killing(len(reports)))
    resumed: list[Report] = []
    pruned(run, build(), checkpoint=checkpoint, progress=resumed.append)
    assert len(resumed) <= len(reports) / 2
    assert resumed[0].done > 0.5


@pytest.mark.parametrize("run", ["sparsegpt", "ziplm"])
def test_densities_that_were_allocated_are_never_allocated_again(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, checkpoint = build(), tmp_path / "unfinished"
    expected = pruned(run, copy.deepcopy(model))

    def kill(report: Report) -> None:
        if report.step == "prune":
            raise Killed

    with pytest.raises(Killed):
        pruned(run, copy.deepcopy(model), checkpoint=checkpoint, progress=kill)
    monkeypatch.setattr("sparsebert.one_shot.allocation._matrices_alone", None)
    reports: list[Report] = []
    assert pruned(run, model, checkpoint=checkpoint, progress=reports.append) == expected
    assert {report.step for report in reports} == {"prune"}
    assert reports[0].done > 0.3


@pytest.mark.parametrize("run", ["sparsegpt", "ziplm"])
def test_a_matrix_is_measured_once(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def counted(model: Any, keys: list[str], data: Any) -> Any:
        for each in _matrices_alone(model, keys, data):
            measured.append(each[0])
            yield each

    monkeypatch.setattr("sparsebert.one_shot.allocation._matrices_alone", counted)
    checkpoint = tmp_path / "unfinished"
    with pytest.raises(Killed):
        pruned(run, build(), checkpoint=checkpoint, progress=killing(3))
    pruned(run, build(), checkpoint=checkpoint)
    assert len(measured) == len(set(measured))


def test_the_fisher_blocks_are_not_stored(tmp_path: Path) -> None:
    checkpoint, model = tmp_path / "unfinished", build()
    pruned("obert in parts", model, checkpoint=checkpoint)
    with safe_open(checkpoint, "pt") as file:
        stored = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    assert stored < 2 * sum(parameter.nbytes for parameter in model.parameters())


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "unfinished"
    pruned("obert", build(), checkpoint=checkpoint)
    for run in ("fisher-units, labels", "obert in parts"):
        with pytest.raises(ValueError, match="belongs to a run with other options, data or weights"):
            pruned(run, build(), checkpoint=checkpoint)
