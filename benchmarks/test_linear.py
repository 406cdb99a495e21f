"""pytest-benchmark: sparse layers beside prepacked dense ones, so that a slow machine shows in both.

``make bench`` saves a run, ``make bench-compare`` prints ratios against the last saved one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.layers import packed_layer
from sparsebert.bench.providers.onednn import PrepackedLinear
from sparsebert_kernels import ops

SHAPES = ((768, 768), (3072, 768), (768, 3072))
TOKENS = (8, 128, 512)
PACKED = (("element", torch.float32), ("vector", torch.float32), ("element", torch.bfloat16))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


def name(value: object) -> str:
    """Return a readable test id."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value).removeprefix("torch.")


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("shape", SHAPES, ids=name)
@pytest.mark.parametrize(("format", "dtype"), PACKED, ids=name)
def test_sparse_90(benchmark, format, dtype, shape, tokens) -> None:
    linear, packed = packed_layer(shape, 0.9, format, dtype)
    x = torch.randn(tokens, shape[1]).to(dtype)
    benchmark.group = f"{name(shape)} M{tokens} {name(dtype)}"
    benchmark.extra_info["weight_bytes"] = packed.nbytes
    benchmark(ops.linear, x, packed, linear.bias)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("shape", SHAPES, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
def test_onednn(benchmark, dtype, shape, tokens) -> None:
    linear, _ = packed_layer(shape, 0.9, "element", dtype)
    x = torch.randn(tokens, shape[1]).to(dtype)
    benchmark.group = f"{name(shape)} M{tokens} {name(dtype)}"
    benchmark(PrepackedLinear(linear, tokens), x)
