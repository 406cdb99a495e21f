"""CUDA graphs on CPU tensors: a recorder of torch.cuda's calls whose graphs replay, and which can fail.

``torch.cuda.graph`` records every operator that is dispatched within it, with its tensors. A replay runs the
same operators again and writes their results into the tensors of the capture: as on a GPU, whatever Python
computed in between, and whatever was not dispatched, keeps its value from the capture. An operator that would
wait for the device fails in a capture, as it does on a GPU. ``tests/fake_cuda.py`` keeps time instead.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

# Operators that wait for the device, or copy from memory of the host that the driver must stage.
WAITING = {
    *("item", "_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "masked_select"),
    *("unique_dim", "_unique2", "unique_consecutive", "lift_fresh", "bincount", "repeat_interleave"),
}
GIGABYTE = 1 << 30


class Stream:
    cuda: FakeCuda

    def __init__(self) -> None:
        self.name = f"stream {next(self.cuda.numbers)}" if self.cuda.streams else "the main stream"

    def wait_stream(self, other: Stream) -> None:
        self.cuda.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: Event) -> None:
        if event.stream:
            self.cuda.log.append(f"{self.name} waits for the last call, on {event.stream}")


class Event:
    cuda: FakeCuda

    def __init__(self) -> None:
        self.stream = ""

    def record(self, stream: Stream) -> None:
        self.stream = stream.name

    def synchronize(self) -> None:
        self.cuda.log.append("the host waits for the last call")


class CUDAGraph:
    cuda: FakeCuda

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    @torch.inference_mode()
    def replay(self) -> None:
        assert not self.cuda.capturing
        self.cuda.log.append(f"replay on {self.cuda.current.name}")
        with _disable_current_modes():
            for function, args, kwargs, results in self.calls:
                again = tree_leaves(function(*args, **kwargs))
                read = {
                    leaf.untyped_storage().data_ptr() for leaf in filter(_plain, tree_leaves((args, kwargs)))
                }
                for result, value in zip(tree_leaves(results), again, strict=True):
                    # Views and operators in place have already written where they should.
                    if _plain(result) and result.untyped_storage().data_ptr() not in read:
                        result.copy_(value)


class Recording(TorchDispatchMode):
    def __init__(self, graph: CUDAGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name.partition("::")[2]
        by_mask = name == "index" and any(
            leaf.dtype == torch.bool for leaf in filter(_plain, tree_leaves(args[1]))
        )
        if name in WAITING or by_mask:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({name})")
        self.graph.cuda.plant("capture")
        results = function(*args, **kwargs)
        self.graph.calls.append((function, args, kwargs, results))
        return results


class FakeCuda:
    """torch.cuda as ``CudaRecorder`` uses it.

    Attributes:
        log: What was asked of it, in words.
        capturing: Whether a graph is being captured.
        failures: Errors to raise in the next warm-ups ("warm-up") and captures ("capture").
        graph_bytes: Bytes by which each capture makes its pool larger.
        poisoned: Pools of failed captures, in which torch begins no other one.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.capturing = False
        self.failures: dict[str, list[BaseException | None]] = {"warm-up": [], "capture": []}
        self.graph_bytes = 1000
        self.pools: dict[tuple[int, int], int] = {}
        self.poisoned: set[tuple[int, int]] = set()
        self.numbers = itertools.count(1)
        self.streams: list[Stream] = []
        # Classes, as annotations in other libraries name them.
        self.classes: dict[str, Any] = {
            each.__name__: type(each.__name__, (each,), {"cuda": self}) for each in (Stream, Event, CUDAGraph)
        }
        self.main = self.classes["Stream"]()
        self.streams.append(self.main)

    @property
    def current(self) -> Stream:
        return self.streams[-1]

    def plant(self, where: str) -> None:
        if self.failures[where] and (failure := self.failures[where].pop(0)) is not None:
            raise failure

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = list(self.streams)
        self.streams.append(stream)
        try:
            if stream is not before[-1] and not self.capturing:
                self.plant("warm-up")
            yield
        finally:
            self.streams = before

    def pool(self) -> tuple[int, int]:
        self.pools[handle := (0, len(self.pools) + 1)] = 0
        return handle

    @contextlib.contextmanager
    def graph(
        self, graph: CUDAGraph, *, pool: Any, stream: Stream, capture_error_mode: str
    ) -> Iterator[None]:
        if pool in self.poisoned:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        self.log.append(f"capture on {stream.name}, pool {pool[1]}, {capture_error_mode}")
        self.streams.append(stream)
        self.capturing = True
        failed = True
        try:
            with Recording(graph):
                yield
            failed = False
        finally:
            self.capturing = False
            self.pools[pool] += self.graph_bytes
            if failed:
                self.poisoned.add(pool)
                # As torch.cuda.graph does, with its stream still current.
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            self.streams.pop()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name, value in {
            **self.classes,
            "current_stream": lambda: self.current,
            "device": lambda device: contextlib.nullcontext(),
            "get_device_properties": lambda device: SimpleNamespace(total_memory=4 * GIGABYTE),
            "graph": self.graph,
            "graph_pool_handle": self.pool,
            "is_current_stream_capturing": lambda: self.capturing,
            "is_initialized": lambda: True,
            "memory_snapshot": self.snapshot,
            "stream": self.stream,
        }.items():
            patch.setattr(torch.cuda, name, value)

    def snapshot(self) -> list[dict[str, Any]]:
        default = {"segment_pool_id": (0, 0), "total_size": GIGABYTE}
        held = [{"segment_pool_id": pool, "total_size": size} for pool, size in self.pools.items()]
        return [default, *held]


def _plain(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided
