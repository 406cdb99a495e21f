"""The ceilings of a CPU, measured: its fastest dense products in each precision, and its bandwidths.

A ceiling in FLOP/s is the rate of the fastest of several large dense products, of oneDNN and of sparsebert's
kernels with every weight kept. A bandwidth is that of a sum over an array, which reads it once: an array much
larger than the last-level cache, and one that stays in it. All use the threads of the workload. As ceilings
are the most that a part of a model can reach, the fastest round counts; the medians are kept beside it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsebert.bench.timer import Timings, alternate, on_wall, repeated
from sparsebert.cost.precision import DTYPES, PRECISIONS, pack_as
from sparsebert.cost.work import format_label, format_options, useful_flops
from sparsebert_kernels import ops
from sparsebert_kernels.cpu import native

# (tokens of each thread, rows, columns) of the products.
PRODUCTS = ((512, 1024, 1024), (512, 512, 512))
# Formats with every weight kept, with their blocks; in fp32 and bf16, "dense" is oneDNN.
FORMATS: dict[str, tuple[tuple[str, tuple[int, int] | None], ...]] = {
    "fp32": (("dense", None), ("vector", (8, 1))),
    "bf16": (("dense", None), ("row_panel", (32, 2)), ("row_panel", (64, 2))),
    "int8": (("vector_int8", (8, 1)), ("row_panel", (32, 4)), ("row_panel", (64, 4))),
}
# Products that take longer than the fastest in fp32 by this factor emulate their precision: no ceilings.
TOO_SLOW = 2.0
# Sizes of the arrays, as multiples of the last-level cache; the larger one within bounds.
OUT_OF_CACHE, IN_CACHE = 8, 0.25
ARRAY_BYTES = 2**28, 2**30
# Sums of the array in the cache that are timed together.
CALLS = 16
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Ceilings:
    """Measured rates, each of its fastest round.

    Attributes:
        flops: FLOP/s by precision: those of ``PRECISIONS`` that the CPU computes faster than the ones before.
        products: The product that reached each of them, e.g. "oneDNN 512x1024x1024" (tokens, columns, rows).
        read: Bytes/s of reading memory.
        copy: Bytes/s of copying in memory, read and written bytes together.
        cache_read: Bytes/s of reading the last-level cache; None if its size is unknown.
        cache_bytes: Size of the last-level cache; None if the system does not tell.
        array_bytes: Size of the array in memory.
        threads: Threads of all measurements.
        rounds: Least number of timed rounds.
        medians: The medians of all rounds, by precision and by "read", "copy" and "cache_read".
    """

    flops: dict[str, float]
    products: dict[str, str]
    read: float
    copy: float
    cache_read: float | None
    cache_bytes: int | None
    array_bytes: int
    threads: int
    rounds: int
    medians: dict[str, float]

    def record(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)


@torch.inference_mode()
def measure_ceilings(threads: int, budget: float = 1.0, caches: Path = CACHES) -> Ceilings:
    """Measure the ceilings of this CPU.

    Args:
        threads: The number of threads that torch uses.
        budget: Seconds for the products, and again for the bandwidths.
        caches: Folder in which Linux describes the caches.
    """
    products = {each.name: each for each in _products(threads)}
    on_products = alternate(
        {name: on_wall(each.run) for name, each in products.items()},
        budget=budget,
        min_rounds=5,
        threads=threads,
    )
    fastest = _fastest(products, on_products)
    flops = {precision: products[name].flops for precision, name in fastest.items()}
    products.clear()
    cache = last_level_cache(caches)
    low, high = ARRAY_BYTES
    nbytes = min(max(low, OUT_OF_CACHE * (cache or 0)), high)
    streams = _streams(nbytes, cache)
    on_streams = alternate(
        {
            name: on_wall(call) if name != "cache_read" else repeated(on_wall(call), CALLS)
            for name, call in streams
        },
        budget=budget,
        min_rounds=5,
        threads=threads,
    )
    moved = {"read": nbytes, "copy": 2 * nbytes, "cache_read": 4 * _floats_in(cache or 0)}
    best = {name: moved[name] / min(seconds) for name, seconds in on_streams.seconds.items()}
    return Ceilings(
        flops={each: flops[each] / min(on_products.seconds[name]) for each, name in fastest.items()},
        products=fastest,
        read=best["read"],
        copy=best["copy"],
        cache_read=best.get("cache_read"),
        cache_bytes=cache,
        array_bytes=nbytes,
        threads=threads,
        rounds=min(on_products.rounds, on_streams.rounds),
        medians={each: flops[each] / on_products.latency(name).median for each, name in fastest.items()}
        | {name: moved[name] / on_streams.latency(name).median for name in best},
    )


@dataclass(frozen=True)
class _Product:
    """A dense product: its precision, its name, its floating-point or integer operations, and the call."""

    precision: str
    name: str
    flops: int
    run: Callable[[], object]


def _products(threads: int) -> Iterator[_Product]:
    """Yield the products that are worth timing, in fp32 first."""
    for tokens, rows, columns in PRODUCTS:
        tokens *= threads
        least = float("inf")
        for precision in PRECISIONS:
            for label, run in _runs(precision, tokens, rows, columns):
                seconds = min(on_wall(run)() for _ in range(2))  # the first call compiles
                if precision == "fp32":
                    least = min(least, seconds)
                elif seconds > TOO_SLOW * least:
                    continue
                name = f"{label} {tokens}x{columns}x{rows}"
                yield _Product(precision, name, useful_flops(rows * columns, tokens), run)


def _runs(precision: str, tokens: int, rows: int, columns: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the calls of the products of one precision and shape, by the name of their kernel."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    x = torch.randn(tokens, columns, generator=generator)
    stored = DTYPES[precision]
    for format, block in FORMATS[precision]:
        if format != "dense" and not native.supports(format, stored, torch.empty(1, 1)):
            continue
        packed = pack_as(
            weight,
            torch.ones_like(weight, dtype=torch.bool),
            stored,
            format=format,
            **(format_options(format, block) if block else {"tokens": tokens}),
        )
        inputs = x.to(torch.bfloat16) if precision == "bf16" else x
        label = f"{format_label(format, block)} {precision}" if block else f"oneDNN {precision}"
        yield label, functools.partial(ops.linear, inputs, packed)
    if precision == "int8":
        yield from _onednn_int8(weight, x)


def _onednn_int8(weight: Tensor, x: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield torch's product of int8 matrices, where it has one on CPUs."""
    left, right = (each.mul(40).clamp(-127, 127).to(torch.int8) for each in (x, weight.t().contiguous()))
    try:
        run = functools.partial(torch._int_mm, left, right)
        run()
    except (AttributeError, RuntimeError):  # not public, and not for every CPU
        return
    yield "oneDNN int8", run


def _fastest(products: Mapping[str, _Product], timings: Timings) -> dict[str, str]:
    """Return the name of the fastest product of each precision that is faster than those before it."""
    rates = {name: each.flops / min(timings.seconds[name]) for name, each in products.items()}
    fastest: dict[str, str] = {}
    for precision in PRECISIONS:
        names = [name for name, each in products.items() if each.precision == precision]
        best = max(names, key=rates.__getitem__, default=None)
        if best is not None and rates[best] > max(map(rates.__getitem__, fastest.values()), default=0.0):
            fastest[precision] = best
    return fastest


def _streams(nbytes: int, cache: int | None) -> list[tuple[str, Callable[[], object]]]:
    """Return the calls that read and copy an array of ``nbytes``, and read one in the cache."""
    array = torch.ones(nbytes // 4)
    copied = torch.zeros_like(array)
    streams: list[tuple[str, Callable[[], object]]] = [
        ("read", array.sum),
        ("copy", lambda: copied.copy_(array)),
    ]
    return [*streams, ("cache_read", torch.ones(_floats_in(cache)).sum)] if cache else streams


def _floats_in(cache: int) -> int:
    """Return the length of the float32 array that stays in the cache."""
    return round(IN_CACHE * cache) // 4


def last_level_cache(caches: Path = CACHES) -> int | None:
    """Return the bytes of the last-level cache of the first core; None where the system does not tell."""
    sizes: dict[int, int] = {}
    for folder in caches.glob("index*"):
        try:
            level = int((folder / "level").read_text())
            size = re.fullmatch(r"(\d+)([KMG]?)", (folder / "size").read_text().strip())
            kind = (folder / "type").read_text().strip()
        except (OSError, ValueError):
            continue
        if size and kind != "Instruction":
            sizes[level] = int(size[1]) * _UNITS[size[2]]
    return sizes[max(sizes)] if sizes else None
