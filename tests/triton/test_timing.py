"""Paired timing in CUDA graphs, on a device whose kernels take exactly as long as they say."""

from __future__ import annotations

import functools

import pytest
import torch

from sparsebert_kernels.cuda import timing
from tests.fake_cuda import FakeCuda

US = 1e-6


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda().install(monkeypatch)


def test_a_side_that_is_slow_to_launch_is_not_timed_as_slow(cuda):
    """Ours launches five kernels of the host's time for each of the other's."""

    def ours() -> None:
        cuda.host += 5 * cuda.launch
        cuda.kernel(3 * US)

    found = timing.paired(ours, functools.partial(cuda.kernel, 6 * US))
    assert found.speedup == pytest.approx(2, rel=0.05)
    assert found.mine == pytest.approx(3 * US, rel=0.05)


@pytest.mark.parametrize("seconds", [1 * US, 3 * US, 30 * US, 1000 * US])
def test_both_sides_repeat_their_work_equally_often(cuda, seconds):
    timing.paired(functools.partial(cuda.kernel, seconds), functools.partial(cuda.kernel, 7 * seconds))
    ours, others = cuda.graphs[::2], cuda.graphs[1::2]
    assert ours == others


@pytest.mark.parametrize("seconds", [3 * US, 30 * US, 300 * US])
def test_the_faster_side_is_repeated_until_a_replay_lasts_long_enough(cuda, seconds):
    timing.paired(functools.partial(cuda.kernel, seconds), functools.partial(cuda.kernel, 9 * seconds))
    assert cuda.graphs[-1] * seconds >= timing.ENOUGH * timing.REPLAY_SECONDS - cuda.latency
    assert (cuda.graphs[-1] == 1) == (seconds > timing.REPLAY_SECONDS)


def test_all_timings_of_a_device_share_a_stream(cuda, monkeypatch):
    """Libraries keep a workspace for each."""
    streams = set()
    take = timing.capture
    monkeypatch.setattr(timing, "capture", lambda sides, stream: streams.add(stream) or take(sides, stream))
    for _ in range(3):
        timing.paired(functools.partial(cuda.kernel, 3 * US), functools.partial(cuda.kernel, 6 * US))
    assert len(streams) == 1


def test_a_work_without_kernels_ends_at_the_limit(cuda):
    timing.capture([[lambda: None]], torch.cuda.Stream())
    assert cuda.graphs == [0] * len(cuda.graphs)
    assert len(cuda.graphs) <= 3


def test_works_that_take_turns_get_equally_many(cuda):
    turns = [0, 0, 0]

    def work(number: int) -> None:
        turns[number] += 1
        cuda.kernel(10 * US)

    timing.capture([[functools.partial(work, number) for number in range(3)]], torch.cuda.Stream())
    assert len(set(turns)) == 1


def test_what_cannot_be_captured_is_an_error(cuda):
    def syncs() -> None:
        if cuda._capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        timing.paired(syncs, lambda: None)
