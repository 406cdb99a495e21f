"""Memory and time of layers that meet texts of every length: `python -m benchmarks.request_lengths`.

Memory over 10,000 requests of 1 to 600 tokens, each format in a process of its own; and the time of
prepacked dense layers with rounded-up rows, paired with exact rows and with ``F.linear``.
"""

from __future__ import annotations

import argparse
import json
import random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import fresh_process
from benchmarks.output import add_out_option, append
from sparsebert import results
from sparsebert.accounting.process_memory import resident
from sparsebert.bench import environment
from sparsebert_kernels import bounded_rows, formats, ops, timing
from sparsebert_kernels.formats.dense import DEFAULT_TOKENS, onednn_linear, prepack

FORMATS = ("dense", "compact", "element", "csr")
WIDTH, LONGEST = 384, 600
WARM_UP, REQUESTS, EXACT_REQUESTS = 1000, 10_000, 600
SHAPES = ((384, 384), (768, 768), (3072, 768))
TOKENS = (7, 21, 64, 100, 128, 219, 384, 500, 600, 1024)
ROUNDS = 41


def serve(format: str, threads: int, exact: bool) -> dict[str, int]:
    """Serve requests of random lengths with one layer in this process, and return its resident MiB over time.

    Args:
        format: Format of the layer.
        threads: CPU threads.
        exact: Compute every number of rows as it is, in fewer requests.
    """
    torch.set_num_threads(threads)
    if exact:
        bounded_rows.EXACT_SIZES = 2**30
    packed = formats.pack(torch.randn(WIDTH, WIDTH), torch.rand(WIDTH, WIDTH) < 0.3, format=format)
    lengths, megabytes = random.Random(0), [resident() // 2**20]
    with torch.inference_mode():
        for requests in (WARM_UP, EXACT_REQUESTS if exact else REQUESTS):
            for _ in range(requests):
                ops.linear(torch.randn(lengths.randint(1, LONGEST), WIDTH), packed)
            megabytes.append(resident() // 2**20)
    return dict(zip(("start_mb", "warm_mb", "end_mb"), megabytes, strict=True))


def time_layer(out_features: int, in_features: int, tokens: int) -> dict[str, Any]:
    """Time rounded-up rows against exact rows and ``F.linear``; return the median in us and the ratios."""
    weight, bias = torch.randn(out_features, in_features), torch.randn(out_features)
    packed, x = prepack(weight, DEFAULT_TOKENS), torch.randn(tokens, in_features)
    kind = object()

    def exact(part: Tensor) -> Tensor:
        return onednn_linear(part, packed, bias)

    def rounded(part: Tensor) -> Tensor:
        return bounded_rows.linear(part, out_features, kind, exact)

    with torch.inference_mode():
        for number in range(bounded_rows.EXACT_SIZES):  # after these, other numbers of rows are rounded up
            rounded(torch.zeros(bounded_rows.MAX_ROWS + 1 + number, in_features))
        to_exact = timing.paired(lambda: exact(x), lambda: rounded(x), min_rounds=ROUNDS)
        to_eager = timing.paired(lambda: F.linear(x, weight, bias), lambda: rounded(x), min_rounds=ROUNDS)
    return {
        "shape": [out_features, in_features],
        "tokens": tokens,
        "rounded_us": to_exact.other * 1e6,
        "to_exact": to_exact.speedup,
        "to_eager": to_eager.speedup,
        "busy": to_exact.busy or to_eager.busy,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and append the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_out_option(parser)
    # In the process of a measurement.
    parser.add_argument("--format", choices=FORMATS, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--exact", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.format:
        print(json.dumps(serve(options.format, options.threads, options.exact)))
        return
    machine = environment.detect().record()
    for format, exact in [("dense", True), *((format, False) for format in FORMATS)]:
        for threads in (1, 8):
            fields = fresh_process.measure(
                "benchmarks.request_lengths",
                ["--format", format, "--threads", str(threads), *["--exact"] * exact],
            )
            row = {"format": format, "threads": threads, "exact": exact, **fields}
            print(row)
            append(options.out, [results.stamp("request_memory", {"environment": machine, **row})])
    torch.set_num_threads(1)
    for shape in SHAPES:
        for tokens in TOKENS:
            row = time_layer(*shape, tokens)
            print(row)
            append(options.out, [results.stamp("request_time", {"environment": machine, **row})])


if __name__ == "__main__":
    main()
