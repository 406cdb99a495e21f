"""The GPU that is measured, and the stand-in for it in a dry run.

All sides of a comparison run as CUDA graphs in paired rounds. ``triton.testing.do_bench_cudagraph`` times one
side after the other, so a change of clocks in between would look like a speed-up.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch._dynamo

from sparsebert.bench.timer import Run
from sparsebert_kernels.cuda.timing import CapturedGraph, capture, on_stream

# A graph holds enough calls to run this long, which makes its latency and that of the events negligible.
GRAPH_SECONDS = 1e-3
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

    @functools.cached_property
    def clocks(self) -> dict[str, str] | None:
        """Clocks, temperature and power, asked of nvidia-smi once; None if it is not installed or fails.

        nvidia-smi takes up to a second, as long as a whole point.
        """
        if not shutil.which("nvidia-smi"):
            return None
        command = ["nvidia-smi", "-i", "0", f"--query-gpu={CLOCKS}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return dict(zip(CLOCKS.split(","), map(str.strip, done.stdout.strip().split(",")), strict=False))

    def begin_point(self) -> None:
        """Free what the point before has left: memory, and the code of torch.compile."""
        gc.collect()
        torch.cuda.empty_cache()
        forget_compiled()

    def alive(self) -> bool:
        """Return whether the device still computes; after a fatal error, no call of this process succeeds."""
        try:
            torch.cuda.synchronize()
            return int(torch.ones(2, device=self.device).sum()) == 2
        except Exception:  # torch raises several types of errors for those of CUDA
            return False

    def on_stream(self) -> contextlib.AbstractContextManager[None]:
        """Run on the capture stream; autograd runs a backward pass on the stream of its forward pass."""
        return on_stream(self.stream)

    def require_capture(self, works: Sequence[Work]) -> None:
        """Raise RuntimeError if a work cannot be captured in a CUDA graph."""
        CapturedGraph(works, len(works), self.stream)

    def graphs(self, sides: Mapping[str, Sequence[Work]], calls: int | None = None) -> dict[str, Run]:
        """Return runs that replay CUDA graphs and return the seconds per call.

        All graphs hold the same number of calls, so that the latency of a replay weighs alike.

        Args:
            sides: The works of each side, which take turns.
            calls: Calls in a graph; by default enough for ``GRAPH_SECONDS``.
        """
        graphs = capture(list(sides.values()), self.stream, seconds=GRAPH_SECONDS, calls=calls)
        return {name: graph.replay for name, graph in zip(sides, graphs, strict=True)}

    def graph(self, work: Work, calls: int | None = None) -> Run:
        """Return the run of one work, see ``graphs``."""
        return self.graphs({"": [work]}, calls)[""]

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def compile(self, function: Any, **options: Any) -> Any:
        return torch.compile(function, **options)

    def peak_bytes(self, work: Work) -> tuple[int, int]:
        """Return the bytes allocated before ``work`` runs and the peak while it runs.

        It runs once before: the first call of a process allocates workspaces of libraries, which would count
        for the side that happens to be the first.
        """
        work()
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

    clocks = None

    def begin_point(self) -> None:
        forget_compiled()

    def alive(self) -> bool:
        return True

    def on_stream(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def require_capture(self, works: Sequence[Work]) -> None:
        pass

    def graphs(self, sides: Mapping[str, Sequence[Work]], calls: int | None = None) -> dict[str, Run]:
        def run(works: Sequence[Work]) -> float:
            start = time.perf_counter()
            for work in works:
                work()
            return (time.perf_counter() - start) / len(works)

        return {name: functools.partial(run, works) for name, works in sides.items()}

    def graph(self, work: Work, calls: int | None = None) -> Run:
        return self.graphs({"": [work]}, calls)[""]

    def synchronize(self) -> None:
        pass

    def compile(self, function: Any, **options: Any) -> Any:
        return torch.compile(function, backend="eager", **{**options, "mode": None})

    def peak_bytes(self, work: Work) -> tuple[int, int]:
        work()
        return 0, 1


def forget_compiled() -> None:
    """Forget all code of torch.compile, and make it fail where it would silently run a function eagerly.

    torch.compile keeps at most eight versions of a function. All models of a class share the function, so
    that in a process of many points the fifth compares with eager code.
    """
    torch._dynamo.reset()
    torch._dynamo.config.fail_on_recompile_limit_hit = True


Device = Cuda | DryRun
