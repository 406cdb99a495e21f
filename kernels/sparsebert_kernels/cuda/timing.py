"""Paired timing on a GPU: both sides run in CUDA graphs, which excludes the cost of launching kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sparsebert_kernels.timing import Paired, steadiest

# Least duration of a replay: events resolve half a microsecond.
REPLAY_SECONDS = 200e-6
MAX_REPEATS = 200
MIN_ROUNDS, MAX_ROUNDS = 9, 51


def paired(mine: Callable[[], object], other: Callable[[], object], *, budget: float = 0.03) -> Paired:
    """Time two sides in turn, as ``sparsebert_kernels.timing.paired`` does on a CPU.

    Weights and activations stay in the L2 cache between replays if they fit. The first calls, which compile
    the kernels, run before the graphs are captured.
    """
    sides = _Graph(mine), _Graph(other)
    a_round = sum(side.replay() * side.repeats for side in sides)
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(budget / a_round)))
    return steadiest(lambda: Paired.of([(sides[0].replay(), sides[1].replay()) for _ in range(rounds)]))


class _Graph:
    """One side, captured with enough repeats to last ``REPLAY_SECONDS``."""

    def __init__(self, work: Callable[[], object]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                work()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
        end.synchronize()
        seconds = max(start.elapsed_time(end) * 1e-3, 1e-6)
        self.repeats = max(1, min(MAX_REPEATS, round(REPLAY_SECONDS / seconds)))
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream):
            for _ in range(self.repeats):
                work()

    def replay(self) -> float:
        """Return the seconds of one call."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / self.repeats
