"""Reports tell the share of the whole work that is done, and the time that the rest takes."""

from __future__ import annotations

import pytest

from sparsebert import prune_
from sparsebert.one_shot import FisherUnits, ZipLM
from sparsebert.one_shot import progress as progress_module
from sparsebert.one_shot.progress import ALLOCATE, GRADIENTS, PRUNE, ProgressReporter, Report
from tests.pruning.gated_models import batches, build


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_the_rest_takes_as_long_as_the_pace_of_the_step_says(clock: list[float]) -> None:
    reports: list[Report] = []
    reporter = ProgressReporter(
        {(ALLOCATE, "a"): 1, (ALLOCATE, "b"): 1, (PRUNE, "a"): 4, (PRUNE, "b"): 2}, reports.append
    )
    reporter.begin(ALLOCATE)
    clock[0] = 3.0
    reporter.finish("a")
    reporter.finish("b")
    reporter.begin(PRUNE)
    clock[0] = 23.0
    reporter.finish("a", 0.25, 0.5)
    clock[0] = 33.0
    reporter.finish("b", 0.5, 0.5)
    assert [report.done for report in reports] == pytest.approx([1 / 8, 2 / 8, 6 / 8, 1])
    assert [report.seconds_left for report in reports] == pytest.approx([21, 9, 10, 0])
    assert str(reports[0]) == "a: measured for its share of the sparsity; 12% done"
    assert str(reports[2]) == "a: 25.0% of its outputs lost; 75% done"


def test_parts_of_an_earlier_call_are_done_but_tell_nothing_of_the_pace(clock: list[float]) -> None:
    reports: list[Report] = []
    reporter = ProgressReporter({(PRUNE, name): 1 for name in "abcd"}, reports.append)
    reporter.skip([(PRUNE, "a"), (PRUNE, "b")])
    reporter.begin(PRUNE)
    clock[0] = 5.0
    reporter.finish("c")
    assert (reports[0].done, reports[0].seconds_left) == (0.75, 5.0)


@pytest.mark.parametrize(
    ("method", "options", "steps"),
    [
        ("alps", {}, [ALLOCATE, PRUNE]),
        ("wanda", {"allocate": "uniform"}, [PRUNE]),
        (ZipLM(), {"granularity": "head+neuron"}, [ALLOCATE, PRUNE]),
        (FisherUnits(), {"granularity": "neuron"}, [GRADIENTS, PRUNE]),
        ("obert", {}, [GRADIENTS]),
    ],
    ids=str,
)
def test_every_part_of_the_work_is_reported(method: object, options: dict, steps: list[str]) -> None:
    reports: list[Report] = []
    prune_(build(), method, data=batches(3), sparsity=0.5, progress=reports.append, **options)
    assert list(dict.fromkeys(report.step for report in reports)) == steps
    shares = [report.done for report in reports]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.5
    assert shares[-1] == pytest.approx(1)
