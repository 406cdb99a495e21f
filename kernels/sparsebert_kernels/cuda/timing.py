"""Timing on a GPU: work runs in CUDA graphs, which excludes the cost of launching its kernels.

A replay has a latency of its own. Every side of a comparison therefore repeats its work equally often in one
replay, and often enough that the latency hardly counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sparsebert_kernels.cuda.graph_capture import capture_call
from sparsebert_kernels.timing import Paired, steadiest

Call = Callable[[], Any]

# Least duration of a replay: events resolve half a microsecond.
REPLAY_SECONDS = 200e-6
MAX_CALLS = 200
# Share of the least duration that suffices.
ENOUGH = 0.8
# Replays that a duration is estimated from; the fastest counts.
TRIALS = 3
MIN_ROUNDS, MAX_ROUNDS = 9, 51
# The stream of each device on which sides are captured. Libraries keep a workspace for every stream on which
# they have run, 32 MiB for cuBLAS on Hopper, so that a stream for each timing would take a gigabyte.
_STREAMS: dict[int, torch.cuda.Stream] = {}


class CapturedGraph:
    """Calls in a CUDA graph.

    Args:
        works: One work, or several that take turns. They run twice before, to compile.
        calls: Calls in the graph.
        stream: The stream to capture on.

    Raises:
        RuntimeError: A work cannot be captured.
    """

    def __init__(self, works: Sequence[Call], calls: int, stream: torch.cuda.Stream) -> None:
        self.calls = calls
        self._graph = torch.cuda.CUDAGraph()
        with on_stream(stream):
            for work in (*works, *works):
                work()
            capture_call(self._graph, self._turns(works), stream=stream)

    def _turns(self, works: Sequence[Call]) -> Call:
        def call() -> None:
            for number in range(self.calls):
                works[number % len(works)]()

        return call

    def replay(self) -> float:
        """Return the seconds of one call, the mean over a replay."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self._graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / self.calls

    def duration(self) -> float:
        """Return the seconds of the fastest of a few replays, all calls together."""
        return self.calls * min(self.replay() for _ in range(TRIALS))


@contextmanager
def on_stream(stream: torch.cuda.Stream) -> Iterator[None]:
    """Run on ``stream``, after what the current stream holds and before what it gets next."""
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


def capture(
    sides: Sequence[Sequence[Call]],
    stream: torch.cuda.Stream,
    *,
    seconds: float = REPLAY_SECONDS,
    calls: int | None = None,
) -> list[CapturedGraph]:
    """Capture every side with the same number of calls.

    The number grows until the replay of the fastest side lasts ``seconds``. It is never estimated from an
    eager call, which takes as long as Python needs to launch it.

    Args:
        sides: The works of each side, see ``CapturedGraph``.
        stream: The stream to capture on.
        seconds: Least duration of a replay, unless it holds ``MAX_CALLS`` calls.
        calls: The number of calls, if it is known.
    """
    turns = math.lcm(*map(len, sides))

    def captured(calls: int) -> list[CapturedGraph]:
        return [CapturedGraph(works, calls, stream) for works in sides]

    if calls is not None:
        return captured(_whole(calls, turns))
    graphs, most = captured(turns), _whole(MAX_CALLS, turns)
    while (calls := graphs[0].calls) < most:
        duration = min(graph.duration() for graph in graphs)
        if duration >= ENOUGH * seconds:
            break
        wanted = calls * seconds / max(duration, seconds / MAX_CALLS)
        del graphs  # and the memory of the graphs
        graphs = captured(min(most, _whole(math.ceil(wanted), turns)))
    return graphs


def _whole(calls: int, turns: int) -> int:
    """Round up to calls in which every work of a side has as many turns."""
    return -(-calls // turns) * turns


def paired(mine: Call, other: Call, *, budget: float = 0.03) -> Paired:
    """Time two sides in turn, as ``sparsebert_kernels.timing.paired`` does on a CPU.

    Weights and activations stay in the L2 cache between replays if they fit. The first calls, which compile
    the kernels, run before the graphs are captured.
    """
    device = torch.cuda.current_device()
    if device not in _STREAMS:
        _STREAMS[device] = torch.cuda.Stream()
    sides = capture(((mine,), (other,)), _STREAMS[device])
    a_round = sum(side.duration() for side in sides)
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(budget / a_round)))
    return steadiest(lambda: Paired.of([(sides[0].replay(), sides[1].replay()) for _ in range(rounds)]))
