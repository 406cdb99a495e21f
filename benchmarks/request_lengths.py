"""Memory and time of layers that meet texts of every length: `python -m benchmarks.request_lengths`.

10,000 requests of 1 to 600 tokens in each format, in a process of its own; and the time of prepacked dense
with padded rows against exact rows (the code before) and against ``F.linear``, in turn in one process.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import fresh_process
from benchmarks.output import add_out_option, append
from sparsebert import results
from sparsebert.bench import environment
from sparsebert_kernels import bounded_rows, formats, ops
from sparsebert_kernels.formats.dense import onednn_linear, prepack

FORMATS = ("dense", "compact", "element", "csr")
WIDTH, LONGEST, WARM_UP, REQUESTS = 384, 600, 1000, 10_000
SHAPES = ((384, 384), (768, 768), (3072, 768))
TOKENS = (7, 21, 64, 100, 128, 219, 384, 500, 600, 1024)
ROUNDS = 41


def resident_mb() -> int:
    """Return the resident memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20


def served(format: str, threads: int, exact: bool, requests: int = REQUESTS) -> dict[str, Any]:
    """Serve requests of random lengths with one layer, and return the memory as they go."""
    torch.set_num_threads(threads)
    bounded_rows.EXACT_SIZES = 2**30 if exact else bounded_rows.EXACT_SIZES
    packed = formats.pack(torch.randn(WIDTH, WIDTH), torch.rand(WIDTH, WIDTH) < 0.3, format=format)
    lengths, memory = random.Random(0), [resident_mb()]
    with torch.inference_mode():
        for request in range(WARM_UP + requests):
            if request == WARM_UP:
                memory.append(resident_mb())
            ops.linear(torch.randn(lengths.randint(1, LONGEST), WIDTH), packed)
    start, warm = memory
    return {"start_mb": start, "warm_mb": warm, "end_mb": resident_mb()}


def paired(out_features: int, in_features: int, tokens: int) -> dict[str, Any]:
    """Time rounded-up rows, exact rows and ``F.linear`` in turn; medians in us and ratios of the rounds."""
    weight, bias = torch.randn(out_features, in_features), torch.randn(out_features)
    packed, x = prepack(weight, 128), torch.randn(tokens, in_features)
    kind = object()
    bounded_rows._EXACT[kind] = set(range(-bounded_rows.EXACT_SIZES, 0))  # as after other lengths

    def product(part: Tensor) -> Tensor:
        return onednn_linear(part, packed, bias)

    sides: tuple[Callable[[], Tensor], ...] = (
        lambda: bounded_rows.linear(x, out_features, kind, product),
        lambda: product(x),
        lambda: F.linear(x, weight, bias),
    )
    seconds: list[list[float]] = [[] for _ in sides]
    with torch.inference_mode():
        for number in range(ROUNDS):
            # In changing order: the first of two that read one weight finds it outside the caches.
            for index in random.Random(number).sample(range(len(sides)), len(sides)):
                begin = time.perf_counter()
                sides[index]()
                seconds[index].append(time.perf_counter() - begin)
    mine, before, eager = seconds
    return {
        "shape": [out_features, in_features],
        "tokens": tokens,
        "rounded_us": statistics.median(mine) * 1e6,
        "to_exact": statistics.median(a / b for a, b in zip(mine, before, strict=True)),
        "to_eager": statistics.median(a / b for a, b in zip(mine, eager, strict=True)),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and append the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_out_option(parser)
    parser.add_argument("--one", nargs=3, metavar=("FORMAT", "THREADS", "EXACT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        format, threads, exact = options.one
        print(json.dumps(served(format, int(threads), exact == "True", 600 if exact == "True" else REQUESTS)))
        return
    machine = environment.detect().record()
    for format, threads, exact in [
        ("dense", 1, True),
        ("dense", 8, True),
        *((format, threads, False) for format in FORMATS for threads in (1, 8)),
    ]:
        fields = fresh_process.measure(
            "benchmarks.request_lengths", ["--one", format, str(threads), str(exact)]
        )
        row = {"format": format, "threads": threads, "exact": exact, **fields}
        print(row)
        append(options.out, [results.stamp("request_memory", {"environment": machine, **row})])
    torch.set_num_threads(1)
    for shape in SHAPES:
        for tokens in TOKENS:
            row = paired(*shape, tokens)
            print(row)
            append(options.out, [results.stamp("request_time", {"environment": machine, **row})])


if __name__ == "__main__":
    main()
