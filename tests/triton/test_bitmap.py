"""Bitmap weights on the kernels: decompression, and ``ops.linear`` through it."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from sparsebert_kernels import ops, reference
from sparsebert_kernels.cuda import bitmap
from sparsebert_kernels.formats import BitmapSparse
from tests.formats.matrices import matrices
from tests.ops.problem import SHORT, gradient_of
from tests.triton.tolerance import assert_as_exact_as_torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@given(st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_decompression_gives_the_kept_weights_and_zeros(device: torch.device, data: st.DataObject) -> None:
    matrix = data.draw(matrices(dtypes=DTYPES))
    packed = BitmapSparse.from_dense(matrix.weight.to(device), matrix.mask.to(device))
    for dense in (bitmap.decompress(packed), packed.to_dense()):
        assert torch.equal(dense.cpu(), matrix.dense)


def test_offsets_past_32767_are_unsigned(device: torch.device) -> None:
    """One tile of a row, as if 40000 weights of the row came before it."""
    tensors = {
        "values": torch.arange(40064, dtype=torch.float32),
        "words": torch.full((1, 2), -1, dtype=torch.int32),
        "offsets": torch.tensor([[40000 - 65536]], dtype=torch.int16),
        "starts": torch.zeros(1, dtype=torch.int32),
    }
    packed = BitmapSparse((1, 64), {name: tensor.to(device) for name, tensor in tensors.items()}, {})
    assert bitmap.decompress(packed).flatten().tolist() == list(range(40000, 40064))
    # As packing stores them.
    packed = BitmapSparse.from_dense(torch.ones(1, 65536))
    assert int(packed.offsets[0, -1]) & 0xFFFF == 65536 - 64


def test_too_many_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="weight has 65537 columns; a bitmap stores at most 65536"):
        BitmapSparse.from_dense(torch.ones(1, 65537))


@pytest.mark.parametrize("dtype", DTYPES, ids=SHORT.get)
@pytest.mark.parametrize("density", [0, 0.2, 1])
class TestLinear:
    def test_is_as_exact_as_torchs(self, dtype: torch.dtype, density: float, device: torch.device) -> None:
        mask = torch.rand(45, 100) < density
        weight = torch.where(mask, torch.randn(45, 100), torch.nan).to(dtype)
        x, bias, gradient = (torch.randn(size).to(dtype) for size in ((3, 11, 100), (45,), (3, 11, 45)))
        kept = torch.where(mask, weight, 0)
        packed = BitmapSparse.from_dense(weight.to(device), mask.to(device))

        leaf = x.to(device).requires_grad_()
        y = ops.linear(leaf, packed, bias.to(device), "gelu")
        torchs, exact = (
            reference.linear(x.to(kind), kept.to(kind), bias.to(kind), "gelu")
            for kind in (dtype, torch.float64)
        )
        assert_as_exact_as_torch(y.detach().cpu(), torchs, exact)

        ops.linear(leaf, packed).backward(gradient.to(device))
        torchs, exact = gradient @ kept, gradient.double() @ kept.double()
        assert_as_exact_as_torch(gradient_of(leaf).cpu(), torchs, exact)

    def test_adds_a_residual(self, dtype: torch.dtype, density: float, device: torch.device) -> None:
        weight = torch.randn(45, 100).to(dtype)
        packed = BitmapSparse.from_dense(weight.to(device), (torch.rand(45, 100) < density).to(device))
        x, residual = torch.randn(7, 100).to(device, dtype), torch.randn(7, 45).to(device, dtype)
        with torch.no_grad():
            expected = ops.linear(x, packed) + residual
            assert torch.equal(ops.linear(x, packed, residual=residual), expected)


@pytest.mark.gpu
def test_replays_in_a_cuda_graph() -> None:
    """Two layers share the graph's memory, calls between replays do not touch it."""
    mask = torch.rand(256, 256, device="cuda") < 0.1
    layers = [BitmapSparse.from_dense(torch.randn(256, 256, device="cuda"), mask) for _ in range(2)]
    x = torch.randn(64, 256, device="cuda")

    def forward() -> torch.Tensor:
        y = x
        for layer in layers:
            y = ops.linear(y, layer)
        return y

    with torch.no_grad():
        forward()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = forward()
        for _ in range(3):
            x.normal_()
            expected = forward()
            graph.replay()
            torch.testing.assert_close(captured, expected)
