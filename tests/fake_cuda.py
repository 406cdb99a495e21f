"""``torch.cuda`` without a GPU, with a clock of its own and faults to plant.

The host launches a kernel in ``launch`` seconds and goes on; the device runs it when it is free. A graph is
replayed with a latency of its own. Work calls ``kernel`` for each of its kernels. Nothing is computed: the
graphs of ``tests/cuda_graphs/fake_cuda.py`` compute, and keep no time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsebert_kernels.cuda import timing


@dataclass
class FakeCuda:
    """The clocks of host and device in seconds, and the faults.

    Attributes:
        launch: Seconds that the host takes to launch a kernel.
        latency: Seconds between the start of a replay and that of its first kernel.
        fatal: Message of the error that every call raises from now on; None while the device works.
        graphs: Number of kernels of each captured graph.
    """

    launch: float = 80e-6
    latency: float = 5e-6
    fatal: str | None = None
    host: float = 0.0
    device: float = 0.0
    graphs: list[int] = field(default_factory=list)
    _capturing: list[float] | None = None

    def kernel(self, seconds: float) -> None:
        """Launch or capture a kernel that runs for so long."""
        self.synchronize()
        if self._capturing is not None:
            self._capturing.append(seconds)
            return
        self.host += self.launch
        self.device = max(self.device, self.host) + seconds

    def synchronize(self, *_: Any) -> None:
        """Raise the planted error, if there is one."""
        if self.fatal is not None:
            raise RuntimeError(f"CUDA error: {self.fatal}")

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
        """Take the place of ``torch.cuda``."""
        cuda = self

        class Stream:
            def wait_stream(self, other: Any) -> None:
                pass

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                self.time = 0.0

            def record(self) -> None:
                self.time = max(cuda.host, cuda.device)

            def synchronize(self) -> None:
                cuda.host = max(cuda.host, self.time)

            def elapsed_time(self, end: Any) -> float:
                return 1e3 * (end.time - self.time)

        class CUDAGraph:
            def __init__(self) -> None:
                self.kernels: list[float] = []

            def replay(self) -> None:
                cuda.synchronize()
                cuda.device = max(cuda.host, cuda.device) + cuda.latency + sum(self.kernels)

        @contextlib.contextmanager
        def graph(captured: Any, stream: Any = None) -> Iterator[None]:
            cuda._capturing = captured.kernels
            try:
                yield
            except Exception:
                raise RuntimeError("operation failed due to a previous error during capture") from None
            finally:
                cuda._capturing = None
            cuda.graphs.append(len(captured.kernels))

        fakes = {
            "Stream": Stream,
            "Event": Event,
            "CUDAGraph": CUDAGraph,
            "graph": graph,
            "stream": lambda stream: contextlib.nullcontext(),
            "current_stream": Stream,
            "current_device": lambda: 0,
            "synchronize": self.synchronize,
            "empty_cache": lambda: None,
            "get_device_properties": lambda device: SimpleNamespace(name="fake GPU", L2_cache_size=1 << 20),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(timing, "_STREAMS", {})
        return self
