"""The GPU that is measured, and the stand-in for it in a dry run.

All sides of a comparison run as CUDA graphs in paired rounds. ``triton.testing.do_bench_cudagraph`` times one
side after the other, so a change of clocks in between would look like a speed-up.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from sparsebert.bench.timer import Run, on_cuda

# A graph holds enough calls to run this long, which makes launch and events negligible.
GRAPH_SECONDS = 1e-3
MAX_CALLS = 200
CLOCKS = "clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_event_reasons.active,driver_version"
Work = Callable[[], Any]


class Cuda:
    """The current CUDA device."""

    dry_run = False
    dtype = torch.bfloat16

    def __init__(self) -> None:
        self.device = torch.device("cuda")
        self.properties = torch.cuda.get_device_properties(0)
        self.name = self.properties.name
        self.stream = torch.cuda.Stream()

    def record(self) -> dict[str, Any]:
        """Return the description of the device for records."""
        major, minor = self.properties.major, self.properties.minor
        return {
            "name": self.name,
            "capability": f"{major}.{minor}",
            "processors": self.properties.multi_processor_count,
            "memory_bytes": self.properties.total_memory,
            "l2_bytes": self.properties.L2_cache_size,
            "cuda": torch.version.cuda,
            "dry_run": False,
        }

    def clocks(self) -> dict[str, str] | None:
        """Return clocks, temperature and power from nvidia-smi; None if it is not installed."""
        if not shutil.which("nvidia-smi"):
            return None
        command = ["nvidia-smi", "-i", "0", f"--query-gpu={CLOCKS}", "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        if done.returncode != 0:
            return None
        return dict(zip(CLOCKS.split(","), map(str.strip, done.stdout.strip().split(",")), strict=False))

    @contextlib.contextmanager
    def on_stream(self) -> Iterator[None]:
        """Run on the capture stream; autograd runs a backward pass on the stream of its forward pass."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream().wait_stream(self.stream)

    def graph(self, *works: Work, calls: int | None = None) -> Run:
        """Return a run that replays a CUDA graph of many calls and returns the seconds per call.

        Args:
            works: One work, or several that take turns.
            calls: Calls in the graph; by default enough for ``GRAPH_SECONDS``.

        Raises:
            RuntimeError: A work cannot be captured.
        """
        with self.on_stream():
            for work in (*works, *works):
                work()
            self.stream.synchronize()
            start = time.perf_counter()
            for work in works:
                work()
            self.stream.synchronize()
            once = (time.perf_counter() - start) / len(works)
        if calls is None:
            calls = max(1, min(MAX_CALLS, int(GRAPH_SECONDS / max(once, 1e-6))))
        calls = -(-calls // len(works)) * len(works)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            for number in range(calls):
                works[number % len(works)]()
        replay = on_cuda(graph.replay)
        return lambda: replay() / calls

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def compile(self, function: Any, **options: Any) -> Any:
        return torch.compile(function, **options)

    def peak_bytes(self, work: Work) -> tuple[int, int]:
        """Return the bytes allocated before ``work`` runs and the peak while it runs."""
        self.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        work()
        self.synchronize()
        return held, torch.cuda.max_memory_allocated()


class DryRun:
    """A stand-in that runs the same code on the CPU, in Triton's interpreter. Its times are meaningless."""

    dry_run = True
    dtype = torch.bfloat16

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.name = "DRY RUN on the CPU, nothing was measured"

    def record(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "capability": "0.0",
            "processors": 1,
            "memory_bytes": 0,
            "l2_bytes": 1 << 20,
            "cuda": None,
            "dry_run": True,
        }

    def clocks(self) -> None:
        return None

    @contextlib.contextmanager
    def on_stream(self) -> Iterator[None]:
        yield

    def graph(self, *works: Work, calls: int | None = None) -> Run:
        def run() -> float:
            start = time.perf_counter()
            for work in works:
                work()
            return (time.perf_counter() - start) / len(works)

        return run

    def synchronize(self) -> None:
        pass

    def compile(self, function: Any, **options: Any) -> Any:
        return torch.compile(function, backend="eager", **{**options, "mode": None})

    def peak_bytes(self, work: Work) -> tuple[int, int]:
        work()
        return 0, 1


Device = Cuda | DryRun
