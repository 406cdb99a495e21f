"""Capture and replay of the calls of a model: in CUDA graphs, or on the CPU as plain calls."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

from sparsebert_kernels.cuda.graph_capture import capture_call

Work = Callable[[], Any]

# The first call compiles kernels and creates handles of libraries, the second joins weights that the first
# packed; both allocate, which a capture must not do outside of its pool.
WARM_UP_CALLS = 3
# One capture at a time in a process, as torch requires.
_CAPTURE = threading.Lock()


class Replay(Protocol):
    """A call that can be repeated on the same static inputs."""

    def __call__(self) -> Any:
        """Compute, and return the outputs, which the next call of any replay may overwrite."""
        ...


class Recorder(Protocol):
    """Makes replays on one device."""

    def capture(self, work: Work) -> Replay:
        """Return a replay of ``work``, which reads and writes the same tensors in each call."""
        ...

    def in_order(self) -> contextlib.AbstractContextManager[None]:
        """Let the calls within wait, on the device, for those of the previous context."""
        ...

    def finish(self) -> None:
        """Wait until the device has finished the last replay, which may then be freed."""
        ...

    def reset(self) -> None:
        """Give back the memory of the replays, all of which have been freed."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that the replays hold."""
        ...

    @property
    def max_bytes(self) -> int | None:
        """Bytes that the replays may hold by default; None if they hold none."""
        ...


def is_capturing() -> bool:
    """Return whether the current stream is capturing a graph, for this package or other code."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def recorder_for(device: torch.device) -> Recorder:
    """Return what makes replays on ``device``."""
    return CudaRecorder(device) if device.type == "cuda" else PlainRecorder()


class PlainRecorder:
    """Makes plain calls of works, for devices without CUDA graphs."""

    nbytes = 0
    max_bytes = None

    def capture(self, work: Work) -> Replay:
        work()
        return work

    def in_order(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def finish(self) -> None:
        pass

    def reset(self) -> None:
        pass


class CudaRecorder:
    """Captures works as CUDA graphs, which share one memory pool.

    Warm-up and capture run on a stream of their own, so that the libraries' workspaces of that stream exist
    before the capture. Graphs of one pool reuse each other's memory: they must run one after the other, which
    ``in_order`` ensures. In the pool of a failed capture, or one whose graphs have all been freed, torch may
    refuse to begin a capture: later captures share a new pool.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()
            self._pools = [torch.cuda.graph_pool_handle()]
            self._finished = torch.cuda.Event()

    def reset(self) -> None:
        self._pools = [torch.cuda.graph_pool_handle()]

    def capture(self, work: Work) -> Replay:
        # The capture's context leaves its stream current if the capture fails; the outer one does not.
        with _CAPTURE, torch.cuda.device(self.device), torch.cuda.stream(torch.cuda.current_stream()):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UP_CALLS):
                    work()
            torch.cuda.current_stream().wait_stream(self._stream)
            return self._captured(work)

    def _captured(self, work: Work) -> Replay:
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on allocating while this one captures.
        where = {"pool": self._pools[-1], "stream": self._stream, "capture_error_mode": "thread_local"}
        try:
            outputs = capture_call(graph, work, **where)
        except BaseException:
            self._pools.append(torch.cuda.graph_pool_handle())
            raise

        def replay() -> Any:
            graph.replay()
            return outputs

        return replay

    @contextlib.contextmanager
    def in_order(self) -> Iterator[None]:
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._finished)
            try:
                yield
            finally:
                self._finished.record(stream)

    def finish(self) -> None:
        self._finished.synchronize()

    @property
    def nbytes(self) -> int:
        # Outputs and intermediate tensors, without the inputs and what the driver holds of a graph.
        pools = set(map(tuple, self._pools))
        segments = torch.cuda.memory_snapshot()
        return sum(part["total_size"] for part in segments if tuple(part["segment_pool_id"]) in pools)

    @property
    def max_bytes(self) -> int | None:
        return torch.cuda.get_device_properties(self.device).total_memory // 4
