"""The timer: alternation, quantiles, paired ratios, and refusing to be sure on a busy machine."""

import contextlib
import itertools

import pytest

from sparsebert.bench import timer
from sparsebert.bench.contention import Contention
from sparsebert.bench.timer import Timings, alternate, on_plateau, on_wall, repeated
from sparsebert_kernels.timing import Quantiles


def constant(seconds: float, log: list[str] | None = None, name: str = ""):
    def run() -> float:
        if log is not None:
            log.append(name)
        return seconds

    return run


def test_sides_alternate_within_every_round_after_their_warm_up():
    log: list[str] = []
    sides = {"a": constant(1.0, log, "a"), "b": constant(2.0, log, "b")}
    alternate(sides, warmup=2, min_rounds=3, max_rounds=3)
    assert "".join(log) == "aabb" + "ab" * 3


def test_rounds_stop_when_the_budget_is_spent_but_not_before_the_minimum():
    ticks = itertools.count()
    timings = alternate({"a": constant(1.0)}, budget=5, min_rounds=2, clock=lambda: next(ticks))
    assert timings.rounds == 5
    timings = alternate({"a": constant(1.0)}, budget=0, min_rounds=4)
    assert timings.rounds == 4


def test_progress_rises_to_the_whole():
    shares: list[float] = []
    alternate({"a": constant(1.0)}, budget=0, min_rounds=4, on_round=shares.append)
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_ratio_is_taken_round_by_round_so_a_slow_moment_of_both_does_not_count():
    timings = Timings({"dense": [4.0, 40.0, 4.4], "sparse": [1.0, 10.0, 1.1]}, threads=1)
    assert timings.ratio("dense", "sparse") == Quantiles(pytest.approx(4), pytest.approx(4), pytest.approx(4))


def test_quantiles_interpolate_between_samples():
    assert Quantiles.of([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == Quantiles(3.5, 2.0, 5.0)
    assert Quantiles.of([1.0, 2.0]) == Quantiles(1.5, pytest.approx(1.2), pytest.approx(1.8))


def test_quantiles_of_nothing_are_refused():
    with pytest.raises(ValueError, match="at least one sample, got none"):
        Quantiles.of([])


def test_a_repeated_run_is_the_mean_of_its_calls():
    seconds = iter([1.0, 2.0, 6.0])
    assert repeated(lambda: next(seconds), 3)() == 3.0


def test_wall_clock_times_the_work_alone():
    now = [10.0]

    def work() -> None:
        now[0] += 0.25

    run = on_wall(work, clock=lambda: now[0])
    assert [run(), run()] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("sides", "rounds", "message"),
    [
        ({}, (1, 1), "nothing to time"),
        ({"a": constant(1.0)}, (0, 5), "min_rounds=0"),
        ({"a": constant(1.0)}, (3, 2), "max_rounds=2"),
    ],
)
def test_impossible_requests_are_refused(sides, rounds, message):
    with pytest.raises(ValueError, match=message):
        alternate(sides, min_rounds=rounds[0], max_rounds=rounds[1])


def test_steady_rounds_on_a_quiet_machine_are_not_busy():
    timings = Timings(
        {"a": [1.0, 1.01, 0.99] * 3}, threads=1, contention=Contention(waited=0.0, others=1.5, cores=2)
    )
    assert timings.busy() == ()


def test_wide_spread_is_busy_and_names_the_side():
    timings = Timings({"steady": [1.0] * 10, "shaken": [1.0, 2.0] * 5}, threads=1)
    (reason,) = timings.busy()
    assert "shaken" in reason


def test_plateau_of_the_scheduler_is_busy_with_several_threads_only():
    waiting = [0.0071] * 9 + [0.0012]
    assert on_plateau(waiting)
    assert any("scheduler" in reason for reason in Timings({"a": waiting}, threads=2).busy())
    assert Timings({"a": waiting}, threads=1).busy() == ()


def test_honest_seven_milliseconds_are_no_plateau():
    assert not on_plateau([0.0070, 0.0069, 0.0071])


def test_worker_time_does_not_count_as_somebody_elses(monkeypatch):
    stopped: list[float] = []

    class FakeWatch:
        @classmethod
        def start(cls):
            return cls()

        def stop(self, in_workers: float) -> Contention:
            stopped.append(in_workers)
            return Contention()

    monkeypatch.setattr(timer, "Watch", FakeWatch)
    sides = {"here": constant(1.0), "there": constant(0.5)}
    alternate(sides, budget=0, min_rounds=3, threads=2, in_worker=["there"])
    assert stopped == [3.0]


@pytest.mark.gpu
def test_cuda_events_time_the_work_on_the_device():
    import torch

    x = torch.randn(4096, 4096, device="cuda")
    run = timer.on_cuda(lambda: x @ x)
    run()
    assert 1e-6 < run() < 1.0


def test_cuda_events_are_those_of_the_device(monkeypatch):
    import torch

    current: list[int | None] = [None]

    @contextlib.contextmanager
    def on(device):
        current.append(device.index)
        yield
        current.pop()

    class Event:
        def __init__(self, enable_timing):
            assert current[-1] == 1

        def record(self):
            assert current[-1] == 1

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return 3.0

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert timer.on_cuda(lambda: None, torch.device("cuda", 1))() == 3e-3


def test_the_fastest_side_is_the_one_with_the_least_median():
    slow_start = iter([9.0, 9.0, 9.0, 1.0, 1.0, 1.0, 9.0])
    assert timer.fastest({"a": constant(2.0), "b": lambda: next(slow_start)}) == "b"
    assert timer.fastest({"a": constant(2.0), "b": constant(3.0)}) == "a"
