"""Limits of the device, to which all other figures are compared."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.gpu.device import Device
from sparsebert.bench.timer import Run
from sparsebert_kernels.timing import Quantiles

ROUNDS = 15
COPY_BYTES = 2**30
MATMUL = 8192
BERT_SHAPES = ((2304, 768), (768, 768), (3072, 768), (768, 3072))


def measure_limits(device: Device) -> dict[str, Any]:
    """Measure copy bandwidth, L2 read bandwidth, matmul rates and the overhead of a kernel."""
    small = device.dry_run
    size, side = (2**12, 64) if small else (COPY_BYTES, MATMUL)
    source = torch.zeros(size // 4, device=device.device)
    target = torch.empty_like(source)
    copy = _median(device.graph(lambda: target.copy_(source), calls=4))
    # A fifth of the cache stays there between passes.
    part = source[: max(1024, device.record()["l2_bytes"] // 5 // 4)]
    read = _median(device.graph(lambda: part.sum()))
    matmul = {
        str(dtype).removeprefix("torch."): _matmul_rate(device, side, dtype)
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
    }
    tiny = torch.zeros(32, device=device.device)
    step = lambda: tiny.add_(1)  # noqa: E731  (the smallest kernel there is)
    in_graph = _median(device.graph(step, calls=200))
    eager = _median(_eager(device, step))
    replay = _median(device.graph(step, calls=1))
    return {
        "memory": 2 * source.nbytes / copy,
        "l2": part.nbytes / read,
        "l2_note": "torch's sum over a fifth of the cache: a lower bound",
        "matmul": matmul,
        "layers_tflops": {} if small else _layer_rates(device),
        "kernel": in_graph,
        "launch": eager,
        "replay": replay,
    }


def _matmul_rate(device: Device, side: int, dtype: torch.dtype) -> float:
    a, b = (torch.randn(side, side, device=device.device).to(dtype) for _ in range(2))
    calls = 2 if dtype == torch.float32 else 4
    return 2 * side**3 / _median(device.graph(lambda: a @ b, calls=calls))


def _layer_rates(device: Device) -> dict[str, float]:
    """Return TFLOP/s of F.linear for the shapes of BERT-base, which reveals a weak baseline."""
    rates = {}
    for out_features, in_features in BERT_SHAPES:
        for tokens in (4096, 16384):
            x = torch.randn(tokens, in_features, device=device.device).to(device.dtype)
            weight = torch.randn(out_features, in_features, device=device.device).to(device.dtype)
            seconds = _median(device.graph(lambda x=x, weight=weight: torch.nn.functional.linear(x, weight)))
            name = f"{out_features}x{in_features}, M = {tokens}"
            rates[name] = 2 * tokens * out_features * in_features / seconds / 1e12
    return rates


def _eager(device: Device, work: Any) -> Run:
    """Return a run that times a call from Python, including the launch."""

    def run() -> float:
        device.synchronize()
        start = time.perf_counter()
        for _ in range(100):
            work()
        device.synchronize()
        return (time.perf_counter() - start) / 100

    return run


def _median(run: Run) -> float:
    run()
    return Quantiles.of([run() for _ in range(ROUNDS)]).median
