"""The state of a run in one line."""

from __future__ import annotations

import pytest

from sparsebert.training import run_status
from sparsebert.training.run_status import RunStatus, duration_text


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the status reads, in a list of one."""
    now = [0.0]
    monkeypatch.setattr(run_status.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def status(clock: list[float]) -> RunStatus:
    started = RunStatus(3, "accuracy")
    assert started.line() == ""
    started.begin_round(0, "round 1 of 3, 0.0% sparse")
    started.begin_phase("deciding on the ticket")
    return started


def test_training_is_told_with_step_loss_and_time(status: RunStatus, clock: list[float]) -> None:
    status.begin_training(0, 600)
    assert status.line() == "round 1 of 3, 0.0% sparse: step 0 of 600"
    clock[0] = 200.0
    status.note_step(100)
    status.note_loss(0.43219)
    assert status.line() == (
        "round 1 of 3, 0.0% sparse: step 100 of 600, loss 0.4322, 17 min left, 57 min with the later rounds"
    )


def test_a_resumed_training_is_timed_from_where_it_resumed(status: RunStatus, clock: list[float]) -> None:
    status.begin_round(2, "round 3 of 3")
    status.begin_training(500, 600)
    clock[0] = 10.0
    status.note_step(520)
    assert status.line() == "round 3 of 3: step 520 of 600, 40 s left"


def test_a_search_is_told_with_its_evaluations(status: RunStatus, clock: list[float]) -> None:
    judge = status.noting(lambda model, examples, seed: 0.25 * seed)
    assert judge is not None
    assert judge(None, None, 3) == 0.75  # type: ignore[arg-type]
    judge(None, None, 2)  # type: ignore[arg-type]
    clock[0] = 150.0
    assert status.line() == (
        "round 1 of 3, 0.0% sparse: deciding on the ticket for 2 min, 2 evaluations, last accuracy 0.5000"
    )
    assert status.noting(None) is None


def test_a_finished_round_is_told_with_its_metric_and_the_time_of_the_others(status: RunStatus) -> None:
    line = status.round_line("round 1 of 3", 600, 0.4, {"loss": 1.0, "accuracy": 0.9}, 1200.0, 1200.0)
    assert (
        line
        == "round 1 of 3: step 600 of 600, loss 0.4000, accuracy 0.9000, done in 20 min, about 40 min left"
    )
    status.begin_round(1, "round 2 of 3")
    status.begin_training(0, 600)
    assert status.line() == "round 2 of 3: step 0 of 600, last accuracy 0.9000"
    status.begin_round(2, "round 3 of 3")
    assert status.round_line("round 3 of 3", 9, None, {"mcc": 0.5}, 5, 5) == (
        "round 3 of 3: step 9 of 9, mcc 0.5000, done in 5 s"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (99, "99 s"), (100, "2 min"), (5940, "99 min"), (6000, "1.7 h"), (86400, "24.0 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
