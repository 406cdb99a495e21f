"""``make gpu`` tells the truth when kernels, baselines, tests and calls fail: every fault is planted here."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import suite
from benchmarks.gpu.__main__ import supervise
from benchmarks.gpu.comparison import Side, compare
from benchmarks.gpu.device import Cuda, DryRun
from benchmarks.gpu.layers import measure_activation
from benchmarks.gpu.points import Point, point
from benchmarks.gpu.session import UNKNOWN_DEVICE, MeasuredFailureError, Session, measure_all
from sparsebert.bench.output_check import OutputMismatchError
from sparsebert_kernels.cuda import interpreter
from tests.fake_cuda import FakeCuda

ROOT = Path(__file__).parents[2]
POINTS = [point("limits"), point("tests", path="a"), point("tests", path="b")]
DEVICE = {"name": "GPU", "dry_run": False}
ONE = torch.ones(2, 2)
# Errors after which CUDA refuses every call of a process; the list of such errors is NVIDIA's, not ours.
FATAL = [
    "an illegal instruction was encountered",
    "hardware stack error",
    "uncorrectable ECC error encountered",
]


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda().install(monkeypatch)


@pytest.fixture
def device(cuda, monkeypatch):
    """The GPU as the benchmark sees it, with tensors on the CPU."""
    device = Cuda()
    device.device = torch.device("cpu")
    return device


@pytest.fixture
def session(tmp_path):
    return Session(tmp_path)


@pytest.fixture(autouse=True)
def _settings_of_torch_compile_stay():
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=False):
        yield
    torch._dynamo.reset()


def measure_on(device, session, measure) -> bool:
    return measure_all(
        session, POINTS, measure, lambda: {"device": DEVICE}, 1e12, alive=device.alive, say=lambda line: None
    )


# Fatal errors


@pytest.mark.parametrize("message", FATAL)
def test_any_error_after_which_the_device_is_dead_ends_the_process(message, cuda, device, session):
    def measure(each: Point) -> dict:
        cuda.fatal = message
        cuda.kernel(1e-6)
        return {}

    assert not measure_on(device, session, measure)
    assert [row["reason"] for row in session.records()] == [f"RuntimeError: CUDA error: {message}"]


def test_an_error_that_the_device_survives_ends_nothing(device, session):
    def measure(each: Point) -> dict:
        raise RuntimeError("CUDA out of memory, device-side assert, launch failure: only words")

    assert measure_on(device, session, measure)
    assert len(session.records()) == len(POINTS)


def test_a_baseline_that_kills_the_device_ends_the_comparison(cuda, device):
    def deadly() -> torch.Tensor:
        cuda.fatal = FATAL[0]
        cuda.kernel(1e-6)
        return ONE

    sides = {"cublas": Side(lambda: lambda: ONE), "stk": Side(lambda: deadly)}
    with pytest.raises(RuntimeError, match="illegal instruction"):
        compare(device, sides, [ONE.double()], baseline="cublas")


def worker_of(codes: list[int | None], session: Session, monkeypatch) -> list[list[str]]:
    """Let workers end with these codes, at their first point; the last one has nothing left to measure."""
    started: list[list[str]] = []

    class Worker:
        def __init__(self, code: int | None) -> None:
            self.code = code

        def poll(self) -> int | None:
            return self.code

    def start(session: Session, until: float, only: list[str]) -> Worker:
        code = codes[len(started)]
        started.append(only)
        if code not in (0, 3):
            session.begin(POINTS[0])
        return Worker(code)

    monkeypatch.setattr("benchmarks.gpu.__main__._start", start)
    return started


def test_a_worker_says_each_line_at_once(session, monkeypatch):
    """A pipe would keep the lines of a worker that is killed."""
    started = []
    monkeypatch.setattr(command.subprocess, "Popen", lambda words, **options: started.append(options))
    command._start(session, 4e9, [])
    assert started[0]["env"]["PYTHONUNBUFFERED"] == "1"


def test_a_worker_with_a_dead_device_is_followed_by_another(session, monkeypatch):
    started = worker_of([3, 3, 0], session, monkeypatch)
    supervise(session, 4e9, [])
    assert len(started) == 3


def test_a_worker_that_dies_is_noted_and_followed_by_another(session, monkeypatch):
    worker_of([-11, -11, 0], session, monkeypatch)
    supervise(session, 4e9, [])
    reasons = [each["reason"] for each in session.records()]
    assert reasons == ["the process died (exit code -11)"] * 2
    assert session.records()[0]["device"]["name"] == UNKNOWN_DEVICE


# torch.compile


class Compiled:
    """A class of models, each with weights of another shape; all share the code of ``forward``."""

    def __init__(self, device, size: int) -> None:
        self.weight = torch.ones(size)
        self.run = device.compile(self.forward, dynamic=False)

    def forward(self) -> torch.Tensor:
        return self.weight * 2


def frames_compiled(call) -> int:
    before = counters["frames"]["ok"]
    call()
    return counters["frames"]["ok"] - before


def test_the_tenth_shape_of_a_process_is_still_compiled():
    device = DryRun()
    for size in range(1, 11):
        device.begin_point()
        counters.clear()
        assert frames_compiled(Compiled(device, size).run) == 1


def test_a_shape_beyond_the_limit_of_one_point_fails_loudly():
    device = DryRun()
    device.begin_point()
    for size in range(1, 9):
        Compiled(device, size).run()
    ninth = Compiled(device, 9)
    with pytest.raises(FailOnRecompileLimitHit):
        ninth.run()


def test_the_limit_is_no_mere_note_of_a_baseline():
    def limit() -> None:
        raise FailOnRecompileLimitHit("recompile_limit reached")

    sides = {"cublas": Side(lambda: lambda: ONE), "torch.compile": Side(lambda: limit)}
    with pytest.raises(FailOnRecompileLimitHit):
        compare(DryRun(), sides, [ONE.double()], baseline="cublas")


# Timing


def test_all_sides_of_a_comparison_repeat_their_work_equally_often(cuda, device):
    def side(seconds: float, launches: float) -> Side:
        def work() -> torch.Tensor:
            cuda.host += launches * cuda.launch
            cuda.kernel(seconds)
            return ONE

        return Side(lambda: work)

    sides = {"cublas": side(6e-6, 0), "panel": side(3e-6, 5)}
    found = compare(device, sides, [ONE.double()], baseline="cublas", budget=0)
    assert found["ratio"]["panel"]["median"] == pytest.approx(2, rel=0.02)
    assert len(set(cuda.graphs[-2:])) == 1


def test_a_side_that_cannot_be_captured_is_noted(cuda, device):
    def syncs() -> torch.Tensor:
        if cuda._capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        return ONE

    sides = {"cublas": Side(lambda: lambda: ONE), "torch bsr": Side(lambda: syncs)}
    found = compare(DryRunTimes(device), sides, [ONE.double()], baseline="cublas")
    assert "not permitted" in found["notes"]["torch bsr"]


class DryRunTimes:
    """Captures on one device and times on the CPU: without kernels there is nothing to time."""

    dry_run = True

    def __init__(self, device: Cuda) -> None:
        self.require_capture, self.on_stream = device.require_capture, device.on_stream
        self.alive, self.synchronize, self.graphs = device.alive, device.synchronize, DryRun().graphs


def test_nvidia_smi_is_asked_once(device, tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho call >> {tmp_path}/calls\necho 1980, 2619, 40, 90.1, 0x0, 570.1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert [device.clocks["clocks.sm"] for _ in range(3)] == ["1980"] * 3
    assert (tmp_path / "calls").read_text().count("call") == 1


def test_a_tool_that_hangs_costs_the_clocks_alone(device, monkeypatch):
    def hang(command: list[str], **options) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr("benchmarks.gpu.device.shutil.which", lambda name: name)
    monkeypatch.setattr("benchmarks.gpu.device.subprocess.run", hang)
    assert device.clocks is None


def test_workspaces_of_libraries_are_no_memory_of_the_first_side(device, monkeypatch):
    held = {"workspace": 0, "peak": 0}

    def work() -> None:
        held["workspace"] = 32
        held["peak"] = max(held["peak"], 32 + 5)

    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: held["workspace"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: held["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: held.update(peak=held["workspace"]))
    assert [device.peak_bytes(work) for _ in range(2)] == [(32, 37)] * 2


# Wrong answers


def test_a_wrong_epilogue_is_a_failure_and_no_note(monkeypatch):
    from sparsebert_kernels.cuda import panel_forward

    monkeypatch.setattr(panel_forward, "linear", lambda x, packed, *_: x.new_zeros(len(x), packed.shape[0]))
    with pytest.raises(OutputMismatchError, match="panel"):
        measure_activation(DryRun(), shape=(64, 64), tokens=4, block=(64, 64), sparsity=0.0)


# Red tests


def pytest_that(code: int | None, output: str = "", asked: list[str] | None = None):
    """Stand in for the process of pytest; without an exit code, it takes too long."""

    def run(command: list[str], **options) -> subprocess.CompletedProcess[str]:
        if asked is not None:
            asked.append(" ".join(command))
        if code is None:
            raise subprocess.TimeoutExpired(command, options["timeout"], output.encode())
        return subprocess.CompletedProcess(command, code, output)

    return run


@pytest.mark.parametrize(
    ("code", "output", "reason"),
    [
        (1, "2 failed, 40 passed in 3 s", "2 failed (pytest ends with exit code 1)"),
        (2, "1 error in 0.1 s", "1 error (pytest ends with exit code 2)"),
        (5, "no tests ran in 0.1 s", "no test was found"),
        (-11, "", "the tests do not run (pytest ends with exit code -11)"),
        (None, "40 passed", "the tests take more than 300 s"),
    ],
)
def test_red_tests_are_a_failure_and_show_in_the_exit_code(
    code, output, reason, device, session, monkeypatch
):
    def measure(each: Point) -> dict:
        return suite.measure_tests(device, path="tests") if each.kind == "tests" else {}

    monkeypatch.setattr(suite.subprocess, "run", pytest_that(code, output))
    assert measure_on(device, session, measure)
    assert [row["kind"] for row in session.records()] == ["gpu", "gpu_failed", "gpu_failed"]
    failed = session.records()[1]
    assert failed["reason"] == reason
    assert (failed["passed"], failed["exit"]) == (False, code)
    assert "traceback" not in failed
    monkeypatch.setattr(command, "supervise", lambda *_: None)
    monkeypatch.setattr("benchmarks.gpu.summary.write_summary", lambda session: None)
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(session.folder)])
    assert command.main() == 1


def test_a_red_test_is_seen(device, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "_processes", list)
    (tmp_path / "test_planted.py").write_text("def test(): assert 0\ndef test_green(): pass\n")
    with pytest.raises(MeasuredFailureError) as raised:
        suite.measure_tests(device, path=str(tmp_path))
    assert raised.value.fields["counts"] == {"failed": 1, "passed": 1}


def test_tests_run_in_eight_processes(device, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(suite.subprocess, "run", pytest_that(0, "3 passed", asked))
    found = suite.measure_tests(device, path="tests/triton")
    assert (found["passed"], found["counts"]) == (True, {"passed": 3})
    assert "-n 8 tests/triton" in asked[0]


def test_tests_with_a_marker_are_looked_for_in_their_files(device, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(suite.subprocess, "run", pytest_that(0, "3 passed", asked))
    suite.measure_tests(device, path="tests", marker="gpu")
    assert asked[0].endswith(" -m gpu")
    assert "tests/cuda_graphs/test_on_gpu.py" in asked[0]
    assert "tests/benchmarks/test_gpu_points.py" not in asked[0]


def test_a_failure_that_a_later_attempt_repaired_is_none(session):
    session.failed(POINTS[0], "broken", {"device": DEVICE})
    assert len(session.failures()) == 1
    session.measured(POINTS[0], {"device": DEVICE})
    assert session.failures() == []


# Killed calls


def test_the_point_at_which_a_call_was_killed_comes_last_in_the_next(session, monkeypatch):
    everything = session.missing()
    session.begin(everything[0])
    worker_of([0], session, monkeypatch)
    supervise(session, 4e9, [])
    (record,) = session.records()
    assert (record["kind"], record["point"]["key"]) == ("gpu_killed", everything[0].key)
    assert session.missing() == [*everything[1:], everything[0]]
    assert session.failures() == []


@pytest.mark.parametrize(("seconds", "kinds"), [(3600, ["gpu_killed"]), (20, [])])
def test_a_point_that_hangs_until_the_call_ends_comes_last_in_the_next(seconds, kinds, session, monkeypatch):
    """The worker is at its point for an hour when the time is up, or hardly longer than estimated."""
    now = time.time()
    worker_of([None], session, monkeypatch)
    monkeypatch.setattr(command.os, "killpg", lambda group, signal: None)

    def watch(session: Session, worker, until: float, stopped) -> None:
        text = json.loads(session.current.read_text())
        session.current.write_text(json.dumps({**text, "began": now + 70 - seconds}))
        monkeypatch.setattr(command.time, "time", lambda: until + 60)

    monkeypatch.setattr(command, "_watch", watch)
    supervise(session, now + 10, [])
    assert [row["kind"] for row in session.records()] == kinds
    assert session.missing()[-1 if kinds else 0] == POINTS[0]


def test_a_worker_ends_with_a_call_that_is_killed(tmp_path):
    """A SIGKILL leaves nobody who would stop the worker, which would measure beside the next call."""
    pid = tmp_path / "pid"
    worker = (
        "import os, time; from benchmarks.gpu.worker import end_with_parent; "
        f"end_with_parent(os.getppid(), 0.05); open({str(pid)!r} + '_', 'w').write(str(os.getpid())); "
        f"os.rename({str(pid)!r} + '_', {str(pid)!r}); time.sleep(60)"
    )
    call = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}], start_new_session=True)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    parent = subprocess.Popen([sys.executable, "-c", call], env=environment)
    wait_for(pid.exists)
    child = int(pid.read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(functools.partial(gone, child))


def wait_for(done, seconds: float = 50) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until
        time.sleep(0.02)


def gone(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"  # ended, and nobody has asked for its exit code


# The interpreter


@pytest.mark.parametrize(
    ("triton", "numpy", "broken"),
    [
        ("3.6.0", "2.4.6", True),
        ("3.6.0", "2.5.2", True),
        ("3.6.0", "2.3.5", False),
        ("3.9.0", "2.5.2", False),
    ],
)
def test_versions_whose_interpreter_does_not_run_are_named(triton, numpy, broken, monkeypatch, capsys):
    versions = {"triton": triton, "numpy": numpy}
    monkeypatch.setattr(interpreter.importlib.metadata, "version", versions.__getitem__)
    reason = interpreter.why_broken()
    assert (reason is not None) == broken
    if broken:
        assert {triton, numpy} <= set(reason.replace(",", "").split())
        monkeypatch.setattr("sys.argv", ["gpu", "--dry-run"])
        assert command.main() == 0
        assert capsys.readouterr().out == f"skipped: {reason}\n"
