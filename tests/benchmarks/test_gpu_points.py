"""The queue of what a GPU has to measure, and going on where a call before ended."""

from __future__ import annotations

import itertools
import json

import pytest

from benchmarks.gpu.__main__ import LAST_SECONDS, MINUTES, main
from benchmarks.gpu.points import Point, layer, point, queue, tiny
from benchmarks.gpu.session import UNKNOWN_DEVICE, Session, measure_all, missing
from benchmarks.gpu.tuning import OCCUPANCY

POINTS = [point("limits"), point("tests", path="a"), point("tests", path="b")]
DEVICE = {"name": "GPU", "dry_run": False}


def row(key: str, kind: str = "gpu", device: str = "GPU") -> dict:
    return {"kind": kind, "point": {"key": key}, "device": {"name": device}}


def keys(points: list[Point]) -> list[str]:
    return [each.key for each in points]


class Clock:
    """Goes on by what each measurement takes."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds, self.asked = 0.0, seconds, []

    def __call__(self) -> float:
        return self.now

    def measure(self, each: Point) -> dict:
        self.now += self.seconds
        self.asked.append(each.key)
        return {"figure": 1.0}


@pytest.fixture
def session(tmp_path):
    return Session(tmp_path)


def run(session: Session, points: list[Point], measure, until=1e9, clock=lambda: 0.0) -> bool:
    said: list[str] = []
    return measure_all(
        session, points, measure, lambda: {"device": DEVICE}, until, say=said.append, clock=clock
    )


def test_the_first_call_of_ten_minutes_shows_what_limits_the_kernels_and_what_a_model_gains():
    first = queue()[:18]
    kinds = [each.kind for each in first]
    assert kinds == [
        "limits", *["activation"] * 2, *["occupancy"] * 3, *["layer"] * 8, *["model"] * 4
    ]  # fmt: skip
    arguments = [dict(each.arguments) for each in first]
    assert {each["tokens"] for each in arguments[1:3]} == {4096, 16384}
    assert {each["sparsity"] for each in arguments[3:6]} == {0.75, 0.9, 0.95}
    assert {each["sparsity"] for each in arguments[6:14]} == {0.0}
    assert {each["block"][0] for each in arguments[6:14]} == {16, 32, 64, 128}
    assert sum(each.seconds for each in first) < 60 * MINUTES - LAST_SECONDS


def test_the_occupancy_is_that_of_1_2_and_4_stages():
    tried = {(each.block_m, each.num_stages) for each in OCCUPANCY}
    assert tried == set(itertools.product((128, 256), (1, 2, 4)))


def test_the_second_call_tests_sweeps_and_measures_the_backward_pass():
    kinds = [each.kind for each in queue()]
    backward = next(
        number for number, each in enumerate(queue()) if dict(each.arguments).get("mode") == "backward"
    )
    assert kinds[18] == "tests"
    assert kinds.index("tests") < kinds.index("sanitizer") < kinds.index("tuning") < backward
    assert backward < kinds.index("memory")


def test_the_queue_covers_every_kind_once():
    whole = keys(queue())
    assert len(whole) == len(set(whole))
    kinds = {each.kind for each in queue()}
    assert kinds == {
        "limits", "tuning", "layer", "planned", "dense", "masked", "bitmap", "model", "memory", "tests",
        "sanitizer", "activation", "occupancy", "requests",
    }  # fmt: skip


def test_models_without_half_of_their_heads_and_neurons_come_with_the_cases_that_have_a_goal():
    halved = [each for each in queue() if dict(each.arguments).get("removed") == 0.5]
    assert [dict(each.arguments)["batch"] for each in halved] == [32, 128]
    kinds = [each.kind for each in queue()]
    assert kinds.index("bitmap") < queue().index(halved[0]) < kinds.index("memory")


@pytest.mark.parametrize("mode", ["forward", "backward", "step"])
@pytest.mark.parametrize("shape", [(3072, 768), (4096, 1024)])
def test_base_and_large_layers_are_measured_in_every_mode(shape, mode):
    assert layer(shape, 4096, (64, 64), 0.9, mode).key in keys(queue())


def test_the_tiny_queue_has_every_kind_and_block_of_the_real_one():
    small, whole = tiny(), queue()
    assert {each.kind for each in small} == {each.kind for each in whole}
    for name in ("block", "mode", "cold", "kernel", "ragged", "removed"):
        wanted, found = (
            {dict(each.arguments)[name] for each in points if name in dict(each.arguments)}
            for points in (whole, small)
        )
        assert found == wanted
    assert len(small) < 80


def test_what_has_a_record_of_this_device_is_done():
    records = [row("limits"), row("tests path=a", device="another")]
    assert keys(missing(POINTS, records, "GPU")) == ["tests path=a", "tests path=b"]
    assert keys(missing(POINTS, records, None)) == ["tests path=b"]


def test_a_point_that_failed_twice_is_left_alone():
    once = [row("limits", "gpu_failed")]
    assert keys(missing(POINTS, once, "GPU"))[0] == "limits"
    assert keys(missing(POINTS, once * 2, "GPU"))[0] == "tests path=a"


def test_a_failure_of_a_process_that_never_named_its_device_counts_for_any():
    assert (
        keys(missing(POINTS, [row("limits", "gpu_failed", UNKNOWN_DEVICE)] * 2, "GPU"))[0] == "tests path=a"
    )


def test_points_are_measured_in_order_and_written_down_one_by_one(session):
    clock = Clock(seconds=1.0)
    assert run(session, POINTS, clock.measure, clock=clock)
    assert clock.asked == keys(POINTS)
    assert [each["point"]["key"] for each in session.records()] == keys(POINTS)
    assert session.records()[0]["figure"] == 1.0
    assert session.missing("GPU") == [each for each in queue() if each.key not in keys(POINTS)]
    assert not session.current.exists()


def test_nothing_is_begun_that_does_not_fit_before_the_deadline(session):
    clock = Clock(seconds=20.0)
    run(session, POINTS, clock.measure, until=POINTS[0].seconds + 1, clock=clock)
    assert clock.asked == ["limits"]


def test_a_long_point_gives_way_to_a_shorter_one_behind_it(session):
    clock = Clock(seconds=1.0)
    run(session, [POINTS[1], POINTS[0]], clock.measure, until=POINTS[0].seconds + 1, clock=clock)
    assert clock.asked == ["limits"]


def test_a_point_that_fails_is_written_down_and_the_next_one_goes_on(session):
    def measure(each: Point) -> dict:
        if each.kind == "limits":
            raise ValueError("wrong answer")
        return {}

    assert run(session, POINTS, measure)
    failed, *rest = session.records()
    assert (failed["kind"], failed["reason"]) == ("gpu_failed", "ValueError: wrong answer")
    assert "in measure" in failed["traceback"]
    assert len(rest) == 2


def test_a_figure_that_is_no_number_is_a_failure(session):
    assert run(session, POINTS[:1], lambda each: {"us": float("nan")})
    assert session.records()[0]["kind"] == "gpu_failed"


def test_a_stopped_process_leaves_the_name_of_its_point(session):
    waiting = layer((3072, 768), 4096, (64, 8), 0.9)
    session.begin(waiting)
    found, _, limit = session.interrupted()
    assert found == waiting
    assert limit > waiting.seconds
    session.end()
    assert session.interrupted() is None


def test_a_dry_run_may_not_write_to_the_results(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["gpu", "--dry-run", "--out", "benchmarks/results"])
    with pytest.raises(SystemExit):
        main()
    assert "must not write to" in capsys.readouterr().err


def test_list_shows_the_missing_points_and_measures_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["gpu", "--list", "--out", str(tmp_path / "none")])
    assert main() == 0
    assert capsys.readouterr().out.splitlines() == keys(queue())
    assert not (tmp_path / "none").exists()


def test_a_relative_folder_is_that_of_the_caller(tmp_path, monkeypatch):
    """The worker, which gets its name, runs elsewhere."""
    sessions = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("benchmarks.gpu.__main__.supervise", lambda session, *_: sessions.append(session))
    monkeypatch.setattr("benchmarks.gpu.summary.write_summary", lambda session: None)
    monkeypatch.setattr("sys.argv", ["gpu", "--out", "here"])
    assert main() == 0
    assert sessions[0].folder == tmp_path / "here"


def test_keys_read_like_what_is_measured():
    assert layer((3072, 768), 128, (64, 8), 0.9).key == (
        "layer shape=3072x768 tokens=128 block=64x8 sparsity=0.9 mode=forward cold=False"
    )
    assert json.dumps(layer((3072, 768), 128, (64, 8), 0.9).arguments)
